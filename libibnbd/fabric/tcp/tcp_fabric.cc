// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_fabric.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "fabric/tcp/region_table.h"
#include "fabric/tcp/tcp_poller.h"
#include "proto/tcp_frame.h"
#include "reactor/reactor.h"

namespace ibnbd::tcp {
namespace {

class TcpRegion final : public fabric::Region {
 public:
  TcpRegion(RegionTable& table, std::uint32_t key, std::span<std::byte> memory,
            fabric::Access access)
      : table_(table), key_(key), memory_(memory), access_(access) {}
  ~TcpRegion() override { RemoveOnce(); }
  bool Revoke() override {
    RemoveOnce();
    return !table_.IsLanding(key_);
  }
  std::uint32_t lkey() const override { return key_; }
  std::uint32_t rkey() const override { return access_ == fabric::Access::kLocal ? 0 : key_; }
  std::span<std::byte> memory() const override { return memory_; }

 private:
  void RemoveOnce() {
    if (!std::exchange(revoked_, true)) table_.Remove(key_);
  }
  RegionTable& table_;
  const std::uint32_t key_;
  const std::span<std::byte> memory_;
  const fabric::Access access_;
  bool revoked_ = false;
};

class TcpFabric final : public fabric::Fabric {
 public:
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override {
    const std::uint32_t key = regions_.Add(memory, access);
    if (key == 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "tcp: register ", memory.size(), " bytes: all ", RegionTable::kSlots, " regions in use"));
    }
    return std::make_unique<TcpRegion>(regions_, key, memory, access);
  }
  absl::StatusOr<std::unique_ptr<fabric::Poller>> CreatePoller(Reactor& reactor) override {
    if (reactor.ring() == nullptr) {
      return absl::FailedPreconditionError("tcp: create poller: the reactor has no IO ring");
    }
    return std::make_unique<TcpPoller>(regions_, reactor);
  }
  std::size_t private_data_size_max() const override { return proto::tcp::kPrivateDataSizeMax; }

 private:
  RegionTable regions_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<fabric::Fabric>> CreateTcpFabric() {
  return std::make_unique<TcpFabric>();
}

}  // namespace ibnbd::tcp
