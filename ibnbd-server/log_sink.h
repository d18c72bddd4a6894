// SPDX-License-Identifier: Apache-2.0
// Where the server's log lines go: standard error, by spdlog.  Under systemd with the journal's
// level prefixes and without a time (the journal has its own), otherwise with both.  Nobody waits
// for who reads them (base/log_writer.h): threads that serve volumes have something to say, too.
#pragma once

#include <string>

namespace ibnbd {

// Level: "error", "warn", "info" or "debug".  Call once, before threads start.
void InstallLogSink(const std::string& level);
// Before the process ends: gives the reader a second to take the last lines.
void FlushLog();

}  // namespace ibnbd
