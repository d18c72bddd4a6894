// SPDX-License-Identifier: Apache-2.0
// path list, add, remove and weight: the ways to a server that a session has, and how they are.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "ibnbd-client/ask_daemon.h"

namespace ibnbd::client {

struct PathCommandOptions {
  AskOptions ask;
  std::string session;  // Its name, its server, or a device of it.
  std::string path;
  std::uint32_t weight = kPathWeightDefault;
  bool no_wait = false;
  bool force = false;
};

// Adds the subcommands; the one that was given puts what it does into `run`.  `options` and `run`
// must outlive the parsing.
void AddPathCommands(CLI::App& app, PathCommandOptions& options,
                     std::function<absl::Status()>& run);

// A session as the daemon describes it, and its paths.
void PrintSession(const Json& session);
absl::Status RunSessionShow(const AskOptions& options, const std::string& session);

}  // namespace ibnbd::client
