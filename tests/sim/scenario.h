// SPDX-License-Identifier: Apache-2.0
// One simulated run: a storm of faults under load (safety), then healing and the demand that
// everything finishes (liveness), then closing, which must leave nothing.  Which features and
// faults a run has, and how often, is its options; swarm.h draws them from a seed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fabric/sim/fault_plan.h"
#include "tests/sim/client_actor.h"
#include "tests/sim/oracle.h"
#include "tests/sim/server_actor.h"

namespace ibnbd::sim {

struct ScenarioOptions {
  std::uint64_t seed = 1;
  std::vector<FaultPlan> plans{FaultPlan()};  // By rail; more than one path goes over several.

  // --- The cast.  One server; names and addresses are filled in. ---
  std::vector<std::uint64_t> sector_counts{96};  // Of each volume.
  std::vector<ClientActorOptions> clients;
  std::uint32_t hostile_clients = 0;
  std::int64_t hostile_pause_ns_max = 5 * kNsPerMs;
  std::uint32_t server_reactors = 2;
  std::uint32_t queue_depth = 16;
  std::uint32_t io_size_max = 8192;
  bool keys_per_io = false;
  std::int64_t handshake_ns = 30 * kNsPerSecond;  // The server's patience, with fences too.
  std::int64_t heartbeat_ns = kNsPerSecond;       // Both sides.
  std::int64_t disk_ns_max = 200 * kNsPerUs;
  std::uint32_t disk_slow_ppm = 0;  // Of IOs: they take up to...
  std::int64_t disk_slow_ns_max = 0;

  // --- The storm: how often each happens, on average. ---
  std::int64_t storm_ns = 20 * kNsPerSecond;
  std::int64_t heal_ns = 120 * kNsPerSecond;  // O8's deadline.
  double server_crashes = 0;
  std::uint32_t power_loss_ppm = 500'000;  // Of the server's crashes; the others are kill -9.
  double server_stops = 0;                 // SIGTERM, and a new process.
  double client_crashes = 0;
  double impostors = 0;    // A volume is replaced for a while.
  double clock_jumps = 0;  // Of any host.
  double freezes = 0;      // A host stands still for long, as a stopped process does.
  double disk_hangs = 0;
  double disk_errors = 0;  // A range of a disk fails for a while.
  double reopens = 0;      // A client closes a volume and opens it again.
  double policy_changes = 0;
  double path_changes = 0;  // Of a client's paths: more, fewer, other weights or policies.
  double rail_cuts = 0;     // All connections of one rail between the server and a client break.
  double rail_outages = 0;  // Or nothing passes there for a while.
  double brown_outs = 0;    // Or everything is slow there.
  double absences = 0;      // Who has a volume open is cut off on all rails, for a second or two.

  std::function<void(const std::string&)> trace;  // Verbose lines.

  [[nodiscard]] std::string ToString() const;
};

// What happened, over one run or many.
struct ScenarioCounts {
  WorkloadCounts io;
  FaultCounts faults;
  std::uint64_t server_kills = 0, power_losses = 0, server_stops = 0, client_crashes = 0;
  std::uint64_t impostors = 0, freezes = 0, disk_hangs = 0, reopens = 0, hostile_moves = 0;
  std::uint64_t path_changes = 0, rail_faults = 0;
  std::uint64_t reconnects = 0, failovers = 0;
  std::int64_t virtual_ns = 0;
  void Add(const ScenarioCounts& other);
};

struct ScenarioResult {
  std::vector<Finding> findings;
  std::uint64_t trace_hash = 0;
  ScenarioCounts counts;
};

ScenarioResult RunScenario(const ScenarioOptions& options);

}  // namespace ibnbd::sim
