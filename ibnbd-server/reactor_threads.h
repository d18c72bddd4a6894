// SPDX-License-Identifier: Apache-2.0
// The server's reactors, each on a thread of its own.  Owned and called by the main thread, which
// only ever talks to them by mail.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "reactor/reactor.h"

namespace ibnbd {

class ReactorThreads {
 public:
  static absl::StatusOr<std::unique_ptr<ReactorThreads>> Create(std::uint32_t count);
  ~ReactorThreads();  // Ends the threads; what lived on the reactors is gone by then.

  [[nodiscard]] std::size_t size() const { return reactors_.size(); }
  [[nodiscard]] Reactor& operator[](std::size_t index) { return *reactors_[index]; }
  // Runs the task on that reactor and waits for its end.
  void RunOn(std::size_t index, absl::AnyInvocable<void()> task);

  // For the watchdog: asks every reactor for a sign of life; true if all have answered the question
  // before.  Never waits.
  bool AllAlive();

 private:
  ReactorThreads() = default;
  MonotonicClock clock_;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::thread> threads_;
  std::atomic<std::uint32_t> unanswered_{0};
};

}  // namespace ibnbd
