// SPDX-License-Identifier: Apache-2.0
// One daemon per runtime directory: a second one would take the devices of the first one for left
// behind, and end its sessions, which have the same client id.  The control socket alone does not
// tell, as each may have its own.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace ibnbd::client {

// Held for as long as the result is open, or until this process ends.  AlreadyExists: a process
// that lives has it, and is named.  One that was killed and whose threads the kernel has not let go
// of yet, because they wait for a device that we shall serve, is no obstacle.
absl::StatusOr<UniqueFd> LockRuntime(const std::string& path);

}  // namespace ibnbd::client
