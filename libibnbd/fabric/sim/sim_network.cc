// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/sim_network.h"

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/check.h"
#include "fabric/sim/sim_cm.h"
#include "fabric/sim/sim_connection.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_poller.h"

namespace ibnbd::sim {

bool Network::Blocked(const Way& way) {
  const Route& state = route(way);
  return state.blocked || world_.now_ns() < state.blocked_until_ns;
}

std::int64_t Network::DrawDelay(const Way& way, std::uint32_t byte_count) {
  Route& state = route(way);
  const FaultPlan& faults = plan(way.rail);
  const std::int64_t now_ns = world_.now_ns();
  std::int64_t delay_ns =
      state.delay_ns.low < 0 ? faults.link_delay_ns.Draw(prng_) : state.delay_ns.Draw(prng_);
  if (Draw(faults.slow_message_ppm)) delay_ns += faults.slow_message_ns.Draw(prng_);
  if (state.bytes_per_second > 0) {
    state.busy_until_ns =
        std::max(state.busy_until_ns, now_ns) + byte_count * kNsPerSecond / state.bytes_per_second;
    delay_ns += state.busy_until_ns - now_ns;
  }
  return delay_ns + std::max<std::int64_t>(state.clogged_until_ns - now_ns, 0);
}

void Network::Block(const Way& way) {
  world_.Trace("block", way.from.index(), way.to.index(), way.rail);
  route(way).blocked = true;
}

void Network::Unblock(const Way& way) {
  world_.Trace("unblock", way.from.index(), way.to.index(), way.rail);
  Route& state = route(way);
  state.blocked = false;
  state.blocked_until_ns = 0;
  KickLinks();
}

void Network::Clog(const Way& way, std::int64_t virtual_ns) {
  ++counts().clogs;
  world_.Trace("clog", way.from.index(), way.to.index(), static_cast<std::uint64_t>(virtual_ns),
               way.rail);
  Route& state = route(way);
  state.clogged_until_ns = std::max(state.clogged_until_ns, world_.now_ns() + virtual_ns);
}

void Network::HealAll() {
  for (auto& [name, state] : routes_) {
    state.blocked = false;
    state.blocked_until_ns = 0;
    state.clogged_until_ns = 0;
  }
  cut_countdown_ = 0;
  KickLinks();
}

void Network::KickLinks() {
  std::vector<std::shared_ptr<Link>> links;  // A kick may end a link.
  links.reserve(links_.size());
  for (const auto& [id, link] : links_) links.push_back(link);
  for (const std::shared_ptr<Link>& link : links) link->Kick();
}

std::vector<std::shared_ptr<Link>> Network::LinksBetween(const Host& a, const Host& b,
                                                         std::uint32_t rail) const {
  std::vector<std::shared_ptr<Link>> links;
  for (const auto& [id, link] : links_) {
    if (link->fabric(Side::kPassive) == nullptr) continue;
    if (rail != kAllRails && link->rail() != rail) continue;
    const Host* active = &link->fabric(Side::kActive)->host();
    const Host* passive = &link->fabric(Side::kPassive)->host();
    if ((active == &a && passive == &b) || (active == &b && passive == &a)) links.push_back(link);
  }
  return links;
}

void Network::CutConnections(const Host& a, const Host& b, std::uint32_t rail) {
  for (const std::shared_ptr<Link>& link : LinksBetween(a, b, rail)) link->Cut(-ECONNRESET);
}

void Network::CrashFabric(SimFabric& fabric) {
  // A crashed host says nothing; whether a reset comes back to its peers is a matter of luck, and
  // of how it died: either all of them see one or none does.
  const bool silent = prng_.Chance(500'000);
  fabric.Die();
  std::erase_if(open_ports_, [&fabric](const auto& entry) {
    return &entry.second->poller().fabric() == &fabric;
  });
  std::vector<std::shared_ptr<Link>> links;
  for (const auto& [id, link] : links_) {
    if (link->fabric(Side::kActive) == &fabric || link->fabric(Side::kPassive) == &fabric) {
      links.push_back(link);
    }
  }
  for (const std::shared_ptr<Link>& link : links) {
    link->Cut(-ECONNRESET, silent);
    for (const Side side : {Side::kActive, Side::kPassive}) {
      if (link->fabric(side) == &fabric) {
        link->SeeBreak(side, fabric::WcStatus::kPeerGone, -ENETDOWN);
      }
    }
  }
}

bool Network::ThrowPostDice(const Way& way) {
  const FaultPlan& faults = plan(way.rail);
  if (Draw(faults.clog_ppm)) Clog(way, faults.clog_ns.Draw(prng_));
  if (Draw(faults.partition_ppm)) {
    const std::int64_t length_ns = faults.partition_ns.Draw(prng_);
    ++counts().partitions;
    world_.Trace("partition", way.from.index(), way.to.index(),
                 static_cast<std::uint64_t>(length_ns), way.rail);
    for (Route* state : {&route(way), &route({way.to, way.from, way.rail})}) {
      state->blocked_until_ns = std::max(state->blocked_until_ns, world_.now_ns() + length_ns);
    }
    world_.Schedule(length_ns, [this] { KickLinks(); });
  }
  if (cut_countdown_ > 0 && --cut_countdown_ == 0) return true;
  return Draw(faults.cut_ppm);
}

std::uint32_t Network::NextKey() {
  // A bijection of a counter: unique, never small, and not in order.
  const std::uint32_t key = (++next_key_ * 0x9e3779b1u) ^ 0x5bd1e995u;
  return key != 0 ? key : NextKey();
}

std::shared_ptr<Link> Network::NewLink(SimFabric& active, std::uint32_t rail) {
  const std::uint64_t id = NextId();
  std::shared_ptr<Link> link = std::make_shared<Link>(*this, id, active, rail);
  links_[id] = link;
  return link;
}

void Network::AddListener(SimListener& listener) { listeners_[listener.id()] = &listener; }

void Network::RemoveListener(const SimListener& listener) {
  listeners_.erase(listener.id());
  std::erase_if(open_ports_, [&listener](const auto& entry) { return entry.second == &listener; });
}

bool Network::OpenPort(const SocketAddress& address, bool all_rails, SimListener& listener) {
  bool taken = false;
  for (std::uint32_t rail = 0; rail < (all_rails ? kRailCount : 1); ++rail) {
    const auto name = std::make_pair(address.sim_host + (rail << kRailShift), address.port);
    taken |= !open_ports_.emplace(name, &listener).second;
  }
  if (taken) RemoveListener(listener);
  return !taken;
}

SimListener* Network::FindListener(std::uint64_t id) const {
  const auto found = listeners_.find(id);
  return found == listeners_.end() ? nullptr : found->second;
}

SimListener* Network::FindListener(const SocketAddress& address) const {
  const auto found = open_ports_.find({address.sim_host, address.port});
  return found == open_ports_.end() ? nullptr : found->second;
}

Host* Network::FindHost(const SocketAddress& address) const {
  const std::uint32_t index = address.sim_host & ((1u << kRailShift) - 1);
  return index == 0 || index > world_.hosts_.size() ? nullptr : world_.hosts_[index - 1].get();
}

}  // namespace ibnbd::sim
