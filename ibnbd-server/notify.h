// SPDX-License-Identifier: Apache-2.0
// What the service manager is told (sd_notify).  Nothing happens where there is none.  Main thread.
#pragma once

#include <cstdint>
#include <string>

namespace ibnbd {

void NotifyReady(const std::string& status);
void NotifyReloading();
void NotifyStopping();
void NotifyWatchdog();
// How often NotifyWatchdog() is expected; 0: never.
std::int64_t WatchdogIntervalNs();

}  // namespace ibnbd
