// SPDX-License-Identifier: Apache-2.0
// Bounds the log lines that a peer can cause: so many per second, then silence, then a count of
// what was not said.  One thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/log.h"

namespace ibnbd::rtrs {

class LogLimiter {
 public:
  explicit LogLimiter(std::uint32_t lines_per_second) : lines_max_(lines_per_second) {}

  // True if a line may be written now.
  [[nodiscard]] bool Allow(std::int64_t now_ns) {
    if (now_ns - window_start_ns_ >= kNsPerSecond || now_ns < window_start_ns_) {
      window_start_ns_ = now_ns;
      line_count_ = 0;
    }
    if (line_count_ < lines_max_) {
      ++line_count_;
      return true;
    }
    ++suppressed_count_;
    return false;
  }
  // How many were refused since this was last asked.
  [[nodiscard]] std::uint64_t TakeSuppressedCount() {
    const std::uint64_t count = suppressed_count_;
    suppressed_count_ = 0;
    return count;
  }

 private:
  const std::uint32_t lines_max_;
  std::int64_t window_start_ns_ = -kNsPerSecond;
  std::uint32_t line_count_ = 0;
  std::uint64_t suppressed_count_ = 0;
};

}  // namespace ibnbd::rtrs
