// SPDX-License-Identifier: Apache-2.0
// A small file that is either the old or the new one, whatever happens meanwhile.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ibnbd::client {

// "" if there is none.  Refuses files larger than 16 MiB.
absl::StatusOr<std::string> ReadFile(const std::string& path);
// Mode 0600.
absl::Status ReplaceFile(const std::string& path, const std::string& text);

}  // namespace ibnbd::client
