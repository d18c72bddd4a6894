// SPDX-License-Identifier: Apache-2.0
// What lies between the hosts of a World: routes with delays and faults, the links of all
// connections, who listens where.  Private to fabric/sim; tests use World.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "fabric/sim/sim_link.h"
#include "fabric/sim/sim_world.h"

namespace ibnbd::sim {

class SimListener;

constexpr std::uint32_t kRailShift = 16;  // In SocketAddress::sim_host.

// One direction between two hosts on one rail: its name, and what is known about it.
struct Way {
  const Host& from;
  const Host& to;
  std::uint32_t rail;
};
struct Route {
  NsRange delay_ns{-1, -1};           // Negative: the plan's.
  std::int64_t bytes_per_second = 0;  // 0: unlimited.
  std::int64_t busy_until_ns = 0;     // With bytes that were sent before.
  bool blocked = false;
  std::int64_t blocked_until_ns = 0;
  std::int64_t clogged_until_ns = 0;
};

class Network {
 public:
  Network(World& world, Prng prng) : world_(world), prng_(prng) {}

  [[nodiscard]] World& world() { return world_; }
  [[nodiscard]] Prng& prng() { return prng_; }
  [[nodiscard]] const FaultPlan& plan(std::uint32_t rail) const { return world_.plans_[rail]; }
  [[nodiscard]] FaultCounts& counts() { return world_.counts_; }
  [[nodiscard]] bool Draw(std::uint32_t ppm) { return ppm != 0 && prng_.Chance(ppm); }
  [[nodiscard]] bool ending() const { return world_.ending_; }

  [[nodiscard]] Route& route(const Way& way) {
    return routes_[{way.from.index(), way.to.index(), way.rail}];
  }
  [[nodiscard]] bool Blocked(const Way& way);
  // Until `byte_count` bytes that are sent now have arrived; 0 for an acknowledgement.
  [[nodiscard]] std::int64_t DrawDelay(const Way& way, std::uint32_t byte_count);
  void Block(const Way& way);
  void Unblock(const Way& way);
  void Clog(const Way& way, std::int64_t virtual_ns);
  void HealAll();
  [[nodiscard]] std::vector<std::shared_ptr<Link>> LinksBetween(const Host& a, const Host& b,
                                                                std::uint32_t rail) const;
  void CutConnections(const Host& a, const Host& b, std::uint32_t rail);
  void CutAfterPosts(std::uint64_t posts) { cut_countdown_ = posts; }
  void CrashFabric(SimFabric& fabric);

  // Called for every send that goes out: the plan's dice that are thrown once per post.  True: the
  // connection breaks at this post.
  bool ThrowPostDice(const Way& way);

  std::uint32_t NextKey();  // World-wide unique: a foreign or stale key never fits by accident.
  std::shared_ptr<Link> NewLink(SimFabric& active, std::uint32_t rail);
  void Forget(const Link& link) { links_.erase(link.id()); }
  [[nodiscard]] std::uint64_t NextId() { return ++next_id_; }

  void AddListener(SimListener& listener);
  void RemoveListener(const SimListener& listener);  // And closes its port.
  // On one address of the host or on all; false if it is taken.
  bool OpenPort(const SocketAddress& address, bool all_rails, SimListener& listener);
  [[nodiscard]] SimListener* FindListener(std::uint64_t id) const;
  [[nodiscard]] SimListener* FindListener(const SocketAddress& address) const;  // At an open port.
  [[nodiscard]] std::uint16_t NextPort() { return next_port_++; }
  [[nodiscard]] Host* FindHost(const SocketAddress& address) const;

 private:
  void KickLinks();

  World& world_;
  Prng prng_;
  std::map<std::array<std::uint32_t, 3>, Route> routes_;  // By from, to, rail.
  std::map<std::uint64_t, std::shared_ptr<Link>> links_;
  std::map<std::uint64_t, SimListener*> listeners_;
  std::map<std::pair<std::uint32_t, std::uint16_t>, SimListener*> open_ports_;
  std::uint64_t next_id_ = 0;
  std::uint32_t next_key_ = 0;
  std::uint16_t next_port_ = 40'000;
  std::uint64_t cut_countdown_ = 0;
};

}  // namespace ibnbd::sim
