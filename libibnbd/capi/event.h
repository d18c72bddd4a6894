// SPDX-License-Identifier: Apache-2.0
// What a thread of the application waits on while another thread works: the control thread, or the
// owner of a queue.  Shared by both, so that the waiter may give up and the worker still has
// something to signal.  Control plane only.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"

struct ibnbd_session;

namespace ibnbd::capi {

// Done after `count` signals.
class Event {
 public:
  explicit Event(std::uint32_t count = 1) : left_(count) {}
  void Signal() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (left_ > 0 && --left_ == 0) done_.notify_all();
  }
  [[nodiscard]] bool done() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return left_ == 0;
  }
  // True if done; waits at most `timeout_ns`.
  bool WaitFor(std::int64_t timeout_ns) {
    std::unique_lock<std::mutex> lock(mutex_);
    return done_.wait_for(lock, std::chrono::nanoseconds(timeout_ns),
                          [this] { return left_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  std::uint32_t left_;
};

// Waits for `event` at most `timeout_ns`, running turns of the queues that the calling thread owns.
bool WaitAndDrive(ibnbd_session& session, Event& event, std::int64_t timeout_ns);

// The answer to a call on the control thread.  If the caller gave up before it came, `on_late` gets
// it, on the control thread: the place to undo what nobody waits for any more.
template <class T>
class Reply {
 public:
  void Deliver(T value) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!abandoned_) {
        value_ = std::move(value);
        event_.Signal();
        return;
      }
    }
    if (on_late_) on_late_(std::move(value));
  }
  // The value, or nothing: then it was abandoned.
  std::optional<T> Take(std::function<void(T)> on_late) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (value_.has_value()) return std::move(value_);
    abandoned_ = true;
    on_late_ = std::move(on_late);
    return std::nullopt;
  }
  Event& event() { return event_; }

 private:
  Event event_;
  std::mutex mutex_;
  std::optional<T> value_;
  bool abandoned_ = false;
  std::function<void(T)> on_late_;
};

}  // namespace ibnbd::capi
