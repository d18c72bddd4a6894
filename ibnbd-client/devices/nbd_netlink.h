// SPDX-License-Identifier: Apache-2.0
// The kernel's NBD client over generic netlink: hands it sockets that are past their handshake.
// Each call is one request with its answer, and ends after a few seconds at most.  Any thread but a
// loop's.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ibnbd::client {

struct NbdConnectOptions {
  int index = -1;  // -1: the first that is free, a new one if there is none.
  std::uint64_t size_bytes = 0;
  std::uint32_t block_size = 512;
  std::uint64_t server_flags = 0;  // NBD_FLAG_..., transmission flags.
  // How long IOs wait for new sockets when all are dead; 0: they fail at once.
  std::uint64_t dead_connection_s = 0;
  const char* identifier = "";  // Of the volume; NbdReconfigure() must bring the same.
};

// The kernel takes a reference to each socket.  Returns N of /dev/nbdN.
absl::StatusOr<int> NbdConnect(const NbdConnectOptions& options, std::span<const int> sockets);
// Takes the device away; IOs that are under way fail.  OK, too, if it was not connected.
absl::Status NbdDisconnect(int index);
// New sockets for dead ones.  OK, too, if none was dead, and they were not taken.
// FailedPrecondition: there is no such device, or it has another identifier, or is detached.
absl::Status NbdReconfigure(int index, const char* identifier, std::span<const int> sockets);

}  // namespace ibnbd::client
