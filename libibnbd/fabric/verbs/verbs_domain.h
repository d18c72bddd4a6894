// SPDX-License-Identifier: Apache-2.0
// Devices, domains and regions of the verbs fabric.  Any thread.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "fabric/fabric.h"
#include "fabric/verbs/verbs_handles.h"

namespace ibnbd::verbs {

class VerbsDomain final : public fabric::Domain {
 public:
  // `context` is librdmacm's: open for as long as the process lives.
  static absl::StatusOr<std::unique_ptr<VerbsDomain>> Create(ibv_context* context);
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  [[nodiscard]] ibv_pd* pd() const { return pd_.get(); }
  [[nodiscard]] ibv_context* context() const { return pd_->context; }

 private:
  explicit VerbsDomain(PdHandle pd) : pd_(std::move(pd)) {}
  const PdHandle pd_;
};

// The RDMA device through which `peer` is reached.  Asks routing tables only: nothing is sent and
// nothing waited for.
absl::StatusOr<ibv_context*> FindDeviceTowards(const SocketAddress& peer);
// "rxe0"; for texts.
std::string DeviceName(const ibv_context* context);

}  // namespace ibnbd::verbs
