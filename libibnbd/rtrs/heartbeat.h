// SPDX-License-Identifier: Apache-2.0
// Counts missed heartbeats as RTRS does on both sides: at most one HB_MSG is unanswered at a time,
// and any sign of life from the peer, on any connection of the path, clears the count.  No timer
// and no IO of its own: the owner calls Tick() once per interval and does what the verdict says.
// Control thread.
#pragma once

#include <cstdint>

namespace ibnbd::rtrs {

// The kernel's, on both sides.
inline constexpr std::uint32_t kHeartbeatMissedMax = 5;

class Heartbeat {
 public:
  enum class Verdict : std::uint8_t {
    kSend,  // Send one HB_MSG now.
    kWait,  // One is unanswered; send nothing.
    kDead,  // The peer was silent for too long: break the path.
  };

  explicit Heartbeat(std::uint32_t missed_max) : missed_max_(missed_max) {}

  void Reset() { missed_ = 0; }
  // Something was received from the peer.
  void OnSignOfLife() { missed_ = 0; }
  // One interval has passed.  A peer that falls silent right after an answer is found dead
  // missed_max + 2 ticks later at most.
  [[nodiscard]] Verdict Tick() {
    if (missed_ > missed_max_) return Verdict::kDead;
    return missed_++ == 0 ? Verdict::kSend : Verdict::kWait;
  }
  [[nodiscard]] std::uint32_t missed() const { return missed_; }

 private:
  const std::uint32_t missed_max_;
  std::uint32_t missed_ = 0;
};

}  // namespace ibnbd::rtrs
