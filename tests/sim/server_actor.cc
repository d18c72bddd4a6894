// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/server_actor.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace ibnbd::sim {

absl::StatusOr<std::shared_ptr<rnbd::Export>> ServerActor::Life::Find(
    const std::string& /*session_name*/, const std::string& export_name) {
  for (const auto& exported : exports) {
    if (exported->name == export_name) return exported;
  }
  return absl::NotFoundError(absl::StrCat("no export ", export_name));
}

std::vector<std::shared_ptr<rnbd::Export>> ServerActor::Life::List(
    const std::string& /*session_name*/) {
  return exports;
}

ServerActor::ServerActor(World& world, const ServerActorOptions& options)
    : world_(world), options_(options), host_(world.AddHost("server")) {
  for (std::uint32_t i = 0; i < options_.volume_count; ++i) {
    auto disk = std::make_shared<rnbd::FakeDisk>(
        rnbd::FakeGeometry(options_.sector_count * rnbd::kSectorSize));
    disk->set_volume_id(1000 + i);
    disks_.push_back(std::move(disk));
  }
}

ServerActor::~ServerActor() { CHECK(stopped()); }

void ServerActor::Start() {
  life_ = std::make_unique<Life>();
  for (std::uint32_t i = 0; i < options_.volume_count; ++i) {
    auto backend =
        std::make_unique<rnbd::FakeBackend>(disks_[i], options_.disk_timing, world_.prng().Next());
    life_->backends.push_back(backend.get());
    backend->on_submit = [this, i](const rnbd::BackendIo& io) {
      std::uint64_t write_id = 0;  // The second word of what the workload writes.
      if (io.op == rnbd::BackendOp::kWrite) std::memcpy(&write_id, &io.data[8], sizeof write_id);
      world_.Trace("disk: volume and op, first sector, sectors, write",
                   100 * i + static_cast<std::uint64_t>(io.op), io.offset / rnbd::kSectorSize,
                   io.length / rnbd::kSectorSize, write_id);
    };
    auto exported = std::make_shared<rnbd::Export>();
    exported->name = absl::StrCat("vol", i);
    exported->backend = std::move(backend);
    life_->exports.push_back(std::move(exported));
  }
  std::vector<rtrs::Port*> ports;
  for (std::uint32_t i = 0; i < options_.reactors; ++i) {
    Reactor& reactor = host_.AddReactor();
    if (i == 0) life_->control = &reactor;
    auto port = rtrs::Port::Create(reactor, host_.fabric());
    CHECK(port.ok());
    life_->ports.push_back(*std::move(port));
    ports.push_back(life_->ports.back().get());
  }
  rnbd::ServerOptions server_options = options_.server;
  server_options.instance_id[0] = boot_;
  auto server = rnbd::Server::Create(ports, server_options, *life_);
  CHECK(server.ok());
  life_->server = *std::move(server);
  CHECK(life_->server->Listen(Host::AnyAddress(kPort)).ok());
  running_ = true;
}

void ServerActor::Crash(bool power_loss, const std::vector<VolumeOracle*>& oracles) {
  CHECK(running_);
  running_ = false;
  world_.CrashHost(host_);
  for (rnbd::FakeBackend* backend : life_->backends) {
    backend->Crash(world_.prng(), power_loss ? 300'000 : 1'000'000);
  }
  if (power_loss) {
    ++boot_;
    for (VolumeOracle* oracle : oracles) oracle->OnCrash(world_.now_ns());
  }
  // The ghosts are cut off from the world; they see their connections break and are closed in
  // order, which exercises the server's way out as well.
  world_.ThawCrashed(host_);
  ghosts_.push_back(std::move(life_));
  StopLife(*ghosts_.back());
}

void ServerActor::Restart() {
  CHECK(!running_);
  world_.RestartHost(host_);
  Start();
}

void ServerActor::StartStop() {
  CHECK(running_);
  running_ = false;
  ghosts_.push_back(std::move(life_));
  StopLife(*ghosts_.back());
}

void ServerActor::StopLife(Life& life) {
  ++open_stops_;
  life.control->Post([this, &life] {
    life.server->Stop(5 * kNsPerSecond, [this, &life] {
      life.stopped = true;
      --open_stops_;
      // Not from inside its own callback.
      world_.Schedule(0, [&life] {
        life.server.reset();
        life.exports.clear();
        life.ports.clear();
      });
    });
  });
}

}  // namespace ibnbd::sim
