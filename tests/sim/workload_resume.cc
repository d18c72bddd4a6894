// SPDX-License-Identifier: Apache-2.0
// The client's deaths.  An application that outlives them is that of a kernel device: it is told
// nothing, the kernel keeps its unanswered IOs, and the next life of the client, which knows of the
// device what was noted up to a second before, gets them all again.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "tests/sim/workload.h"

namespace ibnbd::sim {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::int64_t kNoteEveryNs = kNsPerSecond;
// So soon after it was resumed a device has not been opened yet if its time was over.
constexpr std::int64_t kFailsAtLeastNs = 400 * kNsPerMs;

}  // namespace

// As ibnbd-client/mapping/device_table_threads.cc does it.
void Workload::TakeNote(Crew& crew) {
  const std::int64_t now = crew.lanes[0]->clock().NowNs();
  note_ = Note{crew.device->past(), now};
  note_->waits_since_ns = now - note_->past.held_ns;
}

void Workload::NoteLater(Crew& crew, std::int64_t delay_ns) {
  world_.Schedule(delay_ns, [this, crew = &crew, opening = crew.openings, life = lives_] {
    if (!Alive(life) || crew->device == nullptr || opening != crew->openings) return;
    TakeNote(*crew);
    NoteLater(*crew, kNoteEveryNs);
  });
}

void Workload::OnCrash(bool application_survives) {
  if (crews_.empty() || crews_.back()->dead) return;
  Crew& crew = *crews_.back();
  crew.dead = true;
  resumable_ = application_survives && crew.device != nullptr && note_.has_value();
  if (resumable_) {
    away_since_ns_ = crew.lanes[0]->clock().NowNs() - crew.device->past().held_ns;
    LeaveIos(crew);
  } else {
    GiveUpIos(crew);
    note_.reset();
    oracle_.OnClientGone(world_.now_ns(), options_.client);
  }
  crew.device = nullptr;
}

// The application goes on waiting.
void Workload::LeaveIos(Crew& crew) {
  for (auto& worker : crew.workers) {
    if (!std::exchange(worker->outstanding, false)) continue;
    left_over_.push_back({worker->index, worker->op, worker->fua, worker->preflush,
                          worker->no_unmap, worker->offset, worker->length, worker->write_id,
                          worker->started_ns});
  }
  std::stable_sort(
      left_over_.begin(), left_over_.end(),
      [](const LeftOver& one, const LeftOver& two) { return one.started_ns < two.started_ns; });
}

void Workload::GiveUpIos(Crew& crew) {
  LeaveIos(crew);
  AbandonLeftOvers();
}

// Nobody waits for them any more.
void Workload::AbandonLeftOvers() {
  for (const LeftOver& io : left_over_) Abandon(io);
  left_over_.clear();
}

void Workload::Abandon(const LeftOver& io) {
  --outstanding_;
  ++counts_.abandoned;
  if (io.op == rnbd::IoOp::kRead) {
    oracle_.OnReadEnded(io.started_ns);
  } else if (io.op != rnbd::IoOp::kFlush) {
    TakeDoubt(io.write_id, io.offset / kSector, io.length / kSector);
  }
}

void Workload::Resume() {
  CHECK(resumable_);
  resumable_ = false;
  Crew& crew = *crews_.back();
  const std::int64_t now = crew.lanes[0]->clock().NowNs();
  rnbd::DevicePast past = note_->past;
  past.held_ns = now - note_->waits_since_ns;
  const std::int64_t fail_after_ns = options_.fail_after_ns;
  const auto device = crew.client->ResumeDevice(past, options_.mode, {fail_after_ns});
  CHECK(device.ok());
  crew.client->SettleDevice(*device, kFailsAtLeastNs);
  crew.device = *device;
  ++crew.openings;
  ++counts_.resumes;
  TakeNote(crew);
  NoteLater(crew, prng_.Between(0, kNoteEveryNs));
  const bool too_old = fail_after_ns >= 0 && now - away_since_ns_ >= fail_after_ns;
  for (auto& worker : crew.workers) {
    const bool waits = std::any_of(left_over_.begin(), left_over_.end(),
                                   [&](const LeftOver& io) { return io.worker == worker->index; });
    if (!waits) Think(*worker, options_.think_ns_max);
  }
  // The kernel device is taken over at once, or a little later.
  const std::int64_t delay_ns = prng_.Chance(500'000) ? 0 : prng_.Between(0, 300 * kNsPerMs);
  world_.Schedule(
      delay_ns, [this, crew = &crew, opening = crew.openings, life = lives_, now, too_old] {
        for (std::uint32_t lane = 0; Alive(life) && lane < crew->lanes.size(); ++lane) {
          crew->lanes[lane]->Post([this, crew, opening, life, lane, now, too_old] {
            if (!Alive(life) || crew->device == nullptr || opening != crew->openings) return;
            const bool soon = crew->lanes[lane]->clock().NowNs() - now < kFailsAtLeastNs;
            SubmitLeftOvers(*crew, lane, too_old && soon);
          });
        }
      });
}

// In their order, with their data.
void Workload::SubmitLeftOvers(Crew& crew, std::uint32_t lane, bool too_old) {
  std::vector<LeftOver> mine;
  std::erase_if(left_over_, [&](const LeftOver& io) {
    const bool here = crew.workers[io.worker]->lane == lane;
    if (here) mine.push_back(io);
    return here;
  });
  for (const LeftOver& io : mine) {
    Worker& worker = *crew.workers[io.worker];
    CHECK(!worker.outstanding);
    worker.op = io.op;
    worker.fua = io.fua;
    worker.preflush = io.preflush;
    worker.no_unmap = io.no_unmap;
    worker.offset = io.offset;
    worker.length = io.length;
    worker.write_id = io.write_id;
    worker.started_ns = io.started_ns;
    worker.too_old = too_old;
    GiveToDevice(worker);
  }
}

}  // namespace ibnbd::sim
