// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/swarm.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ibnbd::sim {
namespace {

constexpr std::uint32_t kSector = 512;

std::uint32_t Draw32(Prng& prng, std::int64_t low, std::int64_t high) {
  return static_cast<std::uint32_t>(prng.Between(low, high));
}

template <typename T, std::size_t n>
T OneOf(Prng& prng, const T (&choices)[n]) {
  return choices[prng.Below(n)];
}

// How often something happens, if at all: up to `most` times, small numbers as likely as large
// ones.
double DrawTimes(Prng& prng, std::uint32_t exists_ppm, double most) {
  if (!prng.Chance(exists_ppm)) return 0;
  return most / static_cast<double>(1u << prng.Below(4));
}

WorkloadOptions DrawWorkload(Prng& prng, const ScenarioOptions& options, std::uint32_t volume) {
  WorkloadOptions workload;
  workload.volume = volume;
  workload.volume_id = ServerActor::VolumeId(volume);
  workload.sector_count = options.sector_counts[volume];
  workload.io_depth = OneOf<std::uint32_t>(prng, {1, 4, 8, 8, 16});
  workload.io_sectors_max = OneOf<std::uint32_t>(prng, {1, 8, 32, 32});
  workload.part_sectors_max = options.io_size_max / kSector;
  workload.read_percent = OneOf<std::uint32_t>(prng, {10, 40, 40, 60});
  workload.think_ns_max =
      OneOf(prng, {200 * kNsPerUs, 5 * kNsPerMs, 5 * kNsPerMs, 20 * kNsPerMs, 20 * kNsPerMs});
  workload.fail_after_ns = prng.Chance(200'000) ? prng.Between(100, 5000) * kNsPerMs : -1;
  workload.backend_may_fail = options.disk_errors > 0;
  return workload;
}

// How the clients share a volume: one writer alone, or with readers; two that write at once, as
// during a migration, whose source may want it for itself; two of which each wants it for itself.
enum class Sharing : std::uint8_t { kAlone, kReaders, kMigration, kContended };

void DrawUses(Prng& prng, ScenarioOptions* options, std::uint32_t volume) {
  const Sharing sharing = options->clients.size() == 1
                              ? Sharing::kAlone
                              : OneOf(prng, {Sharing::kAlone, Sharing::kAlone, Sharing::kReaders,
                                             Sharing::kMigration, Sharing::kContended});
  // The volume's users stand one behind the other, from a client that the seed draws.
  const std::size_t first = prng.Below(options->clients.size());
  const std::size_t users = sharing == Sharing::kAlone     ? 1
                            : sharing == Sharing::kReaders ? 1 + prng.Below(options->clients.size())
                                                           : 2;
  const bool has_source = sharing == Sharing::kMigration && (options->seed + volume) % 2 == 0;
  const bool past_is_known =
      options->server_crashes + options->server_stops + options->impostors == 0;
  for (std::size_t i = 0; i < users; ++i) {
    const std::size_t number = (first + i) % options->clients.size();
    WorkloadOptions workload = DrawWorkload(prng, *options, volume);
    workload.client = static_cast<ClientId>(number);
    if (sharing == Sharing::kReaders && i > 0) workload.mode = rnbd::AccessMode::kReadOnly;
    workload.source = has_source && i == 0;
    if (sharing == Sharing::kMigration && !workload.source) {
      workload.mode = rnbd::AccessMode::kMigration;
    }
    workload.contended = sharing == Sharing::kContended;
    workload.takes_over = workload.contended && past_is_known;
    options->clients[number].workloads.push_back(workload);
  }
}

void DrawCast(Prng& prng, ScenarioOptions* options) {
  options->server_reactors = Draw32(prng, 1, 3);
  options->queue_depth = OneOf<std::uint32_t>(prng, {8, 16, 16, 64});
  options->io_size_max = OneOf<std::uint32_t>(prng, {4096, 8192, 8192, 16384});
  options->keys_per_io = prng.Chance(200'000);
  options->handshake_ns = OneOf(prng, {1 * kNsPerSecond, 10 * kNsPerSecond, 30 * kNsPerSecond});
  options->heartbeat_ns = prng.Between(20, 500) * kNsPerMs;
  options->disk_ns_max =
      OneOf(prng, {200 * kNsPerUs, 200 * kNsPerUs, 20 * kNsPerMs, 2 * kNsPerSecond});
  options->clients.resize(1 + prng.Below(3));
  for (ClientActorOptions& client : options->clients) {
    client.lanes = Draw32(prng, 1, 3);
    client.paths = Draw32(prng, 1, static_cast<std::int64_t>(options->plans.size()));
    if (prng.Chance(750'000)) {
      client.client_id = 1 + prng.Below(UINT64_MAX);
      client.survived_ppm = OneOf<std::uint32_t>(prng, {0, 700'000, 1'000'000, 1'000'000});
    }
    client.policy = static_cast<rtrs::PathPolicyKind>(prng.Below(4));
  }
  options->sector_counts.resize(1 + prng.Below(3));
  for (std::uint64_t& count : options->sector_counts) {
    count = OneOf<std::uint64_t>(prng, {16, 96, 96, 256});
  }
  for (std::uint32_t volume = 0; volume < options->sector_counts.size(); ++volume) {
    DrawUses(prng, options, volume);
  }
  // Who uses nothing has no part in the play.
  std::erase_if(options->clients,
                [](const ClientActorOptions& client) { return client.workloads.empty(); });
  if (prng.Chance(250'000)) {
    options->hostile_clients = Draw32(prng, 1, 2);
    options->hostile_pause_ns_max = OneOf(prng, {1 * kNsPerMs, 20 * kNsPerMs});
  }
}

// A client that is back before the server has noticed that it was gone, with writes still on their
// way: what the fence is for, and rare among all other faults.
void SharpenFence(Prng& prng, FaultPlan* plan) {
  plan->cut_ppm = std::max<std::uint32_t>(plan->cut_ppm, 10'000);
  plan->one_sided_ppm = 600'000;
  plan->one_sided_passive = prng.Chance(850'000);
  plan->one_sided_ns = {200 * kNsPerMs, 8 * kNsPerSecond};
  plan->late_landing_ppm = 900'000;
  plan->late_landing_ns = {100 * kNsPerMs, kNsPerSecond};
}

// And hardly anything else: much is in flight when a connection breaks, and writes to the same few
// sectors soon follow.
void DrawFenceScenario(Prng& prng, ScenarioOptions* options) {
  FaultPlan plan;
  SharpenFence(prng, &plan);
  plan.link_delay_ns = {100 * kNsPerUs, 2 * kNsPerMs};
  // Connections that live for a while, or clients would wait longer and longer before they return.
  plan.cut_ppm = OneOf<std::uint32_t>(prng, {1'000, 3'000, 3'000});
  plan.one_sided_ppm = 900'000;
  const std::size_t paths = prng.Chance(500'000) ? 1 : 2;
  // With another path the client does not wait to come back, which would end the old one.
  if (paths > 1) plan.late_landing_ns = {1 * kNsPerMs, 150 * kNsPerMs};
  options->plans.assign(paths, plan);
  options->storm_ns = prng.Between(4, 8) * kNsPerSecond;
  DrawCast(prng, options);
  options->hostile_clients = 0;
  options->disk_ns_max = OneOf(prng, {200 * kNsPerUs, 20 * kNsPerMs});
  for (std::uint64_t& count : options->sector_counts) count = 16;
  for (ClientActorOptions& client : options->clients) {
    client.paths = static_cast<std::uint32_t>(paths);
    for (WorkloadOptions& use : client.workloads) {
      use.sector_count = 16;
      use.io_depth = 8;
      use.think_ns_max = 5 * kNsPerMs;
      use.fast_ios = 8000;
    }
  }
}

// A daemon under a file system is killed and started again, over and over: with writes on their
// way, while the server is away, after a loss of power; and little else.
void DrawRestartScenario(Prng& prng, ScenarioOptions* options) {
  if (prng.Chance(500'000)) SharpenFence(prng, &options->plans[0]);
  options->plans[0].cut_ppm = OneOf<std::uint32_t>(prng, {0, 1'000, 3'000});
  options->plans[0].link_delay_ns = {100 * kNsPerUs, 2 * kNsPerMs};
  if (prng.Chance(300'000)) options->plans.push_back(options->plans[0]);
  options->storm_ns = prng.Between(4, 10) * kNsPerSecond;
  options->client_crashes = OneOf(prng, {4.0, 8.0, 16.0});
  options->server_crashes = OneOf(prng, {0.0, 2.0, 6.0});
  options->power_loss_ppm = OneOf<std::uint32_t>(prng, {500'000, 1'000'000});
  options->impostors = DrawTimes(prng, 200'000, 4);
  options->policy_changes = DrawTimes(prng, 200'000, 8);
  options->freezes = DrawTimes(prng, 200'000, 4);
  DrawCast(prng, options);
  options->hostile_clients = 0;
  options->disk_ns_max = OneOf(prng, {200 * kNsPerUs, 20 * kNsPerMs});
  // What the dead one has left may execute for longer than the next one needs for all of it.
  options->disk_slow_ppm = OneOf<std::uint32_t>(prng, {0, 20'000, 100'000});
  options->disk_slow_ns_max = 500 * kNsPerMs;
  for (std::uint64_t& count : options->sector_counts) count = 16;
  for (ClientActorOptions& client : options->clients) {
    client.client_id = 1 + prng.Below(UINT64_MAX);
    client.survived_ppm = 1'000'000;
    for (WorkloadOptions& use : client.workloads) {
      use.sector_count = 16;
      use.io_depth = 8;
      use.think_ns_max = 5 * kNsPerMs;
      if (prng.Chance(300'000)) use.fail_after_ns = prng.Between(20, 1500) * kNsPerMs;
      // Then only the session's name keeps what the dead one has left from landing too late.
      const bool alone = use.mode == rnbd::AccessMode::kReadWrite && !use.contended && !use.source;
      if (alone && prng.Chance(300'000)) use.mode = rnbd::AccessMode::kMigration;
    }
  }
}

// Two that want a volume each for itself, and are away in turns for long enough that the other one
// gets it; and little else.
void DrawTakeOverScenario(Prng& prng, ScenarioOptions* options) {
  options->plans[0].link_delay_ns = {100 * kNsPerUs, 2 * kNsPerMs};
  options->storm_ns = prng.Between(6, 12) * kNsPerSecond;
  options->absences = OneOf(prng, {10.0, 20.0});
  options->client_crashes = OneOf(prng, {0.0, 0.0, 2.0});
  options->reopens = OneOf(prng, {0.0, 0.0, 2.0});
  DrawCast(prng, options);
  options->hostile_clients = 0;
  options->disk_ns_max = OneOf(prng, {200 * kNsPerUs, 20 * kNsPerMs});
  options->sector_counts = {16};
  options->clients.resize(2);
  for (ClientId number = 0; number < 2; ++number) {
    WorkloadOptions use = DrawWorkload(prng, *options, 0);
    use.client = number;
    use.contended = use.takes_over = true;
    use.io_depth = 8;
    use.io_sectors_max = OneOf<std::uint32_t>(prng, {1, 4});
    use.read_percent = 60;
    use.think_ns_max = 5 * kNsPerMs;
    use.fast_ios = 8000;
    if (prng.Chance(800'000)) use.fail_after_ns = -1;
    options->clients[number].workloads = {use};
  }
}

}  // namespace

ScenarioOptions DrawScenario(std::uint64_t seed) {
  Prng prng(seed);
  ScenarioOptions options;
  options.seed = seed;
  if (prng.Chance(250'000)) {
    DrawFenceScenario(prng, &options);
    return options;
  }
  if (prng.Chance(250'000)) {
    DrawRestartScenario(prng, &options);
    return options;
  }
  if (Prng(~seed).Chance(200'000)) {  // What other seeds are does not depend on it.
    DrawTakeOverScenario(prng, &options);
    return options;
  }
  // One client in two has several paths.  Each rail has faults of its own, or none.
  options.plans.resize(prng.Chance(500'000) ? 1 : 2 + prng.Below(2));
  for (FaultPlan& plan : options.plans) {
    plan = DrawSwarmPlan(prng);
    if (prng.Chance(300'000)) SharpenFence(prng, &plan);
    if (options.plans.size() > 1 && prng.Chance(300'000)) plan = plan.WithoutFaults();
  }
  options.storm_ns = prng.Between(2, 10) * kNsPerSecond;
  options.server_crashes = DrawTimes(prng, 500'000, 6);
  options.power_loss_ppm = OneOf<std::uint32_t>(prng, {0, 500'000, 1'000'000});
  options.server_stops = DrawTimes(prng, 250'000, 4);
  options.client_crashes = DrawTimes(prng, 350'000, 6);
  options.impostors = DrawTimes(prng, 250'000, 6);
  options.clock_jumps = DrawTimes(prng, 200'000, 8);
  options.freezes = DrawTimes(prng, 200'000, 6);
  options.disk_hangs = DrawTimes(prng, 250'000, 6);
  options.disk_errors = DrawTimes(prng, 250'000, 10);
  options.reopens = DrawTimes(prng, 250'000, 10);
  options.policy_changes = DrawTimes(prng, 150'000, 10);
  options.rail_cuts = DrawTimes(prng, 200'000, 16);
  options.rail_outages = DrawTimes(prng, 200'000, 8);
  options.brown_outs = DrawTimes(prng, 200'000, 8);
  if (options.plans.size() > 1) options.path_changes = DrawTimes(prng, 400'000, 16);
  DrawCast(prng, &options);
  return options;
}

std::string ScenarioOptions::ToString() const {
  std::string text = absl::StrFormat(
      "seed %d: storm of %d ms; server: %d reactors, depth %d, chunks of %d, %s, heartbeat %d ms, "
      "disk "
      "up to %d us\n",
      seed, storm_ns / kNsPerMs, server_reactors, queue_depth, io_size_max,
      keys_per_io ? "a key per IO" : "a key per path", heartbeat_ns / kNsPerMs,
      disk_ns_max / kNsPerUs);
  for (const ClientActorOptions& client : clients) {
    absl::StrAppendFormat(&text,
                          "  client with %d lanes, %s id, %d of %d paths, policy %d, "
                          "application survives %d ppm of its crashes\n",
                          client.lanes, client.client_id == 0 ? "no" : "an", client.paths,
                          plans.size(), static_cast<int>(client.policy), client.survived_ppm);
    for (const WorkloadOptions& use : client.workloads) {
      absl::StrAppendFormat(
          &text,
          "    volume %d of %d sectors, mode %d%s, depth %d, up to %d sectors, fail-after %d ms\n",
          use.volume, use.sector_count, static_cast<int>(use.mode),
          use.contended ? " (contended)" : "", use.io_depth, use.io_sectors_max,
          use.fail_after_ns / kNsPerMs);
    }
  }
  if (hostile_clients > 0) absl::StrAppendFormat(&text, "  %d hostile clients\n", hostile_clients);
  absl::StrAppendFormat(
      &text,
      "  on average: %g server crashes (%d ppm power losses), %g stops, %g client crashes, %g "
      "impostors, %g clock jumps, %g freezes, %g disk hangs, %g disk errors, %g reopens, %g policy "
      "changes\n  ",
      server_crashes, power_loss_ppm, server_stops, client_crashes, impostors, clock_jumps, freezes,
      disk_hangs, disk_errors, reopens, policy_changes);
  absl::StrAppendFormat(
      &text, "%g rail cuts, %g rail outages, %g brown-outs, %g absences, %g path changes\n",
      rail_cuts, rail_outages, brown_outs, absences, path_changes);
  for (const FaultPlan& plan : plans) absl::StrAppend(&text, "  rail: ", plan.ToString(), "\n");
  return text;
}

void ScenarioCounts::Add(const ScenarioCounts& other) {
  io.Add(other.io);
  faults.cuts += other.faults.cuts;
  faults.landed_late += other.faults.landed_late;
  faults.partitions += other.faults.partitions;
  faults.one_sided_breaks += other.faults.one_sided_breaks;
  faults.clock_jumps += other.faults.clock_jumps;
  server_kills += other.server_kills;
  power_losses += other.power_losses;
  server_stops += other.server_stops;
  client_crashes += other.client_crashes;
  impostors += other.impostors;
  freezes += other.freezes;
  disk_hangs += other.disk_hangs;
  reopens += other.reopens;
  hostile_moves += other.hostile_moves;
  path_changes += other.path_changes;
  rail_faults += other.rail_faults;
  reconnects += other.reconnects;
  failovers += other.failovers;
  virtual_ns += other.virtual_ns;
}

}  // namespace ibnbd::sim
