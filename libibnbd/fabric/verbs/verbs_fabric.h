// SPDX-License-Identifier: Apache-2.0
// The fabric of RDMA hardware, and of Soft-RoCE: libibverbs and librdmacm.
//
// A fabric that connects has a common domain, on the device through which its peer is reached; one
// that listens has none, and makes a domain for each request, on the device that it came in on.
// Port-down and the like are logged: heartbeats and retries notice what they break.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "fabric/fabric.h"
#include "fabric/verbs/verbs_domain.h"

namespace ibnbd::verbs {

class VerbsFabric final : public fabric::Fabric {
 public:
  // What a connection request can carry besides the CM's own header for IP addresses; wire.md 1.2.
  static constexpr std::size_t kPrivateDataSizeMax = 56;

  explicit VerbsFabric(std::unique_ptr<VerbsDomain> common) : common_(std::move(common)) {}
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  absl::StatusOr<std::unique_ptr<fabric::Poller>> CreatePoller(Reactor& reactor) override;
  [[nodiscard]] std::size_t private_data_size_max() const override { return kPrivateDataSizeMax; }
  [[nodiscard]] VerbsDomain* common_domain() const {
    return common_.get();
  }  // Null: there is none.

 private:
  const std::unique_ptr<VerbsDomain> common_;
};

// `peer`: whom it will connect to; null if it listens only.  Errors say what is missing, and how to
// get it.
absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateVerbsFabric(const SocketAddress* peer);

}  // namespace ibnbd::verbs
