// SPDX-License-Identifier: Apache-2.0
#include "fabric/open_fabric.h"

#include "absl/strings/str_cat.h"
#include "fabric/tcp/tcp_fabric.h"

namespace ibnbd {

absl::StatusOr<std::unique_ptr<fabric::Fabric>> OpenFabric(absl::string_view scheme) {
  if (scheme == "tcp") return tcp::CreateTcpFabric();
  if (scheme == "rdma") {
    return absl::UnimplementedError("rdma: this build has no verbs fabric");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("open fabric \"", scheme, "\": unknown scheme: say tcp or rdma"));
}

}  // namespace ibnbd
