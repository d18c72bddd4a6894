// SPDX-License-Identifier: Apache-2.0
// A client host in the simulated world: the real rnbd::Client with one session, and the workloads
// on its volumes.  It may die and come back: what the dead process had under way may still land.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fabric/sim/sim_world.h"
#include "rnbd/client.h"
#include "rtrs/port.h"
#include "tests/sim/workload.h"

namespace ibnbd::sim {

struct ClientActorOptions {
  std::string name;
  std::vector<SocketAddress> servers;  // Of its paths, one behind the other.
  std::uint32_t paths = 1;             // At first; the others may be added.
  rtrs::PathPolicyKind policy = rtrs::PathPolicyKind::kAdaptive;
  // Non-zero: its next life ends the session that its former life has left, as a daemon's does.
  std::uint64_t client_id = 0;
  // Of its crashes: the application does not die with it, and its next life goes on with what was
  // open.  Needs a client_id.
  std::uint32_t survived_ppm = 0;
  std::uint32_t lanes = 2;
  std::int64_t heartbeat_ns = kNsPerSecond;
  std::vector<WorkloadOptions> workloads;
};

class ClientActor {
 public:
  // `oracles`: by volume.
  ClientActor(World& world, const ClientActorOptions& options,
              const std::vector<std::unique_ptr<VolumeOracle>>& oracles);
  ~ClientActor();  // Requires: closed(), and no ghosts().

  void Start();
  void Crash();    // kill -9; or, if the application dies with it, the host loses power.
  void Restart();  // With a new process under the same name.
  // Adds a path, removes one, or changes a weight or the policy, as the seed draws.
  void ChangePaths();
  void StartClose();
  [[nodiscard]] bool running() const { return running_; }
  [[nodiscard]] bool closed() const { return closed_; }
  [[nodiscard]] bool ghosts() const { return lives_.size() > (running_ ? 1u : 0u); }
  [[nodiscard]] Host& host() { return host_; }
  [[nodiscard]] std::vector<std::unique_ptr<Workload>>& workloads() { return workloads_; }
  [[nodiscard]] rtrs::ClientSessionStats session_stats() const;  // Over all lives: some of it.
  [[nodiscard]] std::uint32_t permits_used() const;              // By its IO lanes.
  [[nodiscard]] std::string Describe() const;

 private:
  // What a crash ends: kept until the ghost has been dismantled in order.
  struct Life {
    std::vector<Reactor*> reactors;  // 0: control.
    std::vector<std::unique_ptr<rtrs::Port>> ports;
    std::unique_ptr<rnbd::Client> client;
    bool dead = false;
    bool over = false;  // Its client has closed.
  };
  void CreateClient(Life& life);
  void StartClient(Life& life);
  void OnGivenUp(const absl::Status& why);
  void AddPath(rtrs::ClientSession& session);
  void CloseGhost(Life& life);
  void BuryGhosts();

  World& world_;
  const ClientActorOptions options_;
  Prng prng_;
  Host& host_;
  std::vector<std::unique_ptr<Workload>> workloads_;
  std::vector<std::unique_ptr<Life>> lives_;  // Ghosts, and then the one that runs.
  rtrs::ClientSessionStats stats_of_dead_;
  std::uint32_t starts_ = 0;
  bool running_ = false;
  bool closing_ = false;
  bool closed_ = false;
  std::string given_up_;  // Why.
};

}  // namespace ibnbd::sim
