// SPDX-License-Identifier: Apache-2.0
// A server in the simulated world: the real rnbd::Server on a host of its own, over disks that
// survive its crashes, minus what was not flushed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fabric/sim/sim_world.h"
#include "rnbd/server.h"
#include "rtrs/port.h"
#include "tests/sim/oracle.h"
#include "tests/support/fake_backend.h"

namespace ibnbd::sim {

struct ServerActorOptions {
  std::uint32_t volume_count = 1;
  std::uint64_t sector_count = 96;
  std::uint32_t reactors = 2;
  rnbd::FakeTiming disk_timing{5 * kNsPerUs, 200 * kNsPerUs};
  rnbd::ServerOptions server;
};

class ServerActor {
 public:
  static constexpr std::uint16_t kPort = 1234;

  ServerActor(World& world, const ServerActorOptions& options);
  ~ServerActor();  // Requires: stopped().

  void Start();
  // A power loss changes the instance id that the server says after Restart(); a kill does not.
  // Power loss, or (survive_ppm = 1,000,000 and no torn writes) kill -9.  The oracles are told.
  void Crash(bool power_loss, const std::vector<VolumeOracle*>& oracles);
  void Restart();
  void StartStop();  // SIGTERM.
  [[nodiscard]] bool running() const { return running_; }
  [[nodiscard]] bool stopped() const { return open_stops_ == 0 && !running_; }
  [[nodiscard]] SocketAddress address(std::uint32_t rail = 0) const {
    return host_.Address(kPort, rail);
  }
  [[nodiscard]] Host& host() { return host_; }
  [[nodiscard]] rnbd::FakeDisk& disk(std::uint32_t volume) { return *disks_[volume]; }
  [[nodiscard]] rnbd::ServerStats stats() const { return life_->server->stats(); }

 private:
  // What a crash ends: kept until the ghosts have been dismantled in order.
  struct Life final : public rnbd::ExportProvider {
    absl::StatusOr<std::shared_ptr<rnbd::Export>> Find(const std::string& session_name,
                                                       const std::string& export_name) override;
    std::vector<std::shared_ptr<rnbd::Export>> List(const std::string& session_name) override;
    std::vector<std::unique_ptr<rtrs::Port>> ports;
    std::vector<std::shared_ptr<rnbd::Export>> exports;
    std::vector<rnbd::FakeBackend*> backends;
    std::unique_ptr<rnbd::Server> server;
    Reactor* control = nullptr;
    bool stopped = false;
  };
  void StopLife(Life& life);

  World& world_;
  const ServerActorOptions options_;
  Host& host_;
  std::vector<std::shared_ptr<rnbd::FakeDisk>> disks_;
  std::unique_ptr<Life> life_;
  std::vector<std::unique_ptr<Life>> ghosts_;
  std::uint8_t boot_ = 1;
  bool running_ = false;
  std::uint32_t open_stops_ = 0;
};

}  // namespace ibnbd::sim
