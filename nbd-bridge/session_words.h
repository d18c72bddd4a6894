// SPDX-License-Identifier: Apache-2.0
// What people say about a session: times, which path an IO takes, how long a server may be silent.
// Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ibnbd::bridge {

inline constexpr const char* kPathPolicyNames =
    "adaptive, round-robin, min-inflight or min-latency";

// Milliseconds.  With a unit, ms, s or m; without, seconds.
absl::StatusOr<std::int64_t> ParseTimeMs(absl::string_view text);
std::string TimeText(std::int64_t ms);  // "500ms", "30s"

absl::StatusOr<std::uint32_t> ParsePathPolicy(const std::string& name);  // enum ibnbd_policy
const char* PathPolicyName(std::uint32_t policy);

// Milliseconds, as ibnbd_session_options::dead_after_ms: 0 for "default".
absl::StatusOr<std::uint32_t> ParseDeadAfter(const std::string& text);

}  // namespace ibnbd::bridge
