// SPDX-License-Identifier: Apache-2.0
// The daemon's unix socket: lines of text in both directions, each side bounded in time and size.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"

namespace ibnbd::client {

inline constexpr const char* kControlSocket = "/run/ibnbd/client.sock";

// The socket the service manager passed, or a new one at `path`, for root, and for `group` if it is
// not
// "".  AlreadyExists: a daemon listens there.  What a dead daemon left is replaced.
absl::StatusOr<UniqueFd> ListenControl(const std::string& path, const std::string& group);
// Says who may, and how to start the daemon.
absl::StatusOr<UniqueFd> ConnectControl(const std::string& path);

// Without the newline.  `what` begins the error.
absl::StatusOr<std::string> ReadLine(int fd, std::size_t size_max, absl::Time deadline,
                                     const char* what);
absl::Status WriteAll(int fd, const std::string& text, absl::Time deadline, const char* what);

}  // namespace ibnbd::client
