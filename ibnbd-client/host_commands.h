// SPDX-License-Identifier: Apache-2.0
// The commands of ibnbd-client that look after the machine itself: softroce and doctor.  main.cc
// adds them to its command line and runs the one that was given.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>

#include "absl/status/status.h"

namespace ibnbd::client {

class HostCommands {
 public:
  explicit HostCommands(CLI::App& app);
  ~HostCommands();
  HostCommands(const HostCommands&) = delete;
  HostCommands& operator=(const HostCommands&) = delete;

  // OK, too, when another command was given.
  absl::Status Run();

 private:
  struct Options;
  const std::unique_ptr<Options> options_;
};

}  // namespace ibnbd::client
