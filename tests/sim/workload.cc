// SPDX-License-Identifier: Apache-2.0
// Opening, and IOs until they are submitted.  What comes back is judged in workload_judge.cc.
#include "tests/sim/workload.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/check.h"

namespace ibnbd::sim {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::size_t kGuardSize = 512;
constexpr std::byte kGuard{0xa5};
constexpr std::size_t kDoubtsMax = 50;
constexpr std::int64_t kSlowThinkNs = 100 * kNsPerMs;
constexpr std::int64_t kOpenRetryNs = 50 * kNsPerMs;
constexpr std::int64_t kCloseNs = 200 * kNsPerMs;

}  // namespace

Workload::Workload(World& world, const WorkloadOptions& options, VolumeOracle& oracle)
    : world_(world),
      options_(options),
      oracle_(oracle),
      prng_(world.prng().Fork()),
      fails_after_(options.fail_after_ns >= 0) {}

Workload::~Workload() { CHECK(crews_.empty()); }

void Workload::Begin(rnbd::Client& client, fabric::Fabric& fabric, std::vector<Reactor*> lanes) {
  auto crew = std::make_unique<Crew>();
  crew->workload = this;
  crew->client = &client;
  crew->lanes = std::move(lanes);
  loss_reports_.assign(crew->lanes.size(), LossReports());
  const std::size_t stride = options_.io_sectors_max * kSector + 2 * kGuardSize;
  auto arena = Arena::Create(stride * options_.io_depth);
  CHECK(arena.ok());
  crew->arena = *std::move(arena);
  std::fill(crew->arena.bytes().begin(), crew->arena.bytes().end(), kGuard);
  auto region = fabric.Register(crew->arena.bytes(), fabric::Access::kRemoteWrite);
  CHECK(region.ok());
  crew->region = *std::move(region);
  for (std::uint32_t i = 0; i < options_.io_depth; ++i) {
    auto worker = std::make_unique<Worker>();
    worker->crew = crew.get();
    worker->index = i;
    worker->lane = i % static_cast<std::uint32_t>(crew->lanes.size());
    worker->buffer = crew->arena.bytes().subspan(i * stride + kGuardSize, stride - 2 * kGuardSize);
    crew->workers.push_back(std::move(worker));
  }
  crews_.push_back(std::move(crew));
  ++lives_;
}

// What was meant for a life that is over is not even looked at: it may be buried.
bool Workload::Alive(std::uint32_t life) const {
  return life == lives_ && !crews_.empty() && !crews_.back()->dead;
}

void Workload::OnSessionReady() { OpenDevice(*crews_.back()); }

void Workload::OpenLater(Crew& crew, std::int64_t delay_ns) {
  world_.Schedule(delay_ns, [this, crew = &crew, life = lives_] {
    // A crew that is dead may be buried: it is not looked at.
    if (!Alive(life) || !submitting_) return;
    OpenDevice(*crew);
  });
}

void Workload::OpenDevice(Crew& crew) {
  rnbd::LossPolicy policy;
  policy.fail_after_ns = options_.fail_after_ns;
  crew.client->OpenDevice(absl::StrFormat("vol%d", options_.volume), options_.mode, policy,
                          [this, &crew, asked_ns = world_.now_ns()](auto device) {
                            if (!crew.dead) OnOpened(crew, device, asked_ns);
                          });
}

void Workload::OnOpened(Crew& crew, absl::StatusOr<rnbd::Device*> device, std::int64_t asked_ns) {
  if (!device.ok()) {
    // The storm may refuse an open: try again, as a person would.
    ++counts_.opens_refused;
    return OpenLater(crew, kOpenRetryNs);
  }
  if ((*device)->info().volume_id != options_.volume_id) {
    // Not the one that this client has used before its death: a daemon would not take it either.
    ++counts_.wrong_volumes;
    crew.client->CloseDevice(*device, kCloseNs, [this, &crew] {
      if (!crew.dead) OpenLater(crew, kOpenRetryNs);
    });
    return;
  }
  ++counts_.opens;
  if (options_.takes_over) oracle_.OnTakenOver(asked_ns, world_.now_ns(), options_.client);
  ++crew.openings;
  crew.device = *device;
  if (options_.fail_after_ns >= 0) SetFailAfter(options_.fail_after_ns);
  TakeNote(crew);
  NoteLater(crew, prng_.Between(0, kNsPerSecond));
  for (auto& worker : crew.workers) Think(*worker, options_.think_ns_max);
}

bool Workload::has_device() const {
  return !crews_.empty() && !crews_.back()->dead && crews_.back()->device != nullptr;
}

std::uint16_t Workload::writer_epoch() const {
  return crews_.back()->device->past().info.writer_epoch;  // The last that it was told.
}

bool Workload::open() const {
  if (!has_device()) return false;
  return crews_.back()->device->state() == rnbd::DeviceState::kOpen;
}

void Workload::SetFailAfter(std::int64_t fail_after_ns) {
  options_.fail_after_ns = fail_after_ns;
  fails_after_ |= fail_after_ns >= 0;
  if (crews_.empty() || crews_.back()->dead || crews_.back()->device == nullptr) return;
  rnbd::LossPolicy policy;
  policy.fail_after_ns = fail_after_ns;
  crews_.back()->client->SetLossPolicy(crews_.back()->device, policy);
}

void Workload::Reopen() {
  if (crews_.empty() || crews_.back()->dead || crews_.back()->device == nullptr) return;
  Crew& crew = *crews_.back();
  AbandonLeftOvers();
  note_.reset();
  rnbd::Device* device = std::exchange(crew.device, nullptr);
  crew.client->CloseDevice(device, kCloseNs, [this, &crew] {
    if (crew.dead) return;
    oracle_.OnClientGone(world_.now_ns(), options_.client);
    for (auto& worker : crew.workers) {
      if (worker->outstanding) oracle_.Report("O2", "a device closed before its IOs had ended");
    }
    OpenLater(crew, 0);
  });
}

void Workload::OnClosing() {
  submitting_ = false;
  AbandonLeftOvers();
  if (!crews_.empty()) crews_.back()->device = nullptr;
}

void Workload::Bury() {
  CHECK(!crews_.empty());
  for (const auto& worker : crews_.front()->workers) CHECK(!worker->outstanding);
  crews_.erase(crews_.begin());
}

void Workload::Think(Worker& worker, std::int64_t think_ns_max) {
  Crew* crew = worker.crew;
  if (counts_.submitted > options_.fast_ios) think_ns_max = std::max(think_ns_max, kSlowThinkNs);
  world_.Schedule(prng_.Between(0, think_ns_max),
                  [this, crew, &worker, opening = crew->openings, life = lives_] {
                    if (!Alive(life)) return;
                    // A world event is outside every reactor; mail puts it on the lane's.
                    crew->lanes[worker.lane]->Post([this, crew, &worker, opening, life] {
                      if (Alive(life) && opening == crew->openings) Submit(worker);
                    });
                  });
}

void Workload::DrawOp(Worker& worker) {
  const std::uint64_t dice = prng_.Below(100);
  // Who keeps writing while nothing comes through would fill the oracle with doubts.
  const bool only_reads =
      options_.mode == rnbd::AccessMode::kReadOnly || in_doubt_.size() > kDoubtsMax;
  if (dice < options_.read_percent || only_reads) {
    worker.op = rnbd::IoOp::kRead;
  } else if (dice < 85) {
    worker.op = rnbd::IoOp::kWrite;
    worker.fua = prng_.Chance(150'000);
    worker.preflush = prng_.Chance(50'000);
  } else if (dice < 92) {
    worker.op = rnbd::IoOp::kFlush;
  } else if (dice < 97) {
    worker.op = rnbd::IoOp::kWriteZeroes;
    worker.no_unmap = prng_.Chance(500'000);
    worker.fua = prng_.Chance(200'000);
  } else {
    worker.op = rnbd::IoOp::kDiscard;
  }
}

void Workload::DrawIo(Worker& worker) {
  const std::uint64_t count_max = std::min<std::uint64_t>(options_.io_sectors_max,  //
                                                          options_.sector_count);
  const std::uint64_t count = 1 + prng_.Below(count_max);
  const std::uint64_t sector = prng_.Below(options_.sector_count - count + 1);
  worker.offset = sector * kSector;
  worker.length = count * kSector;
  worker.fua = worker.preflush = worker.no_unmap = false;
  DrawOp(worker);
  if (worker.op == rnbd::IoOp::kFlush) worker.offset = worker.length = 0;
}

// What the buffer holds when the IO is given to the device, each time.
void Workload::PrepareData(Worker& worker) {
  worker.data = {};
  worker.keys = nullptr;
  if (worker.op != rnbd::IoOp::kRead && worker.op != rnbd::IoOp::kWrite) return;
  worker.data = worker.buffer.first(worker.length);
  worker.keys = &worker.crew->region->keys();
  if (worker.op == rnbd::IoOp::kRead) {
    std::fill(worker.data.begin(), worker.data.end(), std::byte{0xee});  // Not valid content.
    return;
  }
  VolumeOracle::Fill(worker.data.data(), options_.volume, worker.write_id, worker.offset / kSector,
                     worker.length / kSector);
}

// What the oracle must know before the IO can take effect.
void Workload::StartIo(Worker& worker) {
  const std::uint64_t sector = worker.offset / kSector, count = worker.length / kSector;
  const bool zeroes = worker.op == rnbd::IoOp::kWriteZeroes || worker.op == rnbd::IoOp::kDiscard;
  if (worker.op == rnbd::IoOp::kWrite || zeroes) {
    worker.write_id = oracle_.NextWriteId();
    oracle_.OnWriteStarted(worker.write_id, zeroes, sector, count, worker.started_ns,
                           options_.client);
  }
  if (worker.op == rnbd::IoOp::kRead) oracle_.OnReadStarted(worker.started_ns);
  counts_.reads += worker.op == rnbd::IoOp::kRead;
  counts_.writes += worker.op == rnbd::IoOp::kWrite;
  counts_.flushes += worker.op == rnbd::IoOp::kFlush;
  counts_.zeroes += worker.op == rnbd::IoOp::kWriteZeroes;
  counts_.discards += worker.op == rnbd::IoOp::kDiscard;
}

void Workload::Submit(Worker& worker) {
  if (!submitting_ || worker.crew->device == nullptr || worker.outstanding) return;
  DrawIo(worker);
  worker.started_ns = world_.now_ns();
  worker.too_old = false;
  StartIo(worker);
  ++outstanding_;
  ++counts_.submitted;
  GiveToDevice(worker);
}

void Workload::GiveToDevice(Worker& worker) {
  PrepareData(worker);
  worker.outstanding = true;
  world_.Trace("io submitted: client and op, first sector, sectors, write",
               100 * options_.client + static_cast<std::uint64_t>(worker.op),
               worker.offset / kSector, worker.length / kSector, worker.write_id);
  const int error = worker.crew->device->queue(worker.lane).Submit(worker);
  if (error == 0) return;
  oracle_.Report("O2", absl::StrFormat("a valid IO (op %d offset %d length %d) was refused: %s",
                                       static_cast<int>(worker.op), worker.offset, worker.length,
                                       strerror(-error)));
  worker.outstanding = false;
  --outstanding_;
  ++counts_.abandoned;
}

void Workload::CheckGuards(const Worker& worker) {
  const std::byte* before = worker.buffer.data() - kGuardSize;
  const std::byte* after = worker.buffer.data() + worker.buffer.size();
  const auto intact = [](const std::byte* guard, std::size_t size) {
    return std::all_of(guard, guard + size, [](std::byte b) { return b == kGuard; });
  };
  if (!intact(before, kGuardSize) || !intact(after, kGuardSize)) {
    oracle_.Report(
        "O5", absl::StrFormat("worker %d: guard bytes around its buffer changed", worker.index));
  }
}

}  // namespace ibnbd::sim
