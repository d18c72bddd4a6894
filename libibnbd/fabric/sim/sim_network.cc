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

bool Network::Blocked(const Host& from, const Host& to) {
  const Route& way = route(from, to);
  return way.blocked || world_.now_ns() < way.blocked_until_ns;
}

std::int64_t Network::DrawDelay(const Host& from, const Host& to) {
  const Route& way = route(from, to);
  std::int64_t delay_ns =
      way.delay_ns.low < 0 ? plan().link_delay_ns.Draw(prng_) : way.delay_ns.Draw(prng_);
  if (Draw(plan().slow_message_ppm)) delay_ns += plan().slow_message_ns.Draw(prng_);
  return delay_ns + std::max<std::int64_t>(way.clogged_until_ns - world_.now_ns(), 0);
}

void Network::Block(const Host& a, const Host& b) {
  world_.Trace("block", a.index(), b.index());
  route(a, b).blocked = true;
}

void Network::Unblock(const Host& a, const Host& b) {
  world_.Trace("unblock", a.index(), b.index());
  Route& way = route(a, b);
  way.blocked = false;
  way.blocked_until_ns = 0;
  KickLinks();
}

void Network::Clog(const Host& from, const Host& to, std::int64_t virtual_ns) {
  ++counts().clogs;
  world_.Trace("clog", from.index(), to.index(), static_cast<std::uint64_t>(virtual_ns));
  Route& way = route(from, to);
  way.clogged_until_ns = std::max(way.clogged_until_ns, world_.now_ns() + virtual_ns);
}

void Network::HealAll() {
  for (auto& [hosts, way] : routes_) {
    way.blocked = false;
    way.blocked_until_ns = 0;
    way.clogged_until_ns = 0;
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

void Network::CutConnections(const Host& a, const Host& b) {
  std::vector<std::shared_ptr<Link>> links;
  for (const auto& [id, link] : links_) {
    if (link->fabric(Side::kPassive) == nullptr) continue;
    const Host* active = &link->fabric(Side::kActive)->host();
    const Host* passive = &link->fabric(Side::kPassive)->host();
    if ((active == &a && passive == &b) || (active == &b && passive == &a)) links.push_back(link);
  }
  for (const std::shared_ptr<Link>& link : links) link->Cut(-ECONNRESET);
}

void Network::CrashFabric(SimFabric& fabric) {
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
    link->Cut(-ECONNRESET, /*peer_of_crash=*/true);
    for (const Side side : {Side::kActive, Side::kPassive}) {
      if (link->fabric(side) == &fabric) {
        link->SeeBreak(side, fabric::WcStatus::kPeerGone, -ENETDOWN);
      }
    }
  }
}

bool Network::ThrowPostDice(const Host& from, const Host& to) {
  if (Draw(plan().clog_ppm)) Clog(from, to, plan().clog_ns.Draw(prng_));
  if (Draw(plan().partition_ppm)) {
    const std::int64_t length_ns = plan().partition_ns.Draw(prng_);
    ++counts().partitions;
    world_.Trace("partition", from.index(), to.index(), static_cast<std::uint64_t>(length_ns));
    for (Route* way : {&route(from, to), &route(to, from)}) {
      way->blocked_until_ns = std::max(way->blocked_until_ns, world_.now_ns() + length_ns);
    }
    world_.Schedule(length_ns, [this] { KickLinks(); });
  }
  if (cut_countdown_ > 0 && --cut_countdown_ == 0) return true;
  return Draw(plan().cut_ppm);
}

std::uint32_t Network::NextKey() {
  // A bijection of a counter: unique, never small, and not in order.
  const std::uint32_t key = (++next_key_ * 0x9e3779b1u) ^ 0x5bd1e995u;
  return key != 0 ? key : NextKey();
}

std::shared_ptr<Link> Network::NewLink(SimFabric& active, SimFabric* passive) {
  const std::uint64_t id = NextId();
  std::shared_ptr<Link> link = std::make_shared<Link>(*this, id, active, passive);
  links_[id] = link;
  return link;
}

void Network::AddListener(SimListener& listener) { listeners_[listener.id()] = &listener; }

void Network::RemoveListener(const SimListener& listener) {
  listeners_.erase(listener.id());
  const SocketAddress address = listener.local_address();
  const auto found = open_ports_.find({address.sim_host, address.port});
  if (found != open_ports_.end() && found->second == &listener) open_ports_.erase(found);
}

bool Network::OpenPort(const SocketAddress& address, SimListener& listener) {
  return open_ports_.emplace(std::make_pair(address.sim_host, address.port), &listener).second;
}

SimListener* Network::FindListener(std::uint64_t id) const {
  const auto found = listeners_.find(id);
  return found == listeners_.end() ? nullptr : found->second;
}

SimListener* Network::FindListener(const SocketAddress& address) const {
  const auto found = open_ports_.find({address.sim_host, address.port});
  return found == open_ports_.end() ? nullptr : found->second;
}

Host* Network::FindHost(std::uint32_t index) const {
  return index == 0 || index > world_.hosts_.size() ? nullptr : world_.hosts_[index - 1].get();
}

}  // namespace ibnbd::sim
