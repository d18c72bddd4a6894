// SPDX-License-Identifier: Apache-2.0
// The process that holds all sessions and kernel devices of a host.  It may be killed and started
// again at any time: devices stay, their IOs wait, and the next process goes on with them.  So
// there is no orderly end either: SIGTERM leaves the devices to the successor in the same way.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "base/log_writer.h"
#include "ibnbd-client/mapping/mapped_volume.h"

namespace ibnbd::client {

struct DaemonOptions {
  std::string runtime_directory = "/run/ibnbd";  // State file, files for udev.
  std::string socket;                            // For ListenControl().
  std::string group;                             // Who else may use it; "": nobody.
  std::uint32_t loop_count = 0;                  // 0: DeviceLoops' default.
  std::string session_name;
  std::string memory;  // Of the devices' buffers: as ibnbd_session_options has it, or "".
};

// Until SIGTERM or SIGINT.  Both start `log`, to which the sink writes.
absl::Status RunDaemon(const DaemonOptions& options, LogWriter& log);

// One volume without a daemon: prints the node, and takes the device away at SIGTERM or SIGINT.
absl::Status RunForeground(const MapRequest& request, const DaemonOptions& options, LogWriter& log);

}  // namespace ibnbd::client
