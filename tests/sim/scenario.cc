// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scenario.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ibnbd::sim {
namespace {

constexpr std::int64_t kStepNs = 100 * kNsPerMs;

// The cast of one run.
class Scene {
 public:
  explicit Scene(const ScenarioOptions& options);
  void Storm();
  bool Heal();
  bool Close();
  ScenarioResult Result();

 private:
  void StormStep();
  void CrashServer();
  void Report(const char* oracle, const std::string& text) { findings_.push_back({oracle, text}); }
  [[nodiscard]] std::string DescribeClients() const;

  const ScenarioOptions options_;
  World world_;
  Prng prng_;
  ServerActor server_;
  std::vector<std::unique_ptr<VolumeOracle>> oracles_;
  std::vector<std::unique_ptr<ClientActor>> clients_;
  std::vector<Finding> findings_;
  std::uint64_t crashes_ = 0;
};

ServerActorOptions ServerOptionsOf(const ScenarioOptions& options) {
  ServerActorOptions result;
  result.volume_count = options.clients;
  result.reactors = options.reactors;
  result.disk_timing = {5 * kNsPerUs, options.disk_ns_max};
  result.server.heartbeat_interval_ns = options.heartbeat_ns;
  result.server.queue_depth = 16;
  result.server.keys_per_io = options.keys_per_io;
  result.server.io_size_max = 8192;  // Half of the workload's largest IO.
  return result;
}

Scene::Scene(const ScenarioOptions& options)
    : options_(options),
      world_(options.seed, options.plan),
      prng_(world_.prng().Fork()),
      server_(world_, ServerOptionsOf(options)) {
  if (options_.trace) world_.set_trace_sink(options_.trace);
  server_.Start();
  for (std::uint32_t i = 0; i < options_.clients; ++i) {
    WorkloadOptions workload;
    workload.volume = i;
    workload.lanes = options_.lanes;
    workload.think_ns_max = options_.think_ns_max;
    workload.heartbeat_ns = options_.heartbeat_ns;
    workload.fail_after_ns = options_.fail_after_ns;
    for (std::uint32_t rail = 1; rail < options_.paths; ++rail) {
      workload.more_servers.push_back(server_.address(rail));
    }
    workload.policy = options_.policy;
    workload.backend_may_fail = options_.disk_error_ppm > 0;
    oracles_.push_back(std::make_unique<VolumeOracle>(i, workload.sector_count));
    clients_.push_back(std::make_unique<ClientActor>(world_, absl::StrCat("client", i),
                                                     server_.address(), workload, *oracles_[i]));
    clients_.back()->Start();
  }
}

void Scene::CrashServer() {
  std::vector<VolumeOracle*> oracles;
  for (auto& oracle : oracles_) oracles.push_back(oracle.get());
  server_.Crash(options_.power_loss, oracles);
  ++crashes_;
  world_.Schedule(prng_.Between(1 * kNsPerMs, 3 * kNsPerSecond), [this] { server_.Restart(); });
}

void Scene::StormStep() {
  const std::uint64_t steps = static_cast<std::uint64_t>(options_.storm_ns / kStepNs);
  if (server_.running() && crashes_ < options_.crash_count_max &&
      prng_.Below(steps) < 2 * options_.crash_count_max) {
    CrashServer();
  }
  for (std::uint32_t i = 0; i < options_.clients; ++i) {
    if (prng_.Chance(options_.disk_error_ppm)) {
      server_.disk(i).FailRange(prng_.Below(80) * rnbd::kSectorSize, 16 * rnbd::kSectorSize, -EIO);
    } else if (prng_.Chance(200'000)) {
      server_.disk(i).ClearFailures();
    }
  }
}

void Scene::Storm() {
  for (std::int64_t passed = 0; passed < options_.storm_ns; passed += kStepNs) {
    StormStep();
    world_.RunFor(kStepNs);
  }
}

bool Scene::Heal() {
  world_.HealEverything();
  for (std::uint32_t i = 0; i < options_.clients; ++i) server_.disk(i).ClearFailures();
  const auto all = [&](auto predicate) {
    return [this, predicate] {
      for (auto& client : clients_) {
        if (!predicate(*client)) return false;
      }
      return true;
    };
  };
  // Everybody is back, and works for a while undisturbed...
  if (!world_.RunUntil(all([](ClientActor& c) { return c.device_open(); }), options_.heal_ns)) {
    Report("O8", absl::StrCat("a device did not come back: ", DescribeClients()));
    return false;
  }
  world_.RunFor(1 * kNsPerSecond);
  // ...then every IO ends.
  for (auto& client : clients_) client->StopSubmitting();
  if (!world_.RunUntil(all([](ClientActor& c) { return c.idle(); }), options_.heal_ns)) {
    Report("O8", absl::StrCat("an IO did not end: ", DescribeClients()));
    return false;
  }
  return true;
}

bool Scene::Close() {
  for (auto& client : clients_) client->StartClose();
  const auto closed = [this] {
    for (auto& client : clients_) {
      if (!client->closed()) return false;
    }
    return true;
  };
  if (!world_.RunUntil(closed, 60 * kNsPerSecond)) {
    Report("O8", absl::StrCat("a client did not close: ", DescribeClients()));
    return false;
  }
  const auto sessions_gone = [this] { return server_.stats().sessions == 0; };
  if (!world_.RunUntil(sessions_gone, 120 * kNsPerSecond) || server_.stats().chunk_memory != 0) {
    Report("O6",
           absl::StrFormat("after all clients closed the server has %d sessions, %d chunk bytes",
                           server_.stats().sessions, server_.stats().chunk_memory));
  }
  server_.StartStop();
  if (!world_.RunUntil([this] { return server_.stopped(); }, 60 * kNsPerSecond)) {
    Report("O8", "the server did not stop");
    return false;
  }
  world_.RunFor(1 * kNsPerMs);  // The last ghosts are dismantled.
  return true;
}

std::string Scene::DescribeClients() const {
  std::string text;
  for (const auto& client : clients_) absl::StrAppend(&text, client->Describe(), " | ");
  return text;
}

ScenarioResult Scene::Result() {
  ScenarioResult result;
  result.findings = findings_;
  for (const auto& oracle : oracles_) {
    result.findings.insert(result.findings.end(), oracle->findings().begin(),
                           oracle->findings().end());
  }
  for (const std::string& violation : world_.violations()) {
    result.findings.push_back({"F", violation});
  }
  for (const auto& client : clients_) {
    const WorkloadCounts& counts = client->counts();
    result.counts.submitted += counts.submitted;
    result.counts.completed += counts.completed;
    result.counts.reads += counts.reads;
    result.counts.writes += counts.writes;
    result.counts.flushes += counts.flushes;
    result.counts.zeroes += counts.zeroes;
    result.counts.discards += counts.discards;
    result.counts.errors += counts.errors;
    result.counts.timeouts += counts.timeouts;
  }
  if (result.counts.submitted != result.counts.completed) {
    result.findings.push_back({"O2", "the number of completions is not that of submissions"});
  }
  result.trace_hash = world_.trace_hash();
  result.virtual_ns = world_.now_ns();
  result.faults = world_.counts();
  result.crashes = crashes_;
  return result;
}

}  // namespace

std::string ScenarioOptions::ToString() const {
  return absl::StrFormat(
      "seed %d: %d clients, %d lanes, %d paths (policy %d), %d reactors; up to %d crashes (%s); "
      "disk up to %d us, errors "
      "%d ppm; "
      "fail-after %d ms; %s",
      seed, clients, lanes, paths, static_cast<int>(policy), reactors, crash_count_max,
      power_loss ? "power loss" : "kill", disk_ns_max / kNsPerUs, disk_error_ppm,
      fail_after_ns / kNsPerMs, plan.ToString());
}

ScenarioOptions DrawScenario(std::uint64_t seed) {
  Prng prng(seed);
  ScenarioOptions options;
  options.seed = seed;
  options.plan = DrawSwarmPlan(prng);
  if (prng.Chance(600'000)) {
    // A client that is back before the server has noticed that it was gone, with writes still on
    // their way: what the fence is for, and rare among all other faults.
    options.plan.cut_ppm = std::max<std::uint32_t>(options.plan.cut_ppm, 10'000);
    options.plan.one_sided_ppm = 600'000;
    options.plan.one_sided_ns = {200 * kNsPerMs, 8 * kNsPerSecond};
    options.plan.late_landing_ppm = 900'000;
    options.plan.late_landing_ns = {100 * kNsPerMs, kNsPerSecond};
  }
  options.clients = 1 + static_cast<std::uint32_t>(prng.Below(3));
  options.lanes = 1 + static_cast<std::uint32_t>(prng.Below(3));
  options.reactors = 1 + static_cast<std::uint32_t>(prng.Below(3));
  options.storm_ns = prng.Between(2, 12) * kNsPerSecond;
  options.crash_count_max =
      prng.Chance(600'000) ? 1 + static_cast<std::uint32_t>(prng.Below(3)) : 0;
  options.power_loss = prng.Chance(500'000);
  options.disk_error_ppm = prng.Chance(300'000) ? 100'000 : 0;
  options.fail_after_ns = prng.Chance(300'000) ? prng.Between(100, 5000) * kNsPerMs : -1;
  options.heartbeat_ns = prng.Between(20, 500) * kNsPerMs;
  options.think_ns_max = prng.Chance(200'000) ? 200 * kNsPerUs : 5 * kNsPerMs;
  static constexpr std::int64_t kDiskNsMax[] = {200 * kNsPerUs, 200 * kNsPerUs, 20 * kNsPerMs,
                                                2 * kNsPerSecond};
  options.disk_ns_max = kDiskNsMax[prng.Below(4)];
  options.paths = prng.Chance(500'000) ? 2 + static_cast<std::uint32_t>(prng.Below(2)) : 1;
  options.policy = static_cast<rtrs::PathPolicyKind>(prng.Below(4));
  return options;
}

ScenarioResult RunScenario(const ScenarioOptions& options) {
  auto scene = std::make_unique<Scene>(options);
  scene->Storm();
  if (scene->Heal() && scene->Close()) return scene->Result();
  // Not everything can be dismantled: the result is what matters, and the process ends soon.
  return scene.release()->Result();
}

}  // namespace ibnbd::sim
