// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_fabric.h"

#include <cerrno>

#include "base/status_macros.h"
#include "fabric/verbs/verbs_poller.h"

namespace ibnbd::verbs {

absl::StatusOr<std::unique_ptr<fabric::Region>> VerbsFabric::Register(std::span<std::byte> memory,
                                                                      fabric::Access access) {
  if (common_ == nullptr) {
    return absl::FailedPreconditionError("rdma: register memory: this fabric only listens");
  }
  return common_->Register(memory, access);
}

absl::StatusOr<std::unique_ptr<fabric::Poller>> VerbsFabric::CreatePoller(Reactor& reactor) {
  return VerbsPoller::Create(*this, reactor);
}

absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateVerbsFabric(const SocketAddress* peer) {
  int count = 0;
  ibv_device** devices = ibv_get_device_list(&count);
  if (devices == nullptr) {
    return ErrnoStatus(errno, "rdma: the kernel's verbs cannot be used (modprobe ib_uverbs)");
  }
  ibv_free_device_list(devices);
  if (count == 0) {
    return absl::FailedPreconditionError(
        "rdma: this machine has no RDMA device; for Soft-RoCE: ibnbd-client softroce add");
  }
  if (peer == nullptr) return std::make_unique<VerbsFabric>(nullptr);
  ASSIGN_OR_RETURN(ibv_context * context, FindDeviceTowards(*peer));
  ASSIGN_OR_RETURN(std::unique_ptr<VerbsDomain> common, VerbsDomain::Create(context));
  return std::make_unique<VerbsFabric>(std::move(common));
}

}  // namespace ibnbd::verbs
