// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_domain.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace ibnbd::tcp {
namespace {

class TcpRegion final : public fabric::Region {
 public:
  TcpRegion(RegionTable& table, std::uint32_t key, std::span<std::byte> memory,
            fabric::Access access)
      : table_(table), key_(key), memory_(memory), access_(access) {
    keys_[0] = {lkey(), rkey()};
  }
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

}  // namespace

absl::StatusOr<std::unique_ptr<fabric::Region>> TcpDomain::Register(std::span<std::byte> memory,
                                                                    fabric::Access access) {
  if (access == fabric::Access::kWindows) {
    return absl::UnimplementedError("tcp: there are no memory windows: use rdma://");
  }
  const std::uint32_t key = table_.Add(memory, access, id_);
  if (key == 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "tcp: register ", memory.size(), " bytes: all ", RegionTable::kSlots, " regions in use"));
  }
  return std::make_unique<TcpRegion>(table_, key, memory, access);
}

}  // namespace ibnbd::tcp
