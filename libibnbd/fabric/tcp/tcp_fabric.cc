// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_fabric.h"

namespace ibnbd::tcp {

absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateTcpFabric() {
  return absl::UnimplementedError("tcp: not yet");
}

}  // namespace ibnbd::tcp
