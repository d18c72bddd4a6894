// SPDX-License-Identifier: Apache-2.0
// When a daemon was last alive, for the next one: for as long IOs have been waiting at least.  On
// the clock that counts from boot, because the kernel's devices live no longer.  Any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "base/unique_fd.h"

namespace ibnbd::client {

std::int64_t MsSinceBoot();  // CLOCK_BOOTTIME: goes on while the machine sleeps.

class AliveFile {
 public:
  explicit AliveFile(std::string path) : path_(std::move(path)) {}

  // Of the daemon before: 0 if there was none, or it did not say.  Before Touch().
  [[nodiscard]] std::int64_t LastMs() const;
  // Now.  One that fails is only said once: the next daemon believes that it was a shorter time.
  void Touch();

 private:
  const std::string path_;
  UniqueFd fd_;
  bool failed_ = false;
};

}  // namespace ibnbd::client
