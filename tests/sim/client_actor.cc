// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/client_actor.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"
#include "base/check.h"

namespace ibnbd::sim {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::size_t kGuardSize = 512;
constexpr std::byte kGuard{0xa5};

}  // namespace

ClientActor::ClientActor(World& world, std::string name, SocketAddress server,
                         const WorkloadOptions& options, VolumeOracle& oracle)
    : world_(world),
      options_(options),
      oracle_(oracle),
      prng_(world.prng().Fork()),
      host_(world.AddHost(name)),
      server_(server) {
  loss_reports_.resize(options_.lanes);
  std::vector<rtrs::Port*> lanes;
  for (std::uint32_t i = 0; i <= options_.lanes; ++i) {
    reactors_.push_back(&host_.AddReactor());
    auto port = rtrs::Port::Create(*reactors_.back(), host_.fabric());
    CHECK(port.ok());
    ports_.push_back(*std::move(port));
    if (i > 0) lanes.push_back(ports_.back().get());
  }
  const std::size_t stride = options_.io_sectors_max * kSector + 2 * kGuardSize;
  auto arena = Arena::Create(stride * options_.io_depth);
  CHECK(arena.ok());
  arena_ = *std::move(arena);
  std::fill(arena_.bytes().begin(), arena_.bytes().end(), kGuard);
  auto region = host_.fabric().Register(arena_.bytes(), fabric::Access::kRemoteWrite);
  CHECK(region.ok());
  region_ = *std::move(region);
  for (std::uint32_t i = 0; i < options_.io_depth; ++i) {
    auto worker = std::make_unique<Worker>();
    worker->actor = this;
    worker->index = i;
    worker->lane = i % options_.lanes;
    worker->buffer = arena_.bytes().subspan(i * stride + kGuardSize, stride - 2 * kGuardSize);
    workers_.push_back(std::move(worker));
  }
  rnbd::Client::Options client_options;
  client_options.session.name = std::move(name);
  client_options.session.server = server_;
  for (const SocketAddress& more : options_.more_servers) {
    client_options.session.more_paths.push_back({more});
  }
  client_options.session.policy = options_.policy;
  client_options.session.seed = prng_.Next();
  client_options.session.heartbeat_interval_ns = options_.heartbeat_ns;
  auto client = rnbd::Client::Create(client_options, *ports_[0], lanes);
  CHECK(client.ok());
  client_ = *std::move(client);
}

ClientActor::~ClientActor() {
  CHECK(closed_);
  client_.reset();
  region_.reset();
  ports_.clear();
}

void ClientActor::Start() {
  client_->Start(/*retry=*/true, [this](const absl::Status& status) {
    if (status.ok()) OpenDevice();
  });
}

void ClientActor::OpenDevice() {
  rnbd::LossPolicy policy;
  policy.fail_after_ns = options_.fail_after_ns;
  client_->OpenDevice(absl::StrFormat("vol%d", options_.volume), rnbd::AccessMode::kReadWrite,
                      policy, [this](absl::StatusOr<rnbd::Device*> device) {
                        if (!device.ok()) {
                          // The storm may refuse the first open: try again, as a person would.
                          ++counts_.opens_refused;
                          world_.Schedule(50 * kNsPerMs, [this] {
                            if (submitting_) OpenDevice();
                          });
                          return;
                        }
                        device_ = *device;
                        for (auto& worker : workers_) Think(*worker, options_.think_ns_max);
                      });
}

void ClientActor::Think(Worker& worker, std::int64_t think_ns_max) {
  world_.Schedule(prng_.Between(0, think_ns_max), [this, &worker] {
    // A world event is outside every reactor; mail puts it on the lane's.
    reactors_[worker.lane + 1]->Post([this, &worker] { Submit(worker); });
  });
}

void ClientActor::DrawIo(Worker& worker) {
  const std::uint64_t count = 1 + prng_.Below(options_.io_sectors_max);
  const std::uint64_t sector = prng_.Below(options_.sector_count - count + 1);
  worker.offset = sector * kSector;
  worker.length = count * kSector;
  worker.fua = worker.preflush = worker.no_unmap = false;
  worker.data = {};
  worker.lkey = worker.rkey = 0;
  const std::uint64_t dice = prng_.Below(100);
  if (dice < 40) {
    worker.op = rnbd::IoOp::kRead;
  } else if (dice < 85) {
    worker.op = rnbd::IoOp::kWrite;
    worker.fua = prng_.Chance(150'000);
    worker.preflush = prng_.Chance(50'000);
  } else if (dice < 92) {
    worker.op = rnbd::IoOp::kFlush;
    worker.offset = worker.length = 0;
  } else if (dice < 97) {
    worker.op = rnbd::IoOp::kWriteZeroes;
    worker.no_unmap = prng_.Chance(500'000);
    worker.fua = prng_.Chance(200'000);
  } else {
    worker.op = rnbd::IoOp::kDiscard;
  }
  if (worker.op == rnbd::IoOp::kRead || worker.op == rnbd::IoOp::kWrite) {
    worker.data = worker.buffer.first(worker.length);
    worker.lkey = region_->lkey();
    worker.rkey = region_->rkey();
  }
}

void ClientActor::Submit(Worker& worker) {
  if (!submitting_ || device_ == nullptr) return;
  DrawIo(worker);
  worker.started_ns = world_.now_ns();
  const std::uint64_t sector = worker.offset / kSector, count = worker.length / kSector;
  switch (worker.op) {
    case rnbd::IoOp::kWrite:
      worker.write_id = next_write_id_++;
      VolumeOracle::Fill(worker.data.data(), options_.volume, worker.write_id, sector, count);
      oracle_.OnWriteStarted(worker.write_id, false, sector, count, worker.started_ns);
      ++counts_.writes;
      break;
    case rnbd::IoOp::kWriteZeroes:
    case rnbd::IoOp::kDiscard:
      worker.write_id = next_write_id_++;
      oracle_.OnWriteStarted(worker.write_id, true, sector, count, worker.started_ns);
      ++(worker.op == rnbd::IoOp::kDiscard ? counts_.discards : counts_.zeroes);
      break;
    case rnbd::IoOp::kRead:
      std::fill(worker.data.begin(), worker.data.end(), std::byte{0xee});  // Not valid content.
      oracle_.OnReadStarted(worker.started_ns);
      ++counts_.reads;
      break;
    default:
      ++counts_.flushes;
      break;
  }
  ++outstanding_;
  ++counts_.submitted;
  CHECK(!worker.outstanding);
  worker.outstanding = true;
  world_.Trace("io submitted: op, first sector, sectors, write",
               static_cast<std::uint64_t>(worker.op), sector, count, worker.write_id);
  const int error = device_->queue(worker.lane).Submit(worker);
  if (error != 0) {
    oracle_.Report("O2", absl::StrFormat("a valid IO (op %d offset %d length %d) was refused: %s",
                                         static_cast<int>(worker.op), worker.offset, worker.length,
                                         strerror(-error)));
    worker.outstanding = false;
    --outstanding_;
  }
}

void ClientActor::OnDone(Worker& worker, int error) {
  if (!worker.outstanding) {
    oracle_.Report("O2", absl::StrFormat("worker %d: an IO completed twice", worker.index));
    return;
  }
  worker.outstanding = false;
  --outstanding_;
  ++counts_.completed;
  world_.Trace("io done: volume and op, first sector, errno, write",
               100 * options_.volume + static_cast<std::uint64_t>(worker.op),
               worker.offset / kSector, static_cast<std::uint64_t>(-error), worker.write_id);
  Judge(worker, error);
  CheckGuards(worker);
  // A volume whose loss policy has ended fails at once: trying again at once would teach nothing.
  Think(worker, error == 0 ? options_.think_ns_max : 20 * kNsPerMs);
}

void ClientActor::Judge(Worker& worker, int error) {
  const std::int64_t now = world_.now_ns();
  const bool closing = error == -ECANCELED || error == -ESHUTDOWN;
  if (error == -ETIMEDOUT && options_.fail_after_ns >= 0) {
    ++counts_.timeouts;
  } else if (error == -EIO && TakeLossReport(worker)) {
    oracle_.OnLossReported(now);
  } else if (error != 0 && !(error == -EIO && options_.backend_may_fail) && !closing) {
    oracle_.Report("O2",
                   absl::StrFormat("op %d at %d ended with an error nobody caused: %s",
                                   static_cast<int>(worker.op), worker.offset, strerror(-error)));
  }
  if (error != 0) ++counts_.errors;
  if (error == 0) {
    // The device has been open since: what was in doubt before this IO began cannot land any more.
    auto landed = std::remove_if(in_doubt_.begin(), in_doubt_.end(), [&](const InDoubt& doubt) {
      if (doubt.since_ns > worker.started_ns) return false;
      oracle_.OnWriteEnded(doubt.id, false, false, doubt.sector, doubt.count, now);
      return true;
    });
    in_doubt_.erase(landed, in_doubt_.end());
  }
  const std::uint64_t sector = worker.offset / kSector, count = worker.length / kSector;
  switch (worker.op) {
    case rnbd::IoOp::kRead:
      oracle_.OnReadEnded(worker.started_ns);
      if (error == 0) oracle_.OnRead(worker.data.data(), sector, count, worker.started_ns, now);
      break;
    case rnbd::IoOp::kFlush:
      if (error == 0) oracle_.OnFlushed(worker.started_ns, now);
      break;
    default:
      EndWrite(worker, error);
      break;
  }
}

// A flush, or a write with pre-flush, may fail once per lane and power loss.
bool ClientActor::TakeLossReport(const Worker& worker) {
  if (worker.op != rnbd::IoOp::kFlush && !worker.preflush) return false;
  LossReports& reports = loss_reports_[worker.lane];
  if (worker.started_ns <= reports.last_ns) return true;  // With the one that was told first.
  if (reports.count >= oracle_.crash_count()) return false;
  ++reports.count;
  reports.last_ns = world_.now_ns();
  return true;
}

void ClientActor::EndWrite(Worker& worker, int error) {
  const std::int64_t now = world_.now_ns();
  const std::uint64_t sector = worker.offset / kSector, count = worker.length / kSector;
  if (error == 0) {
    if (worker.preflush) oracle_.OnFlushed(worker.started_ns, now);
    // A discard promises nothing about what is read afterwards.
    const bool certain = worker.op != rnbd::IoOp::kDiscard;
    oracle_.OnWriteEnded(worker.write_id, certain, worker.fua, sector, count, now);
  } else if (error == -EIO) {
    oracle_.OnWriteEnded(worker.write_id, false, false, sector, count,
                         now);  // The server has answered.
  } else {
    in_doubt_.push_back({worker.write_id, sector, count, now});
  }
}

void ClientActor::CheckGuards(const Worker& worker) {
  const std::byte* before = worker.buffer.data() - kGuardSize;
  const std::byte* after = worker.buffer.data() + worker.buffer.size();
  const auto intact = [](const std::byte* guard) {
    return std::all_of(guard, guard + kGuardSize, [](std::byte b) { return b == kGuard; });
  };
  if (!intact(before) || !intact(after)) {
    oracle_.Report(
        "O5", absl::StrFormat("worker %d: guard bytes around its buffer changed", worker.index));
  }
}

void ClientActor::StartClose() {
  submitting_ = false;
  client_->Close(5 * kNsPerSecond, [this] {
    device_ = nullptr;
    closed_ = true;
  });
}

std::string ClientActor::Describe() const {
  std::string text = absl::StrFormat("volume %d: %d outstanding; %s", options_.volume, outstanding_,
                                     client_->session().Describe());
  if (device_ != nullptr) absl::StrAppend(&text, "; device: ", device_->state_reason());
  for (const auto& worker : workers_) {
    if (!worker->outstanding) continue;
    absl::StrAppendFormat(&text, "; worker %d op %d offset %d since %d ns", worker->index,
                          static_cast<int>(worker->op), worker->offset, worker->started_ns);
  }
  return text;
}

}  // namespace ibnbd::sim
