// SPDX-License-Identifier: Apache-2.0
// The fabric for machines without RDMA: verbs semantics over TCP sockets, driven by io_uring.
// Frames are described in proto/tcp_framing.md.  Linked by fabric/open_fabric.cc and by tests.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "fabric/fabric.h"
#include "fabric/listening_sockets.h"

namespace ibnbd::tcp {

absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateTcpFabric(
    fabric::ListeningSockets* listening = nullptr);

}  // namespace ibnbd::tcp
