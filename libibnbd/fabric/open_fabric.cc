// SPDX-License-Identifier: Apache-2.0
#include "fabric/open_fabric.h"

#include "absl/strings/str_cat.h"
#include "fabric/tcp/tcp_fabric.h"
#if IBNBD_HAVE_VERBS
#include "fabric/verbs/verbs_fabric.h"
#endif

namespace ibnbd {

absl::StatusOr<std::unique_ptr<fabric::Fabric>> OpenFabric(absl::string_view scheme,
                                                           fabric::ListeningSockets* listening) {
  if (scheme == "tcp") return tcp::CreateTcpFabric(listening);
  if (scheme == "rdma") {
#if IBNBD_HAVE_VERBS
    return verbs::CreateVerbsFabric(nullptr);
#else
    return absl::UnimplementedError("rdma: this build has no verbs fabric");
#endif
  }
  return absl::InvalidArgumentError(
      absl::StrCat("open fabric \"", scheme, "\": unknown scheme: say tcp or rdma"));
}

}  // namespace ibnbd
