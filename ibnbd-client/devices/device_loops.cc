// SPDX-License-Identifier: Apache-2.0
// See device_loops.h.
#include "ibnbd-client/devices/device_loops.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/log.h"

namespace ibnbd::client {
namespace {

constexpr absl::Duration kHoldTimeMax = absl::Seconds(1);
constexpr absl::Duration kQuietTime = absl::Milliseconds(50);

}  // namespace

std::unique_ptr<DeviceLoops> DeviceLoops::Start(std::uint32_t count) {
  if (count == 0) count = std::clamp(std::thread::hardware_concurrency(), 1u, kCountMax);
  std::unique_ptr<DeviceLoops> loops(new DeviceLoops);
  loops->loops_.resize(count);
  // The loops' threads take no signals, whoever takes them.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);  // Cannot fail.
  for (Loop& loop : loops->loops_) {
    loop.events = std::make_unique<bridge::EventLoop>(loops->clock_, std::vector<ibnbd_queue*>());
    loop.thread = std::thread([&loop] {
      (void)pthread_setname_np(pthread_self(), "ibnbd-loop");
      const absl::Status status = loop.events->Run();
      if (!status.ok()) LOG_ERROR("an event loop cannot run: ", status.message());
      CHECK(status.ok());
    });
  }
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return loops;
}

DeviceLoops::~DeviceLoops() { Stop(); }

void DeviceLoops::Stop() {
  for (Loop& loop : loops_) loop.events->StartDrain(clock_.NowNs());
  for (Loop& loop : loops_) {
    if (loop.thread.joinable()) loop.thread.join();
  }
}

void DeviceLoops::Call(std::uint32_t index, absl::AnyInvocable<void()> task) {
  absl::Notification done;
  loops_[index].events->Post([&] {
    task();
    done.Notify();
  });
  done.WaitForNotification();
}

void DeviceLoops::CallAll(const std::function<void(std::uint32_t)>& task) {
  absl::BlockingCounter running(static_cast<int>(count()));
  for (std::uint32_t i = 0; i < count(); ++i) {
    loops_[i].events->Post([&task, &running, i] {
      task(i);
      running.DecrementCount();
    });
  }
  running.Wait();
}

void DeviceLoops::HoldStill() {
  // Shared with threads that outlive this function.
  auto turning = std::make_shared<std::atomic<std::uint32_t>>(count());
  for (Loop& loop : loops_) {
    loop.events->Post([turning] {
      turning->fetch_sub(1);
      while (true) ::pause();
    });
  }
  const absl::Time deadline = absl::Now() + kHoldTimeMax;
  while (turning->load() != 0 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
  absl::SleepFor(kQuietTime);
}

bool DeviceLoops::AllAlive() {
  if (unanswered_.load(std::memory_order_acquire) != 0) return false;
  unanswered_.store(count(), std::memory_order_relaxed);
  for (Loop& loop : loops_) {
    loop.events->Post([this] { unanswered_.fetch_sub(1, std::memory_order_release); });
  }
  return true;
}

void DeviceLoops::AddSession(ibnbd_session* session) {
  CallAll([&](std::uint32_t i) { loop(i).AddQueue(ibnbd_session_queue(session, i)); });
}

void DeviceLoops::RemoveSession(ibnbd_session* session) {
  CallAll([&](std::uint32_t i) { loop(i).RemoveQueue(ibnbd_session_queue(session, i)); });
}

}  // namespace ibnbd::client
