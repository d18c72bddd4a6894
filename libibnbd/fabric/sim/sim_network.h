// SPDX-License-Identifier: Apache-2.0
// What lies between the hosts of a World: routes with delays and faults, the links of all
// connections, who listens where.  Private to fabric/sim; tests use World.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "fabric/sim/sim_link.h"
#include "fabric/sim/sim_world.h"

namespace ibnbd::sim {

class SimListener;

// One direction between two hosts.
struct Route {
  NsRange delay_ns{-1, -1};  // Negative: the plan's.
  bool blocked = false;
  std::int64_t blocked_until_ns = 0;
  std::int64_t clogged_until_ns = 0;
};

class Network {
 public:
  Network(World& world, Prng prng) : world_(world), prng_(prng) {}

  [[nodiscard]] World& world() { return world_; }
  [[nodiscard]] Prng& prng() { return prng_; }
  [[nodiscard]] const FaultPlan& plan() const { return world_.plan_; }
  [[nodiscard]] FaultCounts& counts() { return world_.counts_; }
  [[nodiscard]] bool Draw(std::uint32_t ppm) { return ppm != 0 && prng_.Chance(ppm); }
  [[nodiscard]] bool ending() const { return world_.ending_; }

  [[nodiscard]] Route& route(const Host& from, const Host& to) {
    return routes_[{from.index(), to.index()}];
  }
  [[nodiscard]] bool Blocked(const Host& from, const Host& to);
  [[nodiscard]] std::int64_t DrawDelay(const Host& from, const Host& to);
  void Block(const Host& a, const Host& b);
  void Unblock(const Host& a, const Host& b);
  void Clog(const Host& from, const Host& to, std::int64_t virtual_ns);
  void HealAll();
  void CutConnections(const Host& a, const Host& b);
  void CutAfterPosts(std::uint64_t posts) { cut_countdown_ = posts; }
  void CrashFabric(SimFabric& fabric);

  // Called for every send that goes out: the plan's dice that are thrown once per post.  True: the
  // connection breaks at this post.
  bool ThrowPostDice(const Host& from, const Host& to);

  std::uint32_t NextKey();  // World-wide unique: a foreign or stale key never fits by accident.
  std::shared_ptr<Link> NewLink(SimFabric& active, SimFabric* passive);
  void Forget(const Link& link) { links_.erase(link.id()); }
  [[nodiscard]] std::uint64_t NextId() { return ++next_id_; }

  void AddListener(SimListener& listener);
  void RemoveListener(const SimListener& listener);                    // And closes its port.
  bool OpenPort(const SocketAddress& address, SimListener& listener);  // False if it is taken.
  [[nodiscard]] SimListener* FindListener(std::uint64_t id) const;
  [[nodiscard]] SimListener* FindListener(const SocketAddress& address) const;  // At an open port.
  [[nodiscard]] std::uint16_t NextPort() { return next_port_++; }
  [[nodiscard]] Host* FindHost(std::uint32_t index) const;

 private:
  void KickLinks();

  World& world_;
  Prng prng_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Route> routes_;
  std::map<std::uint64_t, std::shared_ptr<Link>> links_;
  std::map<std::uint64_t, SimListener*> listeners_;
  std::map<std::pair<std::uint32_t, std::uint16_t>, SimListener*> open_ports_;
  std::uint64_t next_id_ = 0;
  std::uint32_t next_key_ = 0;
  std::uint16_t next_port_ = 40'000;
  std::uint64_t cut_countdown_ = 0;
};

}  // namespace ibnbd::sim
