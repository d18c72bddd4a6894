// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/server_actor.h"

#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace ibnbd::sim {
namespace {
constexpr std::int64_t kStopNs = 5 * kNsPerSecond;
constexpr std::int64_t kDismantleNs = 100 * kNsPerMs;
// What impostors contain, and what hostile clients may write to: no oracle knows of it.
constexpr std::uint64_t kImpostorId = 0xbad0'0000;
}  // namespace

absl::StatusOr<std::shared_ptr<rnbd::Export>> ServerActor::Life::Find(
    const std::string& session_name, const std::string& export_name) {
  const bool hostile = absl::StartsWith(session_name, kHostilePrefix);
  for (const Offer& offer : offers) {
    if (!offer.current || offer.hostile != hostile || offer.exported->name != export_name) continue;
    if (Locked(offer)) return absl::UnavailableError("the image is locked by its former export");
    return offer.exported;
  }
  return absl::NotFoundError(absl::StrCat("no export ", export_name));
}

// As the lock on an image does it: two exports of one medium do not write at once.
bool ServerActor::Life::Locked(const Offer& offer) const {
  for (const Offer& other : offers) {
    const bool same = other.disk == offer.disk && !other.hostile && !offer.hostile;
    if (same && !other.current && other.backend->queue_count() > 0) return true;
  }
  return false;
}

std::vector<std::shared_ptr<rnbd::Export>> ServerActor::Life::List(
    const std::string& session_name) {
  const bool hostile = absl::StartsWith(session_name, kHostilePrefix);
  std::vector<std::shared_ptr<rnbd::Export>> result;
  for (const Offer& offer : offers) {
    if (offer.current && offer.hostile == hostile) result.push_back(offer.exported);
  }
  return result;
}

ServerActor::ServerActor(World& world, const ServerActorOptions& options,
                         const std::vector<std::unique_ptr<VolumeOracle>>& oracles)
    : world_(world),
      options_(options),
      oracles_(oracles),
      prng_(world.prng().Fork()),
      host_(world.AddHost("server")) {
  for (const std::uint64_t sector_count : options_.sector_counts) {
    Slot slot;
    slot.disk =
        std::make_shared<rnbd::FakeDisk>(rnbd::FakeGeometry(sector_count * rnbd::kSectorSize));
    slot.disk->set_volume_id(VolumeId(volume_count()));
    slots_.push_back(std::move(slot));
  }
}

ServerActor::~ServerActor() { CHECK(stopped()); }

ServerActor::Offer ServerActor::MakeOffer(std::uint32_t volume, bool hostile) {
  Slot& slot = slots_[volume];
  const bool impostor = slot.impostor != nullptr;
  auto backend = std::make_unique<rnbd::FakeBackend>(impostor ? slot.impostor : slot.disk,
                                                     options_.disk_timing, prng_.Next());
  backend->on_submit = [this, volume, impostor](const rnbd::BackendIo& io) {
    std::uint64_t write_id = 0;  // The second word of what the workload writes.
    if (io.op == rnbd::BackendOp::kWrite) std::memcpy(&write_id, &io.data[8], sizeof write_id);
    world_.Trace("disk: volume and op, first sector, sectors, write",
                 100 * volume + static_cast<std::uint64_t>(io.op), io.offset / rnbd::kSectorSize,
                 io.length / rnbd::kSectorSize, write_id);
    const bool writes = io.op != rnbd::BackendOp::kRead && io.op != rnbd::BackendOp::kFlush;
    if (!impostor || !writes) return;
    oracles_[volume]->Report(
        "O9", absl::StrCat("volume ", volume, " is another one now, and was written to, sector ",
                           io.offset / rnbd::kSectorSize, ", write ", write_id));
  };
  if (slot.hangs) backend->HoldIos();
  Offer offer;
  offer.backend = backend.get();
  offer.disk = impostor ? slot.impostor : slot.disk;
  offer.hostile = hostile;
  offer.exported = std::make_shared<rnbd::Export>();
  offer.exported->name = absl::StrCat("vol", volume);
  offer.exported->read_only = hostile;
  offer.exported->backend = std::move(backend);
  return offer;
}

void ServerActor::AddOffers(Life& life, std::uint32_t volume) {
  for (const bool hostile : {false, true}) life.offers.push_back(MakeOffer(volume, hostile));
}

void ServerActor::Start() {
  life_ = std::make_unique<Life>();
  for (std::uint32_t i = 0; i < volume_count(); ++i) AddOffers(*life_, i);
  std::vector<rtrs::Port*> ports;
  for (std::uint32_t i = 0; i < options_.reactors; ++i) {
    Reactor& reactor = host_.AddReactor(Turns::kWithWork);
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

void ServerActor::Crash(CrashKind kind) {
  CHECK(running_);
  running_ = false;
  CrashLife(*life_, kind);
  ghosts_.push_back(std::move(life_));
  StopLife(*ghosts_.back());
}

void ServerActor::CrashLife(Life& life, CrashKind kind) {
  life.crashed = true;
  world_.CrashHost(host_);
  const bool power_loss = kind == CrashKind::kPowerLoss;
  for (const Offer& offer : life.offers) {
    offer.backend->Crash(prng_, power_loss ? 300'000 : 1'000'000);
    offer.backend->Release();
  }
  for (Slot& slot : slots_) slot.hangs = false;
  if (power_loss) {
    ++boot_;
    for (const auto& oracle : oracles_) oracle->OnCrash(world_.now_ns());
  }
  // The ghosts are cut off from the world; they see their connections break and are closed in
  // order, which exercises the server's way out as well.
  world_.ThawCrashed(host_);
}

void ServerActor::Restart() {
  CHECK(!running_);
  if (host_.crashed()) world_.RestartHost(host_);
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
    life.server->Stop(kStopNs, [this, &life] {
      life.stopped = true;
      // Not from inside its own callback.
      world_.Schedule(0, [this, &life] { EndLife(life); });
    });
  });
}

// The process exits.  If it has run out of time (a clock that jumped is enough), then with IOs
// under way and connections open: as if it had been killed.
void ServerActor::EndLife(Life& life) {
  if (!Quiet(life) && !host_.crashed() && !life.crashed) {
    world_.Trace("stop ran out of time");
    CrashLife(life, CrashKind::kKill);
  }
  --open_stops_;
  Dismantle(life);
}

bool ServerActor::Quiet(const Life& life) {
  const rnbd::ServerStats stats = life.server->stats();
  return stats.sessions == 0 && stats.chunk_memory == 0;
}

void ServerActor::Dismantle(Life& life) {
  if (!Quiet(life)) {
    world_.Schedule(kDismantleNs, [this, &life] { Dismantle(life); });
    return;
  }
  life.server.reset();
  life.offers.clear();
  life.ports.clear();
}

bool ServerActor::dismantled() const {
  if (!stopped()) return false;
  for (const auto& life : ghosts_) {
    if (life->server != nullptr) return false;
  }
  return true;
}

void ServerActor::WithdrawOffers(std::uint32_t volume) {
  const std::string name = absl::StrCat("vol", volume);
  for (Offer& offer : life_->offers) {
    if (!offer.current || offer.exported->name != name) continue;
    offer.current = false;
    offer.backend->Release();
    life_->control->Post([life = life_.get(), exported = offer.exported] {
      if (!life->stopped) life->server->Revoke(*exported);
    });
  }
}

void ServerActor::Replace(std::uint32_t volume, Impostor impostor) {
  Slot& slot = slots_[volume];
  const std::uint64_t size_bytes = slot.disk->geometry().size_bytes;
  const bool smaller = impostor == Impostor::kSmaller;
  slot.impostor = std::make_shared<rnbd::FakeDisk>(
      rnbd::FakeGeometry(smaller ? size_bytes - rnbd::kSectorSize : size_bytes));
  // A smaller one without an id: its size alone tells.
  slot.impostor->set_volume_id(smaller ? 0 : kImpostorId + volume);
  const std::span<std::byte> content = slot.impostor->current();
  VolumeOracle::Fill(content.data(), kImpostorId, kImpostorId, 0,
                     content.size() / rnbd::kSectorSize);
  world_.Trace("volume replaced", volume, smaller ? 1 : 0);
  if (!running_) return;
  WithdrawOffers(volume);
  AddOffers(*life_, volume);
}

void ServerActor::PutBack(std::uint32_t volume) {
  world_.Trace("volume put back", volume);
  if (running_) WithdrawOffers(volume);
  slots_[volume].impostor.reset();
  if (running_) AddOffers(*life_, volume);
}

void ServerActor::HangDisk(std::uint32_t volume) {
  world_.Trace("disk hangs", volume);
  slots_[volume].hangs = true;
  if (!running_) return;
  for (const Offer& offer : life_->offers) {
    if (offer.current && offer.exported->name == absl::StrCat("vol", volume)) {
      offer.backend->HoldIos();
    }
  }
}

void ServerActor::ReleaseDisk(std::uint32_t volume) {
  slots_[volume].hangs = false;
  if (!running_) return;
  for (const Offer& offer : life_->offers) offer.backend->Release();
}

}  // namespace ibnbd::sim
