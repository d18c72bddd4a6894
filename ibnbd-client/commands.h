// SPDX-License-Identifier: Apache-2.0
// The commands of ibnbd-client.  Each prints its answer on standard output, as text or as JSON, and
// returns what went wrong.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace ibnbd::client {

struct CommonOptions {
  bool json = false;
  std::uint32_t timeout_s = 30;
  std::string session_name;  // Empty: the library makes one up.
};

absl::Status RunList(const std::string& uri, const CommonOptions& options);
absl::Status RunShow(const std::string& uri, const CommonOptions& options);

struct PingOptions {
  std::uint32_t count = 4;
  double interval_s = 1;
};
absl::Status RunPing(const std::string& uri, const PingOptions& ping, const CommonOptions& options);

struct CopyCommandOptions {
  std::string source, target;
  bool sparse = true, destination_is_zero = false, verify = false;
  bool progress = true;
  std::uint32_t depth = 16;
  double fail_after_s = -1;
};
absl::Status RunCopy(const CopyCommandOptions& copy, const CommonOptions& options);

}  // namespace ibnbd::client
