// SPDX-License-Identifier: Apache-2.0
// map, unmap, remap, resize, and list and show of what is mapped: commands that ask the daemon, and
// the daemon itself.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ibnbd-client/ask_daemon.h"
#include "ibnbd-client/daemon/daemon.h"

namespace ibnbd::client {

struct DeviceCommandOptions {
  DaemonOptions daemon;
  AskOptions ask;
  std::string device;  // A node, a link to it, or a URI.
  bool force = false;
  bool all = false;  // unmap
  bool ios = false;  // show

  // map
  std::vector<std::string> volume;  // A URI, or the words of the kernel's map_device.
  std::vector<std::string> paths;
  std::string path_policy, dead_after;  // "": as it is.  Also set.
  std::string kind = "ublk";
  std::string session;  // "": the one of the server.
  bool read_only = false, migration = false, foreground = false, if_needed = false;
  std::string on_loss = "hold";  // Also set, "" there: as it is.
  std::uint32_t queue_depth = 128;
  int index = -1;
};

// Adds the subcommands; the one that was given puts what it does into `run`.  `options` and `run`
// must outlive the parsing.
void AddDeviceCommands(CLI::App& app, DeviceCommandOptions& options,
                       std::function<absl::Status()>& run);

absl::Status RunMappedList(const DeviceCommandOptions& options);
absl::Status RunMappedShow(const DeviceCommandOptions& options);

}  // namespace ibnbd::client
