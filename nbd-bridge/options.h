// SPDX-License-Identifier: Apache-2.0
// The command line of nbd-bridge.  CLI11 throws; nothing else here does.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nbd-bridge/bridge.h"

namespace ibnbd::bridge {

struct ProgramOptions {
  BridgeOptions bridge;
  std::string handover_path;  // Empty: none.
  int verbosity = 0;          // 0: warnings, 1: information, 2: debugging.
  // Not empty: print this and leave, successfully (--help, --version).
  std::string message;
};

absl::StatusOr<ProgramOptions> ParseProgramOptions(int argc, char** argv);

// "tcp://host/vol" or "name=tcp://host/vol".
absl::StatusOr<VolumeSpec> ParseVolume(const std::string& text);
// "4K", "32M", "1G", "512".
absl::StatusOr<std::uint64_t> ParseSize(const std::string& text);

}  // namespace ibnbd::bridge
