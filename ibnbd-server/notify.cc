// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/notify.h"

#include <systemd/sd-daemon.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/clock.h"

// Failures are ignored throughout: a service manager that does not listen is no reason to stop
// serving.
namespace ibnbd {

void NotifyReady(const std::string& status) {
  (void)sd_notify(0, absl::StrCat("READY=1\nSTATUS=", status).c_str());
}

void NotifyReloading() {
  const std::int64_t now_us = MonotonicClock().NowNs() / kNsPerUs;
  (void)sd_notify(0, absl::StrCat("RELOADING=1\nMONOTONIC_USEC=", now_us).c_str());
}

void NotifyStopping() { (void)sd_notify(0, "STOPPING=1\nSTATUS=finishing IOs"); }

bool HasServiceManager() { return std::getenv("NOTIFY_SOCKET") != nullptr; }

void NotifyWatchdog() { (void)sd_notify(0, "WATCHDOG=1"); }

// What was kept until now goes first: the same sockets are not kept twice.
void NotifyStoredSockets(const std::vector<int>& sockets) {
  (void)sd_notify(0, "FDSTOREREMOVE=1\nFDNAME=listen");
  for (const int fd : sockets) {
    (void)sd_pid_notify_with_fds(0, 0, "FDSTORE=1\nFDNAME=listen", &fd, 1);
  }
}

std::int64_t WatchdogIntervalNs() {
  std::uint64_t interval_us = 0;
  if (sd_watchdog_enabled(0, &interval_us) <= 0) return 0;
  return static_cast<std::int64_t>(interval_us) * kNsPerUs;
}

}  // namespace ibnbd
