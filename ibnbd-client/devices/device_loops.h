// SPDX-License-Identifier: Apache-2.0
// The threads on which the IOs of all kernel devices of this process run: event loops, as many as
// the sessions have queues.  Everything here is for other threads than those of the loops.
#pragma once

#include <ibnbd/ibnbd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "nbd-bridge/event_loop.h"

namespace ibnbd::client {

class DeviceLoops {
 public:
  // As many as there are CPUs, but no more than this: one fills a fast link, more divide the work.
  static constexpr std::uint32_t kCountMax = 4;

  // `count` 0: the default.
  static std::unique_ptr<DeviceLoops> Start(std::uint32_t count);
  ~DeviceLoops();  // Stop()s.
  DeviceLoops(const DeviceLoops&) = delete;
  DeviceLoops& operator=(const DeviceLoops&) = delete;

  [[nodiscard]] std::uint32_t count() const { return static_cast<std::uint32_t>(loops_.size()); }
  [[nodiscard]] bridge::EventLoop& loop(std::uint32_t index) { return *loops_[index].events; }

  // Runs `task` on the loop's thread and waits for its end: microseconds, as loops never wait.
  void Call(std::uint32_t index, absl::AnyInvocable<void()> task);
  // The same on all of them at once, and waits for the last.
  void CallAll(const std::function<void(std::uint32_t index)>& task);
  // For a watchdog: asks every loop for a sign of life; true if all have answered the question
  // before.  Never waits.
  bool AllAlive();
  // Queue i of the session, which must have count() of them, belongs to loop i from now on; or no
  // more.
  void AddSession(ibnbd_session* session);
  void RemoveSession(ibnbd_session* session);
  // The last thing before the end of the process: the loops answer nobody any more, and who waits
  // for an answer has sent all that it will send.  Waits for 50 ms, or for up to a second for loops
  // that are busy.
  void HoldStill();
  // Ends the threads, whatever is left on the loops; Call() no more.  The kernel takes back the
  // commands of ublk devices.
  void Stop();

 private:
  struct Loop {
    std::unique_ptr<bridge::EventLoop> events;
    std::thread thread;
  };
  DeviceLoops() = default;

  MonotonicClock clock_;
  std::vector<Loop> loops_;
  std::atomic<std::uint32_t> unanswered_{0};
};

}  // namespace ibnbd::client
