// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_fabric.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "fabric/verbs/verbs_poller.h"

namespace ibnbd::verbs {

absl::StatusOr<std::unique_ptr<fabric::Region>> VerbsFabric::Register(std::span<std::byte> memory,
                                                                      fabric::Access access) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto region = std::make_unique<VerbsRegion>(memory, access);
  for (std::uint32_t device = 0; device < domains_.size(); ++device) {
    RETURN_IF_ERROR(region->AddDevice(domains_[device]->pd(), device));
  }
  region->set_fabric(this);
  regions_.push_back(region.get());
  return region;
}

void VerbsFabric::Forget(VerbsRegion& region) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::erase(regions_, &region);
}

VerbsDomain* VerbsFabric::DomainOn(const ibv_context* context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& domain : domains_) {
    if (context == nullptr || domain->context() == context) return domain.get();
  }
  return nullptr;
}

absl::Status VerbsFabric::AddPeer(const SocketAddress& peer, const SocketAddress* source) {
  ASSIGN_OR_RETURN(ibv_context * context, FindDeviceTowards(peer, source));
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& domain : domains_) {
    if (domain->context() == context) return absl::OkStatus();
  }
  const auto device = static_cast<std::uint32_t>(domains_.size());
  if (device == fabric::kDevicesMax) {
    return absl::ResourceExhaustedError(absl::StrCat("rdma: the way to ", peer.ToString(),
                                                     " leads through ", DeviceName(context),
                                                     ", which would be one device too many"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<VerbsDomain> domain, VerbsDomain::Create(context, device));
  absl::Status status;
  for (VerbsRegion* region : regions_) {
    if (status.ok()) status = region->AddDevice(domain->pd(), device);
  }
  if (!status.ok()) {
    for (VerbsRegion* region : regions_) region->DropDevice(device);
    return status;
  }
  domains_.push_back(std::move(domain));
  return absl::OkStatus();
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
  auto fabric = std::make_unique<VerbsFabric>();
  if (peer != nullptr) RETURN_IF_ERROR(fabric->AddPeer(*peer, nullptr));
  return fabric;
}

}  // namespace ibnbd::verbs
