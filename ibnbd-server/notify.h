// SPDX-License-Identifier: Apache-2.0
// What the service manager is told (sd_notify).  Nothing happens where there is none.  Main thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ibnbd {

void NotifyReady(const std::string& status);
void NotifyReloading();
void NotifyStopping();
[[nodiscard]] bool HasServiceManager();
void NotifyWatchdog();
// To be kept over our restart, and handed back to the next process.
void NotifyStoredSockets(const std::vector<int>& sockets);
// How often NotifyWatchdog() is expected; 0: never.
std::int64_t WatchdogIntervalNs();

}  // namespace ibnbd
