// SPDX-License-Identifier: Apache-2.0
// A server in the simulated world: the real rnbd::Server on a host of its own, over disks that
// survive its crashes, minus what was not flushed.  It also does what careless people do to
// volumes: for a while another volume stands under the name of the right one.
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
  std::vector<std::uint64_t> sector_counts{96};  // Of each volume.
  std::uint32_t reactors = 2;
  rnbd::FakeTiming disk_timing{5 * kNsPerUs, 200 * kNsPerUs};
  rnbd::ServerOptions server;
};

class ServerActor {
 public:
  static constexpr std::uint16_t kPort = 1234;
  // Sessions whose names begin so read the volumes, and write none that others use.
  static constexpr char kHostilePrefix[] = "evil";
  static constexpr std::uint64_t VolumeId(std::uint32_t volume) { return 1000 + volume; }

  // `oracles`: by volume; they are told of power losses, and of O9.
  ServerActor(World& world, const ServerActorOptions& options,
              const std::vector<std::unique_ptr<VolumeOracle>>& oracles);
  ~ServerActor();  // Requires: stopped().

  void Start();
  enum class CrashKind : std::uint8_t { kKill, kPowerLoss };
  // kPowerLoss: what was not flushed may be gone, writes under way are torn, and the machine that
  // comes back says another instance id.  kKill: the process alone dies.
  void Crash(CrashKind kind);
  void StartStop();  // SIGTERM.
  // After Crash(), or after StartStop() once stopped().
  void Restart();

  enum class Impostor : std::uint8_t { kOtherVolume, kSmaller };
  // From now on another volume stands under the name: whoever has the right one open loses it.
  void Replace(std::uint32_t volume, Impostor impostor);
  void PutBack(std::uint32_t volume);
  [[nodiscard]] bool replaced(std::uint32_t volume) const {
    return slots_[volume].impostor != nullptr;
  }
  // The disk answers nothing for a while.
  void HangDisk(std::uint32_t volume);
  void ReleaseDisk(std::uint32_t volume);

  [[nodiscard]] bool running() const { return running_; }
  [[nodiscard]] bool stopped() const { return open_stops_ == 0 && !running_; }
  [[nodiscard]] bool dismantled() const;  // stopped(), and nothing is left of any life.
  [[nodiscard]] SocketAddress address(std::uint32_t rail = 0) const {
    return host_.Address(kPort, rail);
  }
  [[nodiscard]] Host& host() { return host_; }
  [[nodiscard]] rnbd::FakeDisk& disk(std::uint32_t volume) { return *slots_[volume].disk; }
  [[nodiscard]] std::uint32_t volume_count() const {
    return static_cast<std::uint32_t>(slots_.size());
  }
  [[nodiscard]] const rnbd::Server& server() const { return *life_->server; }  // running() only.

 private:
  struct Slot {
    std::shared_ptr<rnbd::FakeDisk> disk;
    std::shared_ptr<rnbd::FakeDisk> impostor;  // Null: the right one is on offer.
    bool hangs = false;
  };
  struct Offer {
    std::shared_ptr<rnbd::Export> exported;
    rnbd::FakeBackend* backend = nullptr;
    std::shared_ptr<rnbd::FakeDisk> disk;
    bool hostile = false;  // For them, and nobody else.
    bool current = true;
  };
  // What a crash ends: kept until the ghosts have been dismantled in order.
  struct Life final : public rnbd::ExportProvider {
    absl::StatusOr<std::shared_ptr<rnbd::Export>> Find(const std::string& session_name,
                                                       const std::string& export_name) override;
    std::vector<std::shared_ptr<rnbd::Export>> List(const std::string& session_name) override;
    [[nodiscard]] bool Locked(const Offer& offer) const;
    std::vector<std::unique_ptr<rtrs::Port>> ports;
    std::vector<Offer> offers;
    std::unique_ptr<rnbd::Server> server;
    Reactor* control = nullptr;
    bool stopped = false;
    bool crashed = false;
  };
  void AddOffers(Life& life, std::uint32_t volume);
  Offer MakeOffer(std::uint32_t volume, bool hostile);
  void WithdrawOffers(std::uint32_t volume);
  void CrashLife(Life& life, CrashKind kind);
  void StopLife(Life& life);
  void EndLife(Life& life);
  void Dismantle(Life& life);
  static bool Quiet(const Life& life);

  World& world_;
  const ServerActorOptions options_;
  const std::vector<std::unique_ptr<VolumeOracle>>& oracles_;
  Prng prng_;
  Host& host_;
  std::vector<Slot> slots_;
  std::unique_ptr<Life> life_;
  std::vector<std::unique_ptr<Life>> ghosts_;
  std::uint8_t boot_ = 1;
  bool running_ = false;
  std::uint32_t open_stops_ = 0;
};

}  // namespace ibnbd::sim
