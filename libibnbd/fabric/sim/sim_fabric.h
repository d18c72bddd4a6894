// SPDX-License-Identifier: Apache-2.0
// The fabric of one simulated host: registered memory with its keys.  Deliberately not kinder than
// hardware: every key, bound and right is checked, and memory is read when a message lands, not
// when it is posted.  Private to fabric/sim; tests take it from Host::fabric().
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"

namespace ibnbd::sim {

class Host;
class Network;
class SimFabric;

std::uint64_t ChecksumSges(std::span<const fabric::Sge> sges);
std::vector<std::byte> GatherSges(std::span<const fabric::Sge> sges);

class SimRegion final : public fabric::Region {
 public:
  SimRegion(SimFabric& fabric, std::uint64_t domain, std::span<std::byte> memory,
            fabric::Access access, std::uint32_t lkey, std::uint32_t rkey);
  ~SimRegion() override;
  [[nodiscard]] std::uint32_t lkey() const override { return lkey_; }
  [[nodiscard]] std::uint32_t rkey() const override { return rkey_; }
  [[nodiscard]] std::span<std::byte> memory() const override { return memory_; }
  absl::StatusOr<std::unique_ptr<fabric::Window>> CreateWindow() override;
  [[nodiscard]] fabric::Access access() const { return access_; }
  [[nodiscard]] std::uint64_t domain() const { return domain_; }

 private:
  SimFabric& fabric_;
  const std::uint64_t domain_;
  const std::span<std::byte> memory_;
  const fabric::Access access_;
  const std::uint32_t lkey_;
  const std::uint32_t rkey_;
};

class SimWindow final : public fabric::Window {  // F14.
 public:
  SimWindow(SimFabric& fabric, const SimRegion& region);
  ~SimWindow() override;
  [[nodiscard]] std::uint32_t next_rkey() const override { return next_rkey_; }
  [[nodiscard]] std::uint64_t domain() const { return region_.domain(); }
  [[nodiscard]] std::span<std::byte> memory() const { return region_.memory(); }
  // A request for it is posted: which key it will give, or 0.  It takes effect later.
  std::uint32_t Post(bool open);
  void TakeEffect(std::uint32_t rkey);

 private:
  SimFabric& fabric_;
  const SimRegion& region_;
  std::uint32_t next_rkey_;
  std::uint32_t rkey_ = 0;  // In effect.
};

class SimDomain final : public fabric::Domain {
 public:
  SimDomain(SimFabric& fabric, std::uint64_t id) : fabric_(fabric), id_(id) {}
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  // Of ConnectionOptions::domain, which may be null.
  static std::uint64_t IdOf(const fabric::Domain* domain) {
    return domain == nullptr ? 0 : static_cast<const SimDomain*>(domain)->id_;
  }

 private:
  SimFabric& fabric_;
  const std::uint64_t id_;  // 0: the common one.
};

class SimFabric final : public fabric::Fabric {
 public:
  SimFabric(Network& network, Host& host);
  ~SimFabric() override;

  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  absl::StatusOr<std::unique_ptr<fabric::Poller>> CreatePoller(Reactor& reactor) override;
  [[nodiscard]] std::size_t private_data_size_max() const override;

  [[nodiscard]] Network& network() { return network_; }
  [[nodiscard]] Host& host() { return host_; }
  [[nodiscard]] bool dead() const { return dead_; }
  void Die() { dead_ = true; }  // The host crashed: what is left of this fabric are ghosts.

  // True if the scatter/gather element lies within the region of that domain that its lkey names.
  [[nodiscard]] bool CheckLocal(const fabric::Sge& sge, std::uint64_t domain) const;
  // The place that the key and the address name, if the peer may write `length` bytes there.  Where
  // in the region: `offset`.
  [[nodiscard]] std::byte* CheckRemote(const fabric::RemoteAddress& remote, std::uint32_t length,
                                       std::uint64_t domain, std::uint64_t& offset) const;
  [[nodiscard]] bool CanInvalidate(std::uint32_t rkey, std::uint64_t domain) const;  // F11.
  void Invalidate(std::uint32_t rkey);

  void AddRegion(SimRegion& region);
  void RemoveRegion(SimRegion& region);
  void SetWindowKey(SimWindow& window, std::uint32_t old_rkey, std::uint32_t rkey);
  void AddPoller() { ++poller_count_; }
  void RemovePoller() { --poller_count_; }

 private:
  Network& network_;
  Host& host_;
  SimDomain common_{*this, 0};
  bool dead_ = false;
  int poller_count_ = 0;
  std::map<std::uint32_t, SimRegion*> by_lkey_;
  std::map<std::uint32_t, SimRegion*> by_rkey_;  // Without the killed ones.
  std::map<std::uint32_t, SimWindow*> windows_;  // The open ones, by rkey.
};

}  // namespace ibnbd::sim
