// SPDX-License-Identifier: Apache-2.0
// Timers of one reactor: a binary heap of intrusive timers.  Arming and cancelling are O(log n) and
// do not allocate once the heap has grown; control-plane use (heartbeats, backoff, deadlines of
// volumes), never one per IO.  One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace ibnbd {

class Timers;

// Fires its callback once per Arm().  The callback may arm, cancel or destroy any timer, its own
// too.
class Timer {
 public:
  using Callback = absl::AnyInvocable<void()>;
  Timer(Timers& timers, Callback callback);
  ~Timer();  // Cancels.
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  void ArmAt(std::int64_t deadline_ns);  // Re-arms if armed.
  void ArmAfter(std::int64_t delay_ns);  // From the turn's now.
  void Cancel();                         // Idempotent.
  [[nodiscard]] bool armed() const { return heap_index_ != kNotArmed; }
  [[nodiscard]] std::int64_t deadline_ns() const { return deadline_ns_; }

 private:
  friend class Timers;
  static constexpr std::size_t kNotArmed = ~std::size_t{0};
  Timers& timers_;
  Callback callback_;
  std::int64_t deadline_ns_ = 0;
  std::uint64_t sequence_ = 0;  // Equal deadlines fire in arming order: determinism.
  std::size_t heap_index_ = kNotArmed;
};

class Timers {
 public:
  Timers() = default;
  ~Timers();  // Requires: none armed.
  // Fires all that are due at `now_ns`, in order; true if any was.  Timers armed by callbacks for
  // now or earlier fire in the next call.
  bool FireDue(std::int64_t now_ns);
  [[nodiscard]] std::int64_t next_deadline_ns() const;  // -1: none armed.
  [[nodiscard]] std::size_t armed_count() const { return heap_.size() + fresh_.size(); }
  void set_now_ns(std::int64_t now_ns) { now_ns_ = now_ns; }

 private:
  friend class Timer;
  void Insert(Timer& timer);
  void Remove(Timer& timer);
  void SiftUp(std::size_t index);
  void SiftDown(std::size_t index);
  void Place(Timer* timer, std::size_t index);
  void Push(Timer& timer);
  static bool Before(const Timer& a, const Timer& b);

  // The top bit of a heap index says that it is one of fresh_.
  static constexpr std::size_t kFreshBit = ~(~std::size_t{0} >> 1);
  std::vector<Timer*> heap_;
  std::vector<Timer*> fresh_;  // Armed while FireDue() runs; they join the heap at its end.
  Timer* running_ = nullptr;   // Its callback is being called; null once it is destroyed.
  bool firing_ = false;
  std::int64_t now_ns_ = 0;
  std::uint64_t next_sequence_ = 0;
};

}  // namespace ibnbd
