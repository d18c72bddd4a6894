// SPDX-License-Identifier: Apache-2.0
// A deterministic world: one virtual clock, one source of randomness, one event queue and hosts,
// each with a fabric and reactors.  Tests and ibnbd-sim build one, put the real engine on its hosts
// and let virtual time pass.  One thread.  Equal seeds give equal worlds, to the nanosecond:
// nothing here depends on an address, a hash map's order or the machine's clock, and trace_hash()
// proves it.
//
// How time passes: the next event (or timer) is taken and the clock jumps to it; then the reactors
// take turns, in an order that the seed draws, until none has anything left to do.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/prng.h"
#include "base/socket_address.h"
#include "fabric/fabric.h"
#include "fabric/sim/fault_plan.h"
#include "reactor/reactor.h"

namespace ibnbd::sim {

class Network;
class SimFabric;
class World;

// Every host has an address on each of several networks that share nothing: rails.  A connection to
// an address of rail 2 goes out through the caller's own address of rail 2, and only faults of rail
// 2 concern it.
inline constexpr std::uint32_t kRailCount = 4;
inline constexpr std::uint32_t kAllRails = kRailCount;  // Where faults by hand name a rail.

// When a reactor takes turns.  kWithWork is faster, and for those whose sources say by HasWork()
// what they have to do, and which nobody uses from outside their turns.
enum class Turns : std::uint8_t { kAlways, kWithWork };

// A machine.  Crashing ends its incarnation: its fabric, reactors and everything built on them are
// ghosts, kept only so that their owner can dismantle them; a restart begins with a new fabric.
class Host {
 public:
  Host(World& world, std::uint32_t index, std::string name);
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::uint32_t index() const { return index_; }
  [[nodiscard]] bool crashed() const { return crashed_; }
  [[nodiscard]] std::uint32_t incarnation() const { return incarnation_; }
  [[nodiscard]] SocketAddress Address(std::uint16_t port, std::uint32_t rail = 0) const;
  // To listen on all addresses of the host that does it.
  [[nodiscard]] static SocketAddress AnyAddress(std::uint16_t port);
  [[nodiscard]] fabric::Fabric& fabric();  // Of this incarnation.
  // Lives until the world ends.
  Reactor& AddReactor(Turns turns = Turns::kAlways);

 private:
  friend class World;
  friend class Network;
  class HostClock final : public Clock {  // The world's, and how far it has leapt ahead of it.
   public:
    explicit HostClock(const Clock& world) : world_(world) {}
    [[nodiscard]] std::int64_t NowNs() const override { return world_.NowNs() + ahead_ns; }
    std::int64_t ahead_ns = 0;

   private:
    const Clock& world_;
  };
  struct Seat {  // A reactor and what the world knows about it.
    std::unique_ptr<Reactor> reactor;
    Turns turns = Turns::kAlways;
    std::int64_t stalled_until_ns = 0;
    bool frozen = false;  // Of a crashed incarnation: takes no turns.
  };
  World& world_;
  const std::uint32_t index_;
  const std::string name_;
  HostClock clock_;
  bool crashed_ = false;
  std::uint32_t incarnation_ = 0;
  std::vector<std::unique_ptr<SimFabric>> fabrics_;  // The last one is alive, unless crashed.
  std::deque<Seat> seats_;                           // A turn may add one.
};

// What the faults really did; tests ask it whether the fault they are about has happened.
struct FaultCounts {
  std::uint64_t connects_refused = 0, connects_rejected = 0, connects_silent = 0, accepts_lost = 0;
  std::uint64_t cuts = 0, one_sided_breaks = 0, partitions = 0, clogs = 0, stalls = 0,
                clock_jumps = 0;
  std::uint64_t landed = 0, landed_late = 0, landed_partly = 0, landed_after_break = 0;
  std::uint64_t dropped = 0, receives_missing = 0, slow_completions = 0;
};

class World {
 public:
  using Task = absl::AnyInvocable<void()>;

  World(std::uint64_t seed, const FaultPlan& plan);
  ~World();  // Requires: what was built on the hosts is gone (ghosts too).
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Host& AddHost(std::string name);
  [[nodiscard]] const Clock& clock() const { return clock_; }
  [[nodiscard]] std::int64_t now_ns() const { return clock_.NowNs(); }
  // For workloads; the network draws from a stream of its own.
  [[nodiscard]] Prng& prng() { return prng_; }
  [[nodiscard]] const FaultPlan& plan(std::uint32_t rail = 0) const { return plans_[rail]; }
  void set_plan(const FaultPlan& plan) { plans_.fill(plan); }
  void set_plan(const FaultPlan& plan, std::uint32_t rail) { plans_[rail] = plan; }

  // --- Time. ---
  void Schedule(std::int64_t delay_ns, Task task);  // In scheduling order at equal times.
  void RunFor(std::int64_t virtual_ns);
  // Runs until `done` (looked at whenever the reactors are idle), for at most `virtual_ns_max` from
  // now; what `done` said last.
  bool RunUntil(const std::function<bool()>& done, std::int64_t virtual_ns_max);

  // --- Faults by hand; the plan draws its own besides. ---
  void CutConnections(Host& a, Host& b, std::uint32_t rail = kAllRails);  // Between them, now.
  void CutAfterPosts(std::uint64_t posts);  // The connection of the posts-th send from now on.
  // Both directions.  A negative range: the plan's again.
  void SetLinkDelay(Host& a, Host& b, NsRange delay_ns, std::uint32_t rail = kAllRails);
  // Both directions; 0: unlimited, as at first.  What is sent faster queues up.
  void SetLinkBandwidth(Host& a, Host& b, std::int64_t bytes_per_second,
                        std::uint32_t rail = kAllRails);
  void ClogLink(Host& from, Host& to, std::int64_t virtual_ns, std::uint32_t rail = kAllRails);
  // Nothing passes until healed; see retry_timeout_ns.
  void PartitionOneWay(Host& from, Host& to, std::uint32_t rail = kAllRails);
  void Partition(Host& a, Host& b, std::uint32_t rail = kAllRails);
  void HealPartition(Host& a, Host& b, std::uint32_t rail = kAllRails);
  // One connection alone, the `index`th that is left of those between them in the order of
  // connects.
  void SwallowConnection(Host& a, Host& b, std::uint32_t rail, std::size_t index);
  void StallReactor(Reactor& reactor, std::int64_t virtual_ns);
  void StallHost(Host& host, std::int64_t virtual_ns);
  // The host's clock leaps ahead; all its timers of that time are due at once.
  void JumpClock(Host& host, std::int64_t ahead_ns);
  // Everything on the host stops at once; its peers see a reset or nothing, as the plan draws.  Its
  // ghosts may be destroyed in any state; or thaw them: cut off from the world, they take turns
  // again and see their connections broken, so that they can be closed in order.
  void CrashHost(Host& host);
  void ThawCrashed(Host& host);
  void RestartHost(Host& host);  // A new fabric, no reactors yet.
  // Faults end: plan, partitions, clogs and stalls.  What is in flight stays in flight.
  void HealEverything();
  [[nodiscard]] const FaultCounts& counts() const { return counts_; }

  // --- What happened. ---
  // Folds a record into the hash and, if verbose, prints it.  `what` and the values must not depend
  // on addresses.
  void Trace(const char* what, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0,
             std::uint64_t d = 0);
  [[nodiscard]] std::uint64_t trace_hash() const { return trace_hash_; }
  [[nodiscard]] std::uint64_t trace_count() const { return trace_count_; }
  using TraceSink = std::function<void(const std::string& line)>;
  void set_trace_sink(TraceSink sink) { trace_sink_ = std::move(sink); }
  // A broken rule that only an observer can see (F9, a livelock).  Tests demand that there is none.
  void AddViolation(absl::string_view text);
  [[nodiscard]] const std::vector<std::string>& violations() const { return violations_; }

 private:
  friend class Host;
  friend class Network;
  class VirtualClock final : public Clock {
   public:
    [[nodiscard]] std::int64_t NowNs() const override { return now_ns; }
    std::int64_t now_ns = kNsPerSecond;  // Not 0: a deadline of 0 is long past.
  };
  struct Event {
    std::int64_t time_ns = 0;
    std::uint64_t sequence = 0;
    Task task;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.time_ns != b.time_ns ? a.time_ns > b.time_ns : a.sequence > b.sequence;
    }
  };

  bool Step(std::int64_t deadline_ns);  // One event or timer; false if none is due by then.
  void RunTurns();
  [[nodiscard]] bool MayTurn(const Host::Seat& seat) const;
  [[nodiscard]] std::int64_t NextReactorNs() const;  // -1: none.

  std::array<FaultPlan, kRailCount> plans_;
  Prng prng_;
  Prng turn_prng_;
  VirtualClock clock_;
  std::vector<Event> events_;  // A heap.
  std::uint64_t next_sequence_ = 0;
  bool ending_ = false;
  FaultCounts counts_;
  std::uint64_t trace_hash_ = 0;
  std::uint64_t trace_count_ = 0;
  TraceSink trace_sink_;
  std::vector<std::string> violations_;
  bool livelock_reported_ = false;
  std::unique_ptr<Network> network_;
  std::vector<std::unique_ptr<Host>> hosts_;
};

}  // namespace ibnbd::sim
