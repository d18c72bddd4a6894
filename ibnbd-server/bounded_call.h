// SPDX-License-Identifier: Apache-2.0
// For calls into a file system that may not answer for hours (a network mount, FUSE): each runs on
// a thread of its own, and who asks, a reactor that carries other volumes' IO, goes on without it
// after a moment.  While one does not return, no other is begun: what hangs costs one moment and
// one thread.  Used by the control thread; one per file or directory that can hang.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/clock.h"

namespace ibnbd {

class BoundedCall {
 public:
  static constexpr std::int64_t kPatienceNs = 1 * kNsPerSecond;

  BoundedCall();
  // True: `f` has returned.  False: not yet, or it was not begun because an earlier one has not
  // returned.  So what `f` touches belongs to it (shared), and what it leaves there may be looked
  // at after `true` only.
  bool Run(std::function<void()> f, std::int64_t patience_ns = kPatienceNs);

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace ibnbd
