// SPDX-License-Identifier: Apache-2.0
// Signals as something to wait for, together with a wake-up from other threads.  Main thread, but
// for Wake().
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace ibnbd {

class SignalWaiter {
 public:
  // Blocks the signals for this thread and those it will start.  Before any thread starts.
  static absl::StatusOr<SignalWaiter> Create(const std::vector<int>& signals);

  static constexpr int kTimedOut = 0;
  static constexpr int kWoken = -1;
  static constexpr int kReadable = -2;
  // The signal that came, or one of the above.  A negative time-out means none.  `also`: another
  // descriptor to wait for, or -1.
  int Wait(std::int64_t timeout_ns, int also = -1);
  void Wake();  // Any thread; also a wait that begins later.

 private:
  UniqueFd signals_;
  UniqueFd wake_;
};

}  // namespace ibnbd
