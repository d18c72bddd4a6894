// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/client_actor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "rtrs/client_lane.h"

namespace ibnbd::sim {
namespace {
constexpr std::int64_t kCloseNs = 5 * kNsPerSecond;
constexpr std::size_t kPathsMax = 4;

void AddStats(const rtrs::ClientSessionStats& more, rtrs::ClientSessionStats* sum) {
  sum->reconnects += more.reconnects;
  sum->failovers += more.failovers;
}
}  // namespace

ClientActor::ClientActor(World& world, const ClientActorOptions& options,
                         const std::vector<std::unique_ptr<VolumeOracle>>& oracles)
    : world_(world),
      options_(options),
      prng_(world.prng().Fork()),
      host_(world.AddHost(options.name)) {
  for (const WorkloadOptions& workload : options_.workloads) {
    workloads_.push_back(std::make_unique<Workload>(world, workload, *oracles.at(workload.volume)));
  }
}

ClientActor::~ClientActor() { CHECK(lives_.empty()); }

void ClientActor::Start() {
  auto life = std::make_unique<Life>();
  for (std::uint32_t i = 0; i <= options_.lanes; ++i) {
    life->reactors.push_back(&host_.AddReactor(Turns::kWithWork));
    auto port = rtrs::Port::Create(*life->reactors.back(), host_.fabric());
    CHECK(port.ok());
    life->ports.push_back(*std::move(port));
  }
  lives_.push_back(std::move(life));
  running_ = true;
  CreateClient(*lives_.back());
  for (auto& workload : workloads_) {
    const std::vector<Reactor*>& reactors = lives_.back()->reactors;
    workload->Begin(*lives_.back()->client, host_.fabric(), {reactors.begin() + 1, reactors.end()});
  }
  StartClient(*lives_.back());
}

void ClientActor::CreateClient(Life& life) {
  rnbd::Client::Options options;
  options.session.name = options_.name;
  options.session.server = options_.servers.at(0);
  for (std::uint32_t i = 1; i < options_.paths; ++i) {
    options.session.more_paths.push_back({options_.servers.at(i)});
  }
  options.session.policy = options_.policy;
  // With one the server does not wait for the dead process to be noticed, but ends its session
  // itself; 0: it waits.
  options.session.client_id = options_.client_id;
  options.session.incarnation = 1 + starts_++ / 2;  // Seconds: two lives may have the same.
  options.session.seed = prng_.Next();
  options.session.heartbeat_interval_ns = options_.heartbeat_ns;
  std::vector<rtrs::Port*> lanes;
  for (std::size_t i = 1; i < life.ports.size(); ++i) lanes.push_back(life.ports[i].get());
  auto client = rnbd::Client::Create(options, *life.ports[0], lanes);
  CHECK(client.ok());
  life.client = *std::move(client);
}

void ClientActor::StartClient(Life& life) {
  const bool resumes = std::any_of(workloads_.begin(), workloads_.end(),
                                   [](const auto& workload) { return workload->resumable(); });
  if (resumes) {  // Then it waits for nobody.
    life.client->Start(/*retry=*/true, nullptr);
    for (auto& workload : workloads_) {
      workload->resumable() ? workload->Resume() : workload->OnSessionReady();
    }
    return;
  }
  life.client->Start(/*retry=*/true, [this, life = &life](const absl::Status& status) {
    if (life->dead || closing_) return;
    if (!status.ok()) return OnGivenUp(status);
    for (auto& workload : workloads_) workload->OnSessionReady();
  });
}

// With `retry` only what cannot be mended ends it: there is nothing of the kind in these worlds.
void ClientActor::OnGivenUp(const absl::Status& why) { given_up_ = std::string(why.message()); }

void ClientActor::Crash() {
  CHECK(running_);
  running_ = false;
  Life& life = *lives_.back();
  const bool survived = options_.client_id != 0 && prng_.Chance(options_.survived_ppm);
  for (auto& workload : workloads_) workload->OnCrash(survived);
  world_.CrashHost(host_);
  life.dead = true;
  // The ghost is cut off from the world; it sees its connections break and is closed in order,
  // which exercises the client's way out as well.
  world_.ThawCrashed(host_);
  CloseGhost(life);
}

void ClientActor::CloseGhost(Life& life) {
  life.reactors[0]->Post([this, &life] {
    life.client->Close(kCloseNs, [this, &life] {
      life.over = true;
      world_.Schedule(0, [this] { BuryGhosts(); });  // Not from inside its own callback.
    });
  });
}

// In the order of their deaths, as the workloads want it.
void ClientActor::BuryGhosts() {
  while (!lives_.empty() && lives_.front()->over) {
    AddStats(lives_.front()->client->session().stats(), &stats_of_dead_);
    lives_.front()->client.reset();
    for (auto& workload : workloads_) workload->Bury();
    lives_.front()->ports.clear();
    lives_.erase(lives_.begin());
  }
}

void ClientActor::Restart() {
  CHECK(!running_);
  world_.RestartHost(host_);
  Start();
}

void ClientActor::AddPath(rtrs::ClientSession& session) {
  rtrs::PathOptions path;
  path.server = options_.servers[prng_.Below(options_.servers.size())];
  path.weight = 1 + static_cast<std::uint32_t>(prng_.Below(200));
  (void)session.AddPath(path);  // Refused if there are enough of them.
}

void ClientActor::ChangePaths() {
  if (!running_) return;
  rtrs::ClientSession& session = lives_.back()->client->session();
  const std::vector<rtrs::PathInfo> paths = session.paths();
  const std::uint64_t dice = prng_.Below(10);
  world_.Trace("change paths", dice, paths.size());
  if (paths.empty() || (dice < 4 && paths.size() < kPathsMax)) return AddPath(session);
  const rtrs::PathInfo& one = paths[prng_.Below(paths.size())];
  if (dice < 7) {
    session.RemovePath(one.id, [](const absl::Status&) {});
  } else if (dice < 9) {
    (void)session.SetPathWeight(one.id, 1 + static_cast<std::uint32_t>(prng_.Below(1000)));
  } else {
    session.SetPolicy(static_cast<rtrs::PathPolicyKind>(prng_.Below(4)));
  }
}

void ClientActor::StartClose() {
  CHECK(running_);
  closing_ = true;
  for (auto& workload : workloads_) workload->OnClosing();
  Life& life = *lives_.back();
  life.client->Close(kCloseNs, [this, &life] {
    closed_ = true;
    life.over = true;
    running_ = false;
    world_.Schedule(0, [this] { BuryGhosts(); });
  });
}

rtrs::ClientSessionStats ClientActor::session_stats() const {
  rtrs::ClientSessionStats sum = stats_of_dead_;
  for (const auto& life : lives_) AddStats(life->client->session().stats(), &sum);
  return sum;
}

std::uint32_t ClientActor::permits_used() const {
  std::uint32_t used = 0;
  rtrs::ClientSession& session = lives_.back()->client->session();
  for (std::size_t i = 0; i < session.lane_count(); ++i) used += session.lane(i).permits_used();
  return used;
}

std::string ClientActor::Describe() const {
  std::string text = options_.name;
  if (running_) absl::StrAppend(&text, ": ", lives_.back()->client->session().Describe());
  if (!given_up_.empty()) absl::StrAppend(&text, ", has given up: ", given_up_);
  for (const auto& workload : workloads_) absl::StrAppend(&text, " / ", workload->Describe());
  return text;
}

}  // namespace ibnbd::sim
