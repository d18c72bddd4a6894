// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/sim_fabric.h"

#include <cstring>
#include <utility>

#include "base/check.h"
#include "fabric/sim/sim_network.h"
#include "fabric/sim/sim_poller.h"
#include "fabric/sim/sim_world.h"

namespace ibnbd::sim {
namespace {
// As the IB connection manager leaves to its users in a request; answers carry more.
constexpr std::size_t kPrivateDataSizeMax = 56;
}  // namespace

std::uint64_t ChecksumSges(std::span<const fabric::Sge> sges) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const fabric::Sge& sge : sges) {
    std::uint32_t i = 0;
    for (; i + 8 <= sge.length; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, sge.addr + i, sizeof word);
      hash = (hash ^ word) * 0x100000001b3u;
      hash ^= hash >> 29;
    }
    for (; i < sge.length; ++i) {
      hash = (hash ^ std::to_integer<std::uint64_t>(sge.addr[i])) * 0x100000001b3u;
    }
  }
  return hash;
}

std::vector<std::byte> GatherSges(std::span<const fabric::Sge> sges) {
  std::vector<std::byte> bytes;
  for (const fabric::Sge& sge : sges) bytes.insert(bytes.end(), sge.addr, sge.addr + sge.length);
  return bytes;
}

SimRegion::SimRegion(SimFabric& fabric, std::uint64_t domain, std::span<std::byte> memory,
                     fabric::Access access, std::uint32_t lkey, std::uint32_t rkey)
    : fabric_(fabric), domain_(domain), memory_(memory), access_(access), lkey_(lkey), rkey_(rkey) {
  keys_[0] = {lkey, rkey};
  fabric_.AddRegion(*this);
}
SimRegion::~SimRegion() { fabric_.RemoveRegion(*this); }

absl::StatusOr<std::unique_ptr<fabric::Window>> SimRegion::CreateWindow() {
  CHECK(access_ == fabric::Access::kWindows);
  return std::make_unique<SimWindow>(fabric_, *this);
}

SimWindow::SimWindow(SimFabric& fabric, const SimRegion& region)
    : fabric_(fabric), region_(region), next_rkey_(fabric.network().NextKey()) {}

SimWindow::~SimWindow() { TakeEffect(0); }

std::uint32_t SimWindow::Post(bool open) {
  return std::exchange(next_rkey_, fabric_.network().NextKey()) * (open ? 1 : 0);
}

void SimWindow::TakeEffect(std::uint32_t rkey) {
  fabric_.SetWindowKey(*this, std::exchange(rkey_, rkey), rkey);
}

SimFabric::SimFabric(Network& network, Host& host) : network_(network), host_(host) {}

SimFabric::~SimFabric() {
  CHECK(by_lkey_.empty());
  CHECK_EQ(poller_count_, 0);
}

absl::StatusOr<std::unique_ptr<fabric::Region>> SimDomain::Register(std::span<std::byte> memory,
                                                                    fabric::Access access) {
  if (memory.empty()) return absl::InvalidArgumentError("register memory: sim: 0 bytes");
  Network& network = fabric_.network();
  const std::uint32_t lkey = network.NextKey();
  const bool has_rkey = access != fabric::Access::kLocal && access != fabric::Access::kWindows;
  const std::uint32_t rkey = has_rkey ? network.NextKey() : 0;
  return std::make_unique<SimRegion>(fabric_, id_, memory, access, lkey, rkey);
}

absl::StatusOr<std::unique_ptr<fabric::Region>> SimFabric::Register(std::span<std::byte> memory,
                                                                    fabric::Access access) {
  return common_.Register(memory, access);
}

absl::StatusOr<std::unique_ptr<fabric::Poller>> SimFabric::CreatePoller(Reactor& reactor) {
  return std::make_unique<SimPoller>(*this, reactor);
}

std::size_t SimFabric::private_data_size_max() const { return kPrivateDataSizeMax; }

void SimFabric::AddRegion(SimRegion& region) {
  by_lkey_[region.lkey()] = &region;
  if (region.rkey() != 0) by_rkey_[region.rkey()] = &region;
}

void SimFabric::RemoveRegion(SimRegion& region) {
  by_lkey_.erase(region.lkey());
  by_rkey_.erase(region.rkey());
}

void SimFabric::SetWindowKey(SimWindow& window, std::uint32_t old_rkey, std::uint32_t rkey) {
  if (old_rkey != 0) windows_.erase(old_rkey);
  if (rkey != 0) windows_[rkey] = &window;
}

bool SimFabric::CheckLocal(const fabric::Sge& sge, std::uint64_t domain) const {
  if (sge.length == 0) return true;
  const auto found = by_lkey_.find(sge.lkey);
  if (found == by_lkey_.end() || found->second->domain() != domain) return false;
  const std::span<std::byte> memory = found->second->memory();
  if (sge.addr < memory.data()) return false;
  const std::size_t offset = static_cast<std::size_t>(sge.addr - memory.data());
  return offset <= memory.size() && sge.length <= memory.size() - offset;
}

std::byte* SimFabric::CheckRemote(const fabric::RemoteAddress& remote, std::uint32_t length,
                                  std::uint64_t domain, std::uint64_t& offset) const {
  if (dead_) return nullptr;
  std::span<std::byte> memory;
  if (const auto region = by_rkey_.find(remote.rkey); region != by_rkey_.end()) {
    if (region->second->domain() != domain) return nullptr;
    memory = region->second->memory();
  } else if (const auto window = windows_.find(remote.rkey); window != windows_.end()) {
    if (window->second->domain() != domain) return nullptr;
    memory = window->second->memory();
  } else {
    return nullptr;
  }
  const std::uint64_t base = reinterpret_cast<std::uintptr_t>(memory.data());
  if (remote.addr < base) return nullptr;
  offset = remote.addr - base;
  if (offset > memory.size() || length > memory.size() - offset) return nullptr;
  return memory.data() + offset;
}

bool SimFabric::CanInvalidate(std::uint32_t rkey, std::uint64_t domain) const {
  const auto found = by_rkey_.find(rkey);
  return found != by_rkey_.end() && found->second->domain() == domain &&
         found->second->access() == fabric::Access::kRemoteInvalidate;
}

void SimFabric::Invalidate(std::uint32_t rkey) { by_rkey_.erase(rkey); }

}  // namespace ibnbd::sim
