// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/sim_world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_network.h"

namespace ibnbd::sim {
namespace {
// More rounds of turns than any engine needs at one instant: somebody is busy without progress.
constexpr int kRoundsMax = 10'000;

// Calls `act` for the named rail, or for each.
template <typename Act>
void ForRails(std::uint32_t rail, const Act& act) {
  CHECK_LE(rail, kAllRails);
  for (std::uint32_t each = 0; each < kRailCount; ++each) {
    if (rail == kAllRails || rail == each) act(each);
  }
}

constexpr std::uint64_t Fold(std::uint64_t hash, std::uint64_t value) {
  return Prng(hash ^ (value + 0x9e3779b97f4a7c15u)).Next();
}
}  // namespace

Host::Host(World& world, std::uint32_t index, std::string name)
    : world_(world), index_(index), name_(std::move(name)), clock_(world.clock_) {
  fabrics_.push_back(std::make_unique<SimFabric>(*world_.network_, *this));
}
Host::~Host() = default;

SocketAddress Host::Address(std::uint16_t port, std::uint32_t rail) const {
  CHECK_LT(rail, kRailCount);
  SocketAddress address;
  address.sim_host = index_ | rail << kRailShift;
  address.port = port;
  return address;
}

SocketAddress Host::AnyAddress(std::uint16_t port) {
  SocketAddress address;
  address.port = port;
  return address;
}

fabric::Fabric& Host::fabric() {
  CHECK(!crashed_);
  return *fabrics_.back();
}

Reactor& Host::AddReactor(Turns turns) {
  CHECK(!crashed_);
  ReactorOptions options;
  options.with_ring = false;
  absl::StatusOr<std::unique_ptr<Reactor>> reactor = Reactor::Create(clock_, options);
  CHECK(reactor.ok());
  seats_.push_back({*std::move(reactor), turns, 0, false});
  return *seats_.back().reactor;
}

World::World(std::uint64_t seed, const FaultPlan& plan)
    : prng_(Prng(seed).Fork()),
      turn_prng_(Prng(seed + 1).Fork()),
      trace_hash_(seed),
      network_(std::make_unique<Network>(*this, Prng(seed + 2).Fork())) {
  set_plan(plan);
}

World::~World() {
  ending_ = true;
  events_.clear();  // They may own connection requests, which answer when they die.
  hosts_.clear();
}

Host& World::AddHost(std::string name) {
  const std::uint32_t index = static_cast<std::uint32_t>(hosts_.size()) + 1;
  CHECK_LT(index, 1u << kRailShift);
  hosts_.push_back(std::make_unique<Host>(*this, index, std::move(name)));
  return *hosts_.back();
}

void World::Schedule(std::int64_t delay_ns, Task task) {
  if (ending_) return;
  CHECK(delay_ns >= 0);
  events_.push_back({now_ns() + delay_ns, next_sequence_++, std::move(task)});
  std::push_heap(events_.begin(), events_.end(), Later());
}

bool World::MayTurn(const Host::Seat& seat) const {
  return !seat.frozen && seat.stalled_until_ns <= now_ns();
}

void World::RunTurns() {
  std::vector<Host::Seat*> seats;
  for (const std::unique_ptr<Host>& host : hosts_) {
    for (Host::Seat& seat : host->seats_) {
      if (MayTurn(seat)) seats.push_back(&seat);
    }
  }
  if (seats.empty()) return;
  for (int round = 0; round < kRoundsMax; ++round) {
    const std::size_t first = turn_prng_.Below(seats.size());
    bool worked = false;
    for (std::size_t i = 0; i < seats.size(); ++i) {
      Host::Seat& seat = *seats[(first + i) % seats.size()];
      if (seat.turns == Turns::kAlways || seat.reactor->HasWork()) {
        worked |= seat.reactor->RunTurn();
      }
    }
    if (!worked) return;
  }
  if (!livelock_reported_) AddViolation("livelock: turns do work for ever while no time passes");
  livelock_reported_ = true;
}

std::int64_t World::NextReactorNs() const {
  std::int64_t next_ns = -1;
  for (const std::unique_ptr<Host>& host : hosts_) {
    for (const Host::Seat& seat : host->seats_) {
      if (seat.frozen) continue;
      std::int64_t due_ns = seat.reactor->next_deadline_ns();
      if (due_ns >= 0) due_ns = std::max<std::int64_t>(due_ns - host->clock_.ahead_ns, 0);
      if (seat.stalled_until_ns > now_ns()) {
        due_ns =
            std::max(due_ns, seat.stalled_until_ns);  // It also has mail and completions to see.
      }
      if (due_ns >= 0 && (next_ns < 0 || due_ns < next_ns)) next_ns = due_ns;
    }
  }
  return next_ns;
}

bool World::Step(std::int64_t deadline_ns) {
  std::int64_t next_ns = NextReactorNs();
  const bool event_first = !events_.empty() && (next_ns < 0 || events_.front().time_ns <= next_ns);
  if (event_first) next_ns = events_.front().time_ns;
  if (next_ns < 0 || next_ns > deadline_ns) return false;
  // A timer that is due and yet unfired after a turn would stop time: push it on.
  clock_.now_ns = event_first ? std::max(next_ns, now_ns()) : std::max(next_ns, now_ns() + 1);
  if (event_first) {
    std::pop_heap(events_.begin(), events_.end(), Later());
    Task task = std::move(events_.back().task);
    events_.pop_back();
    task();
  }
  RunTurns();
  return true;
}

void World::RunFor(std::int64_t virtual_ns) {
  RunUntil([] { return false; }, virtual_ns);
}

bool World::RunUntil(const std::function<bool()>& done, std::int64_t virtual_ns_max) {
  const std::int64_t deadline_ns = now_ns() + virtual_ns_max;
  RunTurns();
  while (!done()) {
    if (Step(deadline_ns)) continue;
    clock_.now_ns = std::max(now_ns(), deadline_ns);
    RunTurns();
    return done();
  }
  return true;
}

void World::CutConnections(Host& a, Host& b, std::uint32_t rail) {
  network_->CutConnections(a, b, rail);
}
void World::SwallowConnection(Host& a, Host& b, std::uint32_t rail, std::size_t index) {
  network_->LinksBetween(a, b, rail).at(index)->Swallow();
}
void World::CutAfterPosts(std::uint64_t posts) { network_->CutAfterPosts(posts); }
void World::SetLinkDelay(Host& a, Host& b, NsRange delay_ns, std::uint32_t rail) {
  ForRails(rail, [&](std::uint32_t each) {
    network_->route({a, b, each}).delay_ns = delay_ns;
    network_->route({b, a, each}).delay_ns = delay_ns;
  });
}
void World::SetLinkBandwidth(Host& a, Host& b, std::int64_t bytes_per_second, std::uint32_t rail) {
  ForRails(rail, [&](std::uint32_t each) {
    network_->route({a, b, each}).bytes_per_second = bytes_per_second;
    network_->route({b, a, each}).bytes_per_second = bytes_per_second;
  });
}
void World::ClogLink(Host& from, Host& to, std::int64_t virtual_ns, std::uint32_t rail) {
  ForRails(rail, [&](std::uint32_t each) { network_->Clog({from, to, each}, virtual_ns); });
}
void World::PartitionOneWay(Host& from, Host& to, std::uint32_t rail) {
  ForRails(rail, [&](std::uint32_t each) { network_->Block({from, to, each}); });
}
void World::Partition(Host& a, Host& b, std::uint32_t rail) {
  PartitionOneWay(a, b, rail);
  PartitionOneWay(b, a, rail);
}
void World::HealPartition(Host& a, Host& b, std::uint32_t rail) {
  ForRails(rail, [&](std::uint32_t each) {
    network_->Unblock({a, b, each});
    network_->Unblock({b, a, each});
  });
}

void World::StallReactor(Reactor& reactor, std::int64_t virtual_ns) {
  for (const std::unique_ptr<Host>& host : hosts_) {
    for (std::size_t i = 0; i < host->seats_.size(); ++i) {
      Host::Seat& seat = host->seats_[i];
      if (seat.reactor.get() != &reactor) continue;
      ++counts_.stalls;
      Trace("stall", host->index(), i, static_cast<std::uint64_t>(virtual_ns));
      seat.stalled_until_ns = std::max(seat.stalled_until_ns, now_ns() + virtual_ns);
    }
  }
}

void World::StallHost(Host& host, std::int64_t virtual_ns) {
  for (const Host::Seat& seat : host.seats_) StallReactor(*seat.reactor, virtual_ns);
}

void World::JumpClock(Host& host, std::int64_t ahead_ns) {
  CHECK(ahead_ns >= 0);
  Trace("clock jump", host.index(), static_cast<std::uint64_t>(ahead_ns));
  ++counts_.clock_jumps;
  host.clock_.ahead_ns += ahead_ns;
}

void World::CrashHost(Host& host) {
  CHECK(!host.crashed_);
  Trace("crash", host.index());
  host.crashed_ = true;
  for (Host::Seat& seat : host.seats_) seat.frozen = true;
  network_->CrashFabric(*host.fabrics_.back());
}

void World::ThawCrashed(Host& host) {
  for (Host::Seat& seat : host.seats_) {
    seat.frozen = false;
    seat.stalled_until_ns = 0;
  }
}

void World::RestartHost(Host& host) {
  CHECK(host.crashed_);
  Trace("restart", host.index());
  host.crashed_ = false;
  ++host.incarnation_;
  host.fabrics_.push_back(std::make_unique<SimFabric>(*network_, host));
}

void World::HealEverything() {
  Trace("heal everything");
  for (FaultPlan& plan : plans_) plan = plan.WithoutFaults();
  for (const std::unique_ptr<Host>& host : hosts_) {
    for (Host::Seat& seat : host->seats_) seat.stalled_until_ns = 0;
  }
  network_->HealAll();
}

void World::Trace(const char* what, std::uint64_t a, std::uint64_t b, std::uint64_t c,
                  std::uint64_t d) {
  ++trace_count_;
  std::uint64_t hash = Fold(trace_hash_, static_cast<std::uint64_t>(now_ns()));
  for (const char* p = what; *p != '\0'; ++p) hash = Fold(hash, static_cast<unsigned char>(*p));
  for (const std::uint64_t value : {a, b, c, d}) hash = Fold(hash, value);
  trace_hash_ = hash;
  if (trace_sink_) {
    trace_sink_(absl::StrFormat("%.6fms %s %d %d %d %d",
                                static_cast<double>(now_ns() - kNsPerSecond) / 1e6, what, a, b, c,
                                d));
  }
}

void World::AddViolation(absl::string_view text) {
  violations_.push_back(
      absl::StrFormat("t=%.6fms %s", static_cast<double>(now_ns() - kNsPerSecond) / 1e6, text));
  if (trace_sink_) trace_sink_(absl::StrCat("VIOLATION ", violations_.back()));
}

}  // namespace ibnbd::sim
