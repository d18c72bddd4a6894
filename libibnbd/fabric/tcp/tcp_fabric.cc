// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_fabric.h"

#include "fabric/tcp/tcp_domain.h"
#include "fabric/tcp/tcp_poller.h"
#include "proto/tcp_frame.h"
#include "reactor/reactor.h"

namespace ibnbd::tcp {
namespace {

class TcpFabric final : public fabric::Fabric {
 public:
  explicit TcpFabric(fabric::ListeningSockets* listening) : listening_(listening) {}
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override {
    return common_.Register(memory, access);
  }
  absl::StatusOr<std::unique_ptr<fabric::Poller>> CreatePoller(Reactor& reactor) override {
    if (reactor.ring() == nullptr) {
      return absl::FailedPreconditionError("tcp: create poller: the reactor has no IO ring");
    }
    return std::make_unique<TcpPoller>(regions_, reactor, listening_);
  }
  std::size_t private_data_size_max() const override { return proto::tcp::kPrivateDataSizeMax; }

 private:
  fabric::ListeningSockets* const listening_;
  RegionTable regions_;
  TcpDomain common_{regions_, RegionTable::kCommonDomain};
};

}  // namespace

absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateTcpFabric(
    fabric::ListeningSockets* listening) {
  return std::make_unique<TcpFabric>(listening);
}

}  // namespace ibnbd::tcp
