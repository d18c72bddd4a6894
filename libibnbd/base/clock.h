// SPDX-License-Identifier: Apache-2.0
// Time as a parameter.  Nothing below the programs asks the operating system what time it is; it
// asks the Clock it was given.  MonotonicClock is the real one, the simulator has a virtual one.
#pragma once

#include <cstdint>

namespace ibnbd {

inline constexpr std::int64_t kNsPerUs = 1000;
inline constexpr std::int64_t kNsPerMs = 1000 * kNsPerUs;
inline constexpr std::int64_t kNsPerSecond = 1000 * kNsPerMs;

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary point; never goes backwards.  Any thread.
  [[nodiscard]] virtual std::int64_t NowNs() const = 0;
};

// CLOCK_MONOTONIC.
class MonotonicClock final : public Clock {
 public:
  [[nodiscard]] std::int64_t NowNs() const override;
};

}  // namespace ibnbd
