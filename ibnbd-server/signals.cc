// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>

#include <cerrno>

#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace ibnbd {

absl::StatusOr<SignalWaiter> SignalWaiter::Create(const std::vector<int>& signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : signals) sigaddset(&set, number);
  if (const int error = pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) {
    return ErrnoStatus(error, "block signals");
  }
  SignalWaiter waiter;
  waiter.signals_.Reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!waiter.signals_.valid()) return ErrnoStatus(errno, "signalfd");
  waiter.wake_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!waiter.wake_.valid()) return ErrnoStatus(errno, "eventfd");
  return waiter;
}

int SignalWaiter::Wait(std::int64_t timeout_ns, int also) {
  pollfd fds[] = {{signals_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}, {also, POLLIN, 0}};
  const timespec timeout{timeout_ns / kNsPerSecond, timeout_ns % kNsPerSecond};
  while (true) {
    const int count = ppoll(fds, 3, timeout_ns < 0 ? nullptr : &timeout, nullptr);
    if (count == 0) return kTimedOut;
    if (count < 0) {
      CHECK_EQ(errno, EINTR);
      continue;
    }
    signalfd_siginfo info{};
    if (read(signals_.get(), &info, sizeof info) == sizeof info) {
      return static_cast<int>(info.ssi_signo);
    }
    std::uint64_t value = 0;
    if (read(wake_.get(), &value, sizeof value) == sizeof value) return kWoken;
    if (fds[2].revents != 0) return kReadable;
  }
}

void SignalWaiter::Wake() {
  const std::uint64_t one = 1;
  CHECK_EQ(write(wake_.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
}

}  // namespace ibnbd
