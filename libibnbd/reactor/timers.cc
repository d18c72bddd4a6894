// SPDX-License-Identifier: Apache-2.0
#include "reactor/timers.h"

#include <utility>

#include "base/check.h"

namespace ibnbd {

Timer::Timer(Timers& timers, Callback callback) : timers_(timers), callback_(std::move(callback)) {}

Timer::~Timer() {
  Cancel();
  if (timers_.running_ == this) timers_.running_ = nullptr;
}

void Timer::ArmAt(std::int64_t deadline_ns) {
  Cancel();
  deadline_ns_ = deadline_ns;
  timers_.Insert(*this);
}

void Timer::ArmAfter(std::int64_t delay_ns) { ArmAt(timers_.now_ns_ + delay_ns); }

void Timer::Cancel() {
  if (armed()) timers_.Remove(*this);
}

Timers::~Timers() { CHECK(heap_.empty() && fresh_.empty()); }

std::int64_t Timers::next_deadline_ns() const {
  return heap_.empty() ? -1 : heap_.front()->deadline_ns_;
}

bool Timers::FireDue(std::int64_t now_ns) {
  now_ns_ = now_ns;
  if (heap_.empty() || heap_.front()->deadline_ns_ > now_ns) return false;
  firing_ = true;
  while (!heap_.empty() && heap_.front()->deadline_ns_ <= now_ns) {
    Timer* timer = heap_.front();
    Remove(*timer);
    // The callback may destroy its timer, so it must not live inside it while it runs.
    Timer::Callback callback = std::move(timer->callback_);
    running_ = timer;
    callback();
    if (running_ == timer) timer->callback_ = std::move(callback);
    running_ = nullptr;
  }
  firing_ = false;
  for (Timer* timer : fresh_) Push(*timer);
  fresh_.clear();
  return true;
}

void Timers::Insert(Timer& timer) {
  timer.sequence_ = next_sequence_++;
  if (!firing_) {
    Push(timer);
    return;
  }
  timer.heap_index_ = fresh_.size() | kFreshBit;
  fresh_.push_back(&timer);
}

void Timers::Push(Timer& timer) {
  heap_.push_back(&timer);
  timer.heap_index_ = heap_.size() - 1;
  SiftUp(timer.heap_index_);
}

void Timers::Remove(Timer& timer) {
  const std::size_t index = timer.heap_index_;
  timer.heap_index_ = Timer::kNotArmed;
  if ((index & kFreshBit) != 0) {
    Timer* last = fresh_.back();
    fresh_.pop_back();
    if (last == &timer) return;
    fresh_[index & ~kFreshBit] = last;
    last->heap_index_ = index;
    return;
  }
  Timer* last = heap_.back();
  heap_.pop_back();
  if (last == &timer) return;
  Place(last, index);
  SiftUp(index);
  SiftDown(last->heap_index_);
}

void Timers::SiftUp(std::size_t index) {
  Timer* timer = heap_[index];
  while (index > 0) {
    const std::size_t parent = (index - 1) / 2;
    if (!Before(*timer, *heap_[parent])) break;
    Place(heap_[parent], index);
    index = parent;
  }
  Place(timer, index);
}

void Timers::SiftDown(std::size_t index) {
  Timer* timer = heap_[index];
  for (;;) {
    std::size_t child = 2 * index + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && Before(*heap_[child + 1], *heap_[child])) ++child;
    if (!Before(*heap_[child], *timer)) break;
    Place(heap_[child], index);
    index = child;
  }
  Place(timer, index);
}

void Timers::Place(Timer* timer, std::size_t index) {
  heap_[index] = timer;
  timer->heap_index_ = index;
}

bool Timers::Before(const Timer& a, const Timer& b) {
  if (a.deadline_ns_ != b.deadline_ns_) return a.deadline_ns_ < b.deadline_ns_;
  return a.sequence_ < b.sequence_;
}

}  // namespace ibnbd
