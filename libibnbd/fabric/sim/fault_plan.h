// SPDX-License-Identifier: Apache-2.0
// What may go wrong in a simulated world, and how often: rates in parts per million and ranges of
// virtual nanoseconds.  A default plan is a network without faults but with delays.  Pure data,
// drawn once per seed and printed before anything runs.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/prng.h"

namespace ibnbd::sim {

struct NsRange {
  std::int64_t low = 0;
  std::int64_t high = 0;
  std::int64_t Draw(Prng& prng) const { return prng.Between(low, high); }
};

// Rates end in _ppm.  What each is drawn for stands behind it.
struct FaultPlan {
  // --- Timing; never off. ---
  NsRange link_delay_ns{2 * kNsPerUs, 8 * kNsPerUs};   // A message or its acknowledgement, one way.
  NsRange cm_delay_ns{20 * kNsPerUs, 200 * kNsPerUs};  // A message of the connection manager.
  NsRange notice_ns{10 * kNsPerUs, 2 * kNsPerMs};      // From a break until an end sees it.
  NsRange drain_ns{0, 500 * kNsPerUs};                 // From seeing it until drained() may hold.
  NsRange retry_timeout_ns{500 * kNsPerMs, 2 * kNsPerSecond};  // Unacknowledged until kPeerGone.
  NsRange connect_timeout_ns{2 * kNsPerSecond, 8 * kNsPerSecond};  // Unanswered until kUnreachable.
  bool pad_private_data = true;  // As verbs does: zeros behind what was sent.

  // --- Connecting; each per attempt. ---
  std::uint32_t connect_refused_ppm = 0;   // As if nobody listened.
  std::uint32_t connect_rejected_ppm = 0;  // The network rejects, late, without data.
  std::uint32_t connect_silent_ppm = 0;    // No answer.
  std::uint32_t accept_lost_ppm = 0;       // The listener accepted; the caller never learns.
  NsRange connect_late_ns{1 * kNsPerMs, 3 * kNsPerSecond};

  // --- Breaking. ---
  std::uint32_t cut_ppm = 0;  // Per posted send: the connection breaks at this post.
  std::uint32_t late_landing_ppm =
      0;  // Per break and direction: what is in flight lands late (F4).
  NsRange late_landing_ns{1 * kNsPerMs, 3 * kNsPerSecond};
  std::uint32_t one_sided_ppm = 0;  // Per break: one end does not see it for long.
  NsRange one_sided_ns{100 * kNsPerMs, 20 * kNsPerSecond};
  bool one_sided_passive = false;  // It is the listener's end that does not see it, always.
  std::uint32_t no_receive_break_ppm =
      0;                            // Per message without a posted receive: kNoReceive at once.
  std::uint32_t partition_ppm = 0;  // Per posted send: the two hosts lose sight of each other.
  NsRange partition_ns{10 * kNsPerMs, 4 * kNsPerSecond};

  // --- Slowness. ---
  std::uint32_t slow_message_ppm = 0;  // Per posted send.
  NsRange slow_message_ns{50 * kNsPerUs, 20 * kNsPerMs};
  std::uint32_t slow_completion_ppm = 0;  // Per completion: overtaken by those of other queues.
  NsRange slow_completion_ns{5 * kNsPerUs, 5 * kNsPerMs};
  std::uint32_t clog_ppm = 0;  // Per posted send: this direction between the hosts stands still.
  NsRange clog_ns{1 * kNsPerMs, 2 * kNsPerSecond};
  std::uint32_t stall_ppm = 0;  // Per landed message: the receiving reactor takes no turns.
  NsRange stall_ns{100 * kNsPerUs, 1 * kNsPerSecond};

  // The same timing, no faults.
  [[nodiscard]] FaultPlan WithoutFaults() const;
  // One line: timing and the faults that are on.
  [[nodiscard]] std::string ToString() const;
};

// First draws which faults exist at all, then their rates: a fault that is rare among twenty others
// is common in the seeds that have only it.
FaultPlan DrawSwarmPlan(Prng& prng);

}  // namespace ibnbd::sim
