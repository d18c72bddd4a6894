// SPDX-License-Identifier: Apache-2.0
// See check.h.
#include "base/check.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace ibnbd {
namespace {

// For the last log lines, which have a bound of their own (1 s), and for the reason.
constexpr time_t kLastWordsSeconds = 2;

// The process ends by then, as abort() would end it, whatever hangs meanwhile.
void AbortLater() {
  struct sigaction action {};
  if (sigaction(SIGABRT, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) {
    (void)signal(SIGABRT, SIG_DFL);
  }
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGABRT;
  timer_t timer{};
  const itimerspec when{.it_interval = {}, .it_value = {.tv_sec = kLastWordsSeconds, .tv_nsec = 0}};
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0) {
    (void)timer_settime(timer, 0, &when, nullptr);
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGABRT);
  (void)pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void WriteToStderr(const char* text, std::size_t size) {
  while (size > 0) {
    const ssize_t put = write(STDERR_FILENO, text, size);
    if (put < 0 && errno != EINTR) return;
    if (put < 0) continue;
    text += put;
    size -= static_cast<std::size_t>(put);
  }
}

}  // namespace

void CheckFailed(const char* file, int line, const char* what) {
  AbortLater();
  // Once: it may find something wrong, too.
  if (auto* before = before_check_fails.exchange(nullptr)) before();
  char text[1024];
  const int size = std::snprintf(text, sizeof text, "%s:%d: CHECK failed: %s\n", file, line, what);
  if (size > 0) WriteToStderr(text, std::min<std::size_t>(size, sizeof text - 1));
  std::abort();
}

}  // namespace ibnbd
