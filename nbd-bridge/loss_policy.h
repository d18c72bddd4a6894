// SPDX-License-Identifier: Apache-2.0
// What happens to IO when the server is lost, as people write it: "hold", or "fail-after=TIME".
// Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ibnbd::bridge {

// Milliseconds, -1 for "hold": as ibnbd_device_options::fail_after_ms.  TIME has a unit, ms, s or
// m, or counts seconds.
absl::StatusOr<std::int64_t> ParseLossPolicy(const std::string& text);
std::string LossPolicyText(std::int64_t fail_after_ms);

}  // namespace ibnbd::bridge
