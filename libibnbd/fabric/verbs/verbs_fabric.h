// SPDX-License-Identifier: Apache-2.0
// The fabric of RDMA hardware, and of Soft-RoCE: libibverbs and librdmacm.
//
// A fabric that connects has a common domain on each device through which it reaches its peers, and
// what is registered is so with each of them; one that listens has none, and makes a domain for
// each request, on the device that it came in on.
// Port-down and the like are logged: heartbeats and retries notice what they break.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "fabric/fabric.h"
#include "fabric/verbs/verbs_domain.h"

namespace ibnbd::verbs {

class VerbsFabric final : public fabric::Fabric {
 public:
  // What a connection request can carry besides the CM's own header for IP addresses; wire.md 1.2.
  static constexpr std::size_t kPrivateDataSizeMax = 56;

  VerbsFabric() = default;
  absl::Status AddPeer(const SocketAddress& peer, const SocketAddress* source) override;
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  absl::StatusOr<std::unique_ptr<fabric::Poller>> CreatePoller(Reactor& reactor) override;
  [[nodiscard]] std::size_t private_data_size_max() const override { return kPrivateDataSizeMax; }
  // Of the device that was added first.  Null: there is none.
  [[nodiscard]] VerbsDomain* common_domain() { return DomainOn(nullptr); }
  [[nodiscard]] VerbsDomain* DomainOn(const ibv_context* context);  // Null: not one of ours.
  void Forget(VerbsRegion& region);

 private:
  // Control plane only: registrations, and connections that begin.
  std::mutex mutex_;
  std::vector<std::unique_ptr<VerbsDomain>> domains_;  // By number of the device.
  std::vector<VerbsRegion*> regions_;                  // Of the common domains.
};

// `peer`: whom it will connect to; null if it listens only.  Errors say what is missing, and how to
// get it.
absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateVerbsFabric(const SocketAddress* peer);

}  // namespace ibnbd::verbs
