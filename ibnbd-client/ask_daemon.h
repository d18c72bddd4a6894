// SPDX-License-Identifier: Apache-2.0
// One request to the daemon and its answer, and how answers are printed.  Nothing in an answer is
// taken for granted, whoever wrote it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "ibnbd-client/daemon/protocol.h"

namespace ibnbd::client {

struct AskOptions {
  std::string socket;  // The daemon's.
  std::uint32_t timeout_s = 30;
  bool json = false;
};
void AddAskOptions(CLI::App& command, AskOptions& options);

absl::StatusOr<Json> Ask(const AskOptions& options, ControlRequest request);
// The member `key` of the answer, an object, or an array.
absl::StatusOr<Json> ObjectOf(const absl::StatusOr<Json>& answer, const char* key);
absl::StatusOr<Json> ArrayOf(const absl::StatusOr<Json>& answer, const char* key);

void PrintJson(const Json& json);
// For people: "" if it is missing.
std::string Member(const Json& object, const char* key);
std::string SizeMember(const Json& object, const char* key);      // "1.5 GiB", or "-".
std::string DurationMember(const Json& object, const char* key);  // Of nanoseconds; 0: "-".

}  // namespace ibnbd::client
