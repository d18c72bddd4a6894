// SPDX-License-Identifier: Apache-2.0
// One simulated run: a storm of faults under load (safety), then healing and the demand that
// everything finishes (liveness), then closing, which must leave nothing.
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
  FaultPlan plan;
  std::uint32_t clients = 2;  // Each has a volume of its own on the one server.
  std::int64_t storm_ns = 20 * kNsPerSecond;
  std::int64_t heal_ns = 120 * kNsPerSecond;  // O8's deadline.
  std::uint32_t crash_count_max = 2;          // Of the server, during the storm.
  bool power_loss = true;                     // Crashes lose what was not flushed.
  std::uint32_t disk_error_ppm = 0;  // Per storm step: a range of a disk fails for a while.
  std::int64_t fail_after_ns = -1;
  std::int64_t disk_ns_max = 200 * kNsPerUs;
  std::int64_t think_ns_max = 5 * kNsPerMs;  // Pause of a worker between two IOs.
  std::int64_t heartbeat_ns = kNsPerSecond;  // Both sides.
  std::uint32_t lanes = 2, reactors = 2;
  std::uint32_t paths = 1;  // Of each client, on rails of their own.
  rtrs::PathPolicyKind policy = rtrs::PathPolicyKind::kAdaptive;
  bool keys_per_io = false;                       // The server's; not drawn.
  std::function<void(const std::string&)> trace;  // Verbose lines.

  [[nodiscard]] std::string ToString() const;
};

// Draws everything from the seed: which faults exist, then their rates.
ScenarioOptions DrawScenario(std::uint64_t seed);

struct ScenarioResult {
  std::vector<Finding> findings;
  std::uint64_t trace_hash = 0;
  std::int64_t virtual_ns = 0;
  WorkloadCounts counts;  // Of all clients.
  FaultCounts faults;
  std::uint64_t crashes = 0;
};

ScenarioResult RunScenario(const ScenarioOptions& options);

}  // namespace ibnbd::sim
