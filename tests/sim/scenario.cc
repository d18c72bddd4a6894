// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scenario.h"

#include <algorithm>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/sim/hostile_actor.h"

namespace ibnbd::sim {
namespace {

constexpr std::int64_t kStepNs = 100 * kNsPerMs;
constexpr std::int64_t kSettleNs = 5 * kNsPerSecond;  // What a disk and the network take at most.
constexpr std::uint32_t kHeaderPage = 4096;           // Of a chunk, behind the data.

// The cast of one run.
class Scene {
 public:
  explicit Scene(const ScenarioOptions& options);
  void Storm();
  bool Heal();
  bool Close();
  ScenarioResult Result();

 private:
  bool Happens(double times);  // In this step.
  void StormStep();
  void StormServer();
  void StormClients();
  void StormHosts();
  void StormPaths();
  void SendAway(ClientActor& client);
  void StormDisks();
  bool CloseClients();
  bool StopHostiles();
  void CrashServer();
  void StopServer();
  void CrashClient(ClientActor& client);
  void ReplaceVolume(std::uint32_t volume);
  void AwaitRestart();
  Host& AnyHost();
  Workload& AnyWorkload();
  [[nodiscard]] std::int64_t Pause() { return prng_.Between(1 * kNsPerMs, 3 * kNsPerSecond); }
  [[nodiscard]] bool EverybodyIsBack();
  [[nodiscard]] bool WorkloadMayBeAway(const Workload& workload);
  [[nodiscard]] bool AllIdle();
  void Report(const char* oracle, const std::string& text) { findings_.push_back({oracle, text}); }
  void ReportViolations();
  bool CheckConservation();
  [[nodiscard]] std::string DescribeClients() const;

  const ScenarioOptions options_;
  World world_;
  Prng prng_;
  std::vector<std::unique_ptr<VolumeOracle>> oracles_;
  std::unique_ptr<ServerActor> server_;
  std::vector<std::unique_ptr<ClientActor>> clients_;
  std::vector<std::unique_ptr<HostileActor>> hostiles_;
  bool storm_over_ = false;
  std::vector<Finding> findings_;
  ScenarioCounts counts_;
};

ServerActorOptions ServerOptionsOf(const ScenarioOptions& options) {
  ServerActorOptions result;
  result.sector_counts = options.sector_counts;
  result.reactors = options.server_reactors;
  result.disk_timing = {5 * kNsPerUs, options.disk_ns_max, options.disk_slow_ppm,
                        options.disk_slow_ns_max};
  result.server.heartbeat_interval_ns = options.heartbeat_ns;
  result.server.queue_depth = options.queue_depth;
  result.server.io_size_max = options.io_size_max;
  result.server.keys_per_io = options.keys_per_io;
  result.server.handshake_timeout_ns = options.handshake_ns;
  return result;
}

Scene::Scene(const ScenarioOptions& options)
    : options_(options), world_(options.seed, options.plans[0]), prng_(world_.prng().Fork()) {
  for (std::uint32_t rail = 0; rail < options_.plans.size(); ++rail) {
    world_.set_plan(options_.plans[rail], rail);
  }
  if (options_.trace) world_.set_trace_sink(options_.trace);
  for (std::uint32_t i = 0; i < options_.sector_counts.size(); ++i) {
    oracles_.push_back(std::make_unique<VolumeOracle>(i, options_.sector_counts[i]));
  }
  server_ = std::make_unique<ServerActor>(world_, ServerOptionsOf(options_), oracles_);
  server_->Start();
  for (ClientActorOptions client : options_.clients) {
    client.name = absl::StrCat("client", clients_.size());
    for (std::uint32_t rail = 0; rail < options_.plans.size(); ++rail) {
      client.servers.push_back(server_->address(rail));
    }
    client.heartbeat_ns = options_.heartbeat_ns;
    clients_.push_back(std::make_unique<ClientActor>(world_, client, oracles_));
    clients_.back()->Start();
  }
  for (std::uint32_t i = 0; i < options_.hostile_clients; ++i) {
    const fuzz::HostileTarget target{server_->address(),
                                     options_.queue_depth,
                                     options_.io_size_max + kHeaderPage,
                                     {"evil", "evil2", "evil3", ""}};
    hostiles_.push_back(std::make_unique<HostileActor>(world_, absl::StrCat("evil", i), target,
                                                       options_.hostile_pause_ns_max));
    hostiles_.back()->Start();
  }
}

bool Scene::Happens(double times) {
  const double steps = static_cast<double>(options_.storm_ns) / static_cast<double>(kStepNs);
  return times > 0 && prng_.Chance(static_cast<std::uint32_t>(std::min(1.0, times / steps) * 1e6));
}

Host& Scene::AnyHost() {
  const std::uint64_t number = prng_.Below(clients_.size() + 1);
  return number == 0 ? server_->host() : clients_[number - 1]->host();
}

Workload& Scene::AnyWorkload() {
  auto& workloads = clients_[prng_.Below(clients_.size())]->workloads();
  return *workloads[prng_.Below(workloads.size())];
}

void Scene::CrashServer() {
  const bool power_loss = prng_.Chance(options_.power_loss_ppm);
  server_->Crash(power_loss ? ServerActor::CrashKind::kPowerLoss : ServerActor::CrashKind::kKill);
  ++(power_loss ? counts_.power_losses : counts_.server_kills);
  world_.Schedule(Pause(), [this] { server_->Restart(); });
}

void Scene::StopServer() {
  server_->StartStop();
  ++counts_.server_stops;
  AwaitRestart();
}

// The next process starts when the one before it has gone.
void Scene::AwaitRestart() {
  world_.Schedule(Pause(), [this] {
    if (!server_->stopped()) return AwaitRestart();
    server_->Restart();
  });
}

void Scene::CrashClient(ClientActor& client) {
  client.Crash();
  ++counts_.client_crashes;
  // One supply for both, or one reason: what a new client finds changed is what this is for.
  if (server_->running() && options_.server_crashes > 0 && prng_.Chance(300'000)) CrashServer();
  // A service manager is quick: often what the dead one sent is still on its way.
  const std::int64_t pause = prng_.Chance(500'000) ? Pause() / 50 : Pause();
  world_.Schedule(pause, [&client] { client.Restart(); });
}

void Scene::ReplaceVolume(std::uint32_t volume) {
  server_->Replace(volume, prng_.Chance(500'000) ? ServerActor::Impostor::kOtherVolume
                                                 : ServerActor::Impostor::kSmaller);
  ++counts_.impostors;
  world_.Schedule(Pause(), [this, volume] {
    if (!storm_over_) server_->PutBack(volume);
  });
}

void Scene::StormServer() {
  if (server_->running() && Happens(options_.server_crashes)) CrashServer();
  if (server_->running() && Happens(options_.server_stops)) StopServer();
  const auto volume = static_cast<std::uint32_t>(prng_.Below(server_->volume_count()));
  if (!server_->replaced(volume) && Happens(options_.impostors)) ReplaceVolume(volume);
}

void Scene::StormClients() {
  ClientActor& client = *clients_[prng_.Below(clients_.size())];
  if (client.running() && Happens(options_.client_crashes)) CrashClient(client);
  if (Happens(options_.reopens)) {
    AnyWorkload().Reopen();
    ++counts_.reopens;
  }
  if (Happens(options_.policy_changes)) {
    const bool hold = prng_.Chance(500'000);
    AnyWorkload().SetFailAfter(hold ? -1 : prng_.Between(10, 3000) * kNsPerMs);
  }
}

void Scene::StormHosts() {
  if (Happens(options_.clock_jumps)) {
    world_.JumpClock(AnyHost(), prng_.Between(10 * kNsPerMs, 100 * kNsPerSecond));
  }
  if (Happens(options_.freezes)) {
    world_.StallHost(AnyHost(), prng_.Between(100 * kNsPerMs, 8 * kNsPerSecond));
    ++counts_.freezes;
  }
}

void Scene::SendAway(ClientActor& client) {
  const std::int64_t away_ns = prng_.Between(500 * kNsPerMs, 2500 * kNsPerMs);
  for (std::uint32_t rail = 0; rail < options_.plans.size(); ++rail) {
    world_.CutConnections(server_->host(), client.host(), rail);
    world_.Partition(server_->host(), client.host(), rail);
    world_.Schedule(away_ns, [this, &client, rail] {
      world_.HealPartition(server_->host(), client.host(), rail);
    });
  }
  ++counts_.rail_faults;
}

void Scene::StormPaths() {
  Host& client = clients_[prng_.Below(clients_.size())]->host();
  const auto rail = static_cast<std::uint32_t>(prng_.Below(options_.plans.size()));
  if (Happens(options_.rail_cuts)) {
    world_.CutConnections(server_->host(), client, rail);
    ++counts_.rail_faults;
  }
  if (Happens(options_.rail_outages)) {
    if (prng_.Chance(500'000)) {
      world_.Partition(server_->host(), client, rail);
    } else {
      const bool upwards = prng_.Chance(500'000);
      world_.PartitionOneWay(upwards ? client : server_->host(), upwards ? server_->host() : client,
                             rail);
    }
    ++counts_.rail_faults;
    world_.Schedule(Pause(),
                    [this, &client, rail] { world_.HealPartition(server_->host(), client, rail); });
  }
  if (Happens(options_.brown_outs)) {
    const std::int64_t slow_ns = prng_.Between(1 * kNsPerMs, 100 * kNsPerMs);
    world_.SetLinkDelay(server_->host(), client, {slow_ns / 2, slow_ns}, rail);
    ++counts_.rail_faults;
    world_.Schedule(Pause(), [this, &client, rail] {
      world_.SetLinkDelay(server_->host(), client, {-1, -1}, rail);
    });
  }
  if (Happens(options_.absences)) {
    const auto has_one = [](const auto& one) {
      return std::any_of(one->workloads().begin(), one->workloads().end(),
                         [](const auto& workload) { return workload->open(); });
    };
    const auto found = std::find_if(clients_.begin(), clients_.end(), has_one);
    if (found != clients_.end()) SendAway(**found);
  }
  if (Happens(options_.path_changes)) {
    clients_[prng_.Below(clients_.size())]->ChangePaths();
    ++counts_.path_changes;
  }
}

void Scene::StormDisks() {
  const auto volume = static_cast<std::uint32_t>(prng_.Below(server_->volume_count()));
  if (Happens(options_.disk_hangs)) {
    server_->HangDisk(volume);
    ++counts_.disk_hangs;
    world_.Schedule(Pause(), [this, volume] { server_->ReleaseDisk(volume); });
  }
  if (Happens(options_.disk_errors)) {
    const std::uint64_t sectors = options_.sector_counts[volume];
    server_->disk(volume).FailRange(prng_.Below(sectors) * rnbd::kSectorSize,
                                    (1 + prng_.Below(16)) * rnbd::kSectorSize, -EIO);
    world_.Schedule(Pause(), [this, volume] { server_->disk(volume).ClearFailures(); });
  }
}

void Scene::StormStep() {
  StormServer();
  StormClients();
  StormHosts();
  StormPaths();
  StormDisks();
}

void Scene::Storm() {
  for (std::int64_t passed = 0; passed < options_.storm_ns; passed += kStepNs) {
    StormStep();
    world_.RunFor(kStepNs);
  }
}

// Kept out by who wants the volume as exclusively, or not open yet for want of the other's leave.
bool Scene::WorkloadMayBeAway(const Workload& workload) {
  const WorkloadOptions& options = workload.options();
  if (!(options.contended || options.source) || workload.open()) return false;
  for (const auto& client : clients_) {
    for (const auto& other : client->workloads()) {
      if (other->options().volume != options.volume || !other->open()) continue;
      if (options.contended || !workload.has_device()) return true;
      if (other->writer_epoch() != workload.writer_epoch()) return true;
    }
  }
  return false;
}

bool Scene::EverybodyIsBack() {
  if (!server_->running()) return false;
  for (const auto& client : clients_) {
    if (!client->running()) return false;
    for (const auto& workload : client->workloads()) {
      if (!workload->open() && !WorkloadMayBeAway(*workload)) return false;
    }
  }
  return true;
}

bool Scene::AllIdle() {
  for (const auto& client : clients_) {
    for (const auto& workload : client->workloads()) {
      // What is held until another client lets go ends with the closing of this one.
      if (!workload->idle() && !WorkloadMayBeAway(*workload)) return false;
    }
  }
  return true;
}

bool Scene::Heal() {
  storm_over_ = true;
  world_.HealEverything();
  for (std::uint32_t i = 0; i < server_->volume_count(); ++i) {
    server_->disk(i).ClearFailures();
    server_->ReleaseDisk(i);
    if (server_->replaced(i)) server_->PutBack(i);
  }
  // Everybody is back, and works for a while undisturbed...
  if (!world_.RunUntil([this] { return EverybodyIsBack(); }, options_.heal_ns)) {
    Report("O8", absl::StrCat("a device did not come back: ", DescribeClients()));
    return false;
  }
  world_.RunFor(1 * kNsPerSecond);
  // ...then every IO ends.
  for (auto& client : clients_) {
    for (auto& workload : client->workloads()) workload->StopSubmitting();
  }
  if (!world_.RunUntil([this] { return AllIdle(); }, options_.heal_ns)) {
    Report("O8", absl::StrCat("an IO did not end: ", DescribeClients()));
    return false;
  }
  return CheckConservation();
}

// Nothing is under way: then nothing is taken.  What is held for want of another client's leave has
// no permit either.
bool Scene::CheckConservation() {
  const auto taken = [this] {
    std::uint64_t sum = 0;
    for (const auto& client : clients_) sum += client->permits_used();
    for (const auto& session : server_->server().sessions()) {
      if (!absl::StartsWith(session.name, ServerActor::kHostilePrefix)) sum += session.executing;
    }
    return sum;
  };
  if (world_.RunUntil([&] { return taken() == 0; }, kSettleNs)) return true;
  Report("O4", absl::StrCat("nothing is under way, but ", taken(),
                            " permits of clients and chunks of the server are in use"));
  return false;
}

bool Scene::CloseClients() {
  for (auto& client : clients_) client->StartClose();
  const auto closed = [this] {
    return std::all_of(clients_.begin(), clients_.end(),
                       [](const auto& client) { return client->closed() && !client->ghosts(); });
  };
  if (world_.RunUntil(closed, 60 * kNsPerSecond)) return true;
  Report("O8", absl::StrCat("a client did not close: ", DescribeClients()));
  return false;
}

bool Scene::StopHostiles() {
  for (auto& hostile : hostiles_) hostile->Stop();
  const auto gone = [this] {
    return std::all_of(hostiles_.begin(), hostiles_.end(),
                       [](const auto& hostile) { return hostile->gone(); });
  };
  if (!world_.RunUntil(gone, 120 * kNsPerSecond)) {
    Report("O8", "the hostile client's connections did not end");
    return false;
  }
  for (const auto& hostile : hostiles_) counts_.hostile_moves += hostile->moves();
  hostiles_.clear();
  return true;
}

bool Scene::Close() {
  if (!CloseClients() || !StopHostiles()) return false;
  const auto clean = [this] {
    const rnbd::ServerStats stats = server_->server().stats();
    return stats.sessions == 0 && stats.chunk_memory == 0;
  };
  if (!world_.RunUntil(clean, 120 * kNsPerSecond)) {
    const rnbd::ServerStats stats = server_->server().stats();
    Report("O6",
           absl::StrFormat("after all clients closed the server has %d sessions, %d chunk bytes",
                           stats.sessions, stats.chunk_memory));
  }
  server_->StartStop();
  // The ghosts of its former lives included.
  if (!world_.RunUntil([this] { return server_->dismantled(); }, 60 * kNsPerSecond)) {
    Report("O8", "the server did not stop, or something of a former life of it still waits");
    return false;
  }
  return true;
}

std::string Scene::DescribeClients() const {
  std::string text = server_->running() ? "" : "server down | ";
  for (const auto& client : clients_) absl::StrAppend(&text, client->Describe(), " | ");
  return text;
}

void Scene::ReportViolations() {
  for (const std::string& violation : world_.violations()) {
    // A hostile client that writes into a chunk while the server sends from it hurts only itself.
    if (absl::StrContains(violation, "F9: a source changed") &&
        absl::StrContains(violation, "host server to evil")) {
      continue;
    }
    Report("F", violation);
  }
}

ScenarioResult Scene::Result() {
  ScenarioResult result;
  ReportViolations();
  for (const auto& client : clients_) {
    for (const auto& workload : client->workloads()) counts_.io.Add(workload->counts());
    counts_.reconnects += client->session_stats().reconnects;
    counts_.failovers += client->session_stats().failovers;
  }
  if (counts_.io.submitted != counts_.io.completed + counts_.io.abandoned) {
    Report("O2", "the number of completions is not that of submissions");
  }
  result.findings = findings_;
  for (const auto& oracle : oracles_) {
    result.findings.insert(result.findings.end(), oracle->findings().begin(),
                           oracle->findings().end());
  }
  result.trace_hash = world_.trace_hash();
  counts_.virtual_ns = world_.now_ns();
  counts_.faults = world_.counts();
  result.counts = counts_;
  return result;
}

}  // namespace

ScenarioResult RunScenario(const ScenarioOptions& options) {
  auto scene = std::make_unique<Scene>(options);
  scene->Storm();
  if (scene->Heal() && scene->Close()) return scene->Result();
  // Not everything can be dismantled: the result is what matters, and the process ends soon.
  return scene.release()->Result();
}

}  // namespace ibnbd::sim
