// SPDX-License-Identifier: Apache-2.0
// What the server tells clients about its machine (rnbd::ServerOptions::instance_id): an identity
// that lives as long as the page cache does.  Used by the program at its start.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ibnbd {

using InstanceId = std::array<std::uint8_t, 16>;

// The text of a UUID, as /proc/sys/kernel/random/boot_id has it.
std::optional<InstanceId> ParseUuid(absl::string_view text);

// The boot's.  If `path` does not say, a random one and a line in the log: then every restart of
// the process looks like one of the machine.
InstanceId ReadInstanceId(const std::string& path = "/proc/sys/kernel/random/boot_id");

}  // namespace ibnbd
