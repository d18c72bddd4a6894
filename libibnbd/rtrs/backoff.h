// SPDX-License-Identifier: Apache-2.0
// Pauses between attempts: doubling from a minimum to a maximum, each with a jitter of up to a
// quarter either way, so that many clients of a restarted server do not return in step.  Control
// thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/prng.h"

namespace ibnbd::rtrs {

class Backoff {
 public:
  Backoff(std::int64_t ns_min, std::int64_t ns_max, Prng prng)
      : ns_min_(std::max<std::int64_t>(ns_min, 1)),
        ns_max_(std::max(ns_min_, ns_max)),
        next_ns_(ns_min_),
        prng_(prng) {}

  // It worked: the next pause is the shortest again.
  void Reset() { next_ns_ = ns_min_; }
  // The pause before the next attempt.
  [[nodiscard]] std::int64_t Next() { return Jitter(Advance()); }
  // The longest pause, for what a quick retry will not mend.
  [[nodiscard]] std::int64_t Longest() { return Jitter(ns_max_); }

 private:
  std::int64_t Advance() {
    const std::int64_t pause_ns = next_ns_;
    next_ns_ = next_ns_ > ns_max_ / 2 ? ns_max_ : next_ns_ * 2;
    return pause_ns;
  }
  std::int64_t Jitter(std::int64_t pause_ns) {
    return pause_ns + prng_.Between(-pause_ns / 4, pause_ns / 4);
  }

  const std::int64_t ns_min_;
  const std::int64_t ns_max_;
  std::int64_t next_ns_;
  Prng prng_;
};

}  // namespace ibnbd::rtrs
