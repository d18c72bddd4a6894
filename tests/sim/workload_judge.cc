// SPDX-License-Identifier: Apache-2.0
// What comes back, held against the oracle.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"
#include "tests/sim/workload.h"

namespace ibnbd::sim {
namespace {
constexpr std::uint64_t kSector = 512;
}  // namespace

void WorkloadCounts::Add(const WorkloadCounts& other) {
  submitted += other.submitted;
  completed += other.completed;
  abandoned += other.abandoned;
  reads += other.reads;
  writes += other.writes;
  flushes += other.flushes;
  zeroes += other.zeroes;
  discards += other.discards;
  errors += other.errors;
  timeouts += other.timeouts;
  cancelled += other.cancelled;
  opens += other.opens;
  opens_refused += other.opens_refused;
  wrong_volumes += other.wrong_volumes;
  resumes += other.resumes;
}

void Workload::Worker::OnIoDone(int error) {
  if (!crew->dead) crew->workload->OnDone(*this, error);
}

void Workload::OnDone(Worker& worker, int error) {
  if (!worker.outstanding) {
    oracle_.Report("O2", absl::StrFormat("worker %d: an IO completed twice", worker.index));
    return;
  }
  worker.outstanding = false;
  --outstanding_;
  ++counts_.completed;
  world_.Trace("io done: client and op, first sector, errno, write",
               100 * options_.client + static_cast<std::uint64_t>(worker.op),
               worker.offset / kSector, static_cast<std::uint64_t>(-error), worker.write_id);
  Judge(worker, error);
  CheckGuards(worker);
  // A volume whose loss policy has ended fails at once: trying again at once would teach nothing.
  Think(worker, error == 0 ? options_.think_ns_max : 20 * kNsPerMs);
}

void Workload::JudgeError(Worker& worker, int error) {
  ++counts_.errors;
  if (error == -ETIMEDOUT && fails_after_) {
    ++counts_.timeouts;
  } else if (error == -ECANCELED && worker.crew->device == nullptr) {
    ++counts_.cancelled;  // The device is being closed.
  } else if (error == -EIO && TakeLossReport(worker)) {
    oracle_.OnLossReported(world_.now_ns(), options_.client);
  } else if (!(error == -EIO && options_.backend_may_fail)) {
    oracle_.Report("O2", absl::StrFormat("client %d op %d at %d ended with an error nobody caused: "
                                         "%s",
                                         options_.client, static_cast<int>(worker.op),
                                         worker.offset, strerror(-error)));
  }
}

void Workload::Judge(Worker& worker, int error) {
  const std::int64_t now = world_.now_ns();
  if (error != 0) JudgeError(worker, error);
  if (error == 0 && worker.too_old) {
    oracle_.Report("O10",
                   absl::StrFormat("client %d op %d at %d was done although its time was over "
                                   "when its device was resumed",
                                   options_.client, static_cast<int>(worker.op), worker.offset));
  }
  if (error == 0) EndDoubts(worker.started_ns);
  const std::uint64_t sector = worker.offset / kSector, count = worker.length / kSector;
  switch (worker.op) {
    case rnbd::IoOp::kRead:
      oracle_.OnReadEnded(worker.started_ns);
      if (error == 0) oracle_.OnRead(worker.data.data(), sector, count, worker.started_ns, now);
      break;
    case rnbd::IoOp::kFlush:
      if (error == 0) oracle_.OnFlushed(worker.started_ns, now, options_.client);
      break;
    default:
      EndWrite(worker, error);
      break;
  }
}

// The device has been open since: what was in doubt before this IO began cannot land any more.
void Workload::EndDoubts(std::int64_t started_ns) {
  const std::int64_t now = world_.now_ns();
  const auto landed = std::remove_if(in_doubt_.begin(), in_doubt_.end(), [&](const InDoubt& doubt) {
    if (doubt.since_ns > started_ns) return false;
    oracle_.OnWriteEnded(doubt.id, false, false, doubt.sector, doubt.count, now);
    return true;
  });
  in_doubt_.erase(landed, in_doubt_.end());
}

// A flush, or a write with pre-flush, may fail once per lane and power loss.
bool Workload::TakeLossReport(const Worker& worker) {
  if (worker.op != rnbd::IoOp::kFlush && !worker.preflush) return false;
  LossReports& reports = loss_reports_[worker.lane];
  if (worker.started_ns <= reports.last_ns) return true;  // With the one that was told first.
  if (reports.count >= oracle_.crash_count()) return false;
  ++reports.count;
  reports.last_ns = world_.now_ns();
  return true;
}

void Workload::TakeDoubt(WriteId id, std::uint64_t sector, std::uint64_t count) {
  in_doubt_.push_back({id, sector, count, world_.now_ns()});
}

void Workload::EndWrite(Worker& worker, int error) {
  const std::int64_t now = world_.now_ns();
  const std::uint64_t sector = worker.offset / kSector, count = worker.length / kSector;
  if (error == 0) {
    if (worker.preflush) oracle_.OnFlushed(worker.started_ns, now, options_.client);
    // A discard promises nothing about what is read afterwards.
    const bool certain = worker.op != rnbd::IoOp::kDiscard;
    oracle_.OnWriteEnded(worker.write_id, certain, worker.fua, sector, count, now);
  } else if (error == -EIO && count <= options_.part_sectors_max) {
    oracle_.OnWriteEnded(worker.write_id, false, false, sector, count,
                         now);  // The server has answered.
  } else {
    // Of several parts one may have failed and another be lost on its way.
    TakeDoubt(worker.write_id, sector, count);
  }
}

std::string Workload::Describe() const {
  std::string text = absl::StrFormat("client %d volume %d: %d outstanding", options_.client,
                                     options_.volume, outstanding_);
  if (crews_.empty()) return text + ", no life";
  const Crew& crew = *crews_.back();
  if (crew.dead) text += ", dead";
  if (crew.device != nullptr) {
    absl::StrAppendFormat(&text, ", device state %d: %s", static_cast<int>(crew.device->state()),
                          crew.device->state_reason());
  }
  for (const auto& worker : crew.workers) {
    if (!worker->outstanding) continue;
    absl::StrAppendFormat(&text, "; worker %d op %d offset %d since %d ns", worker->index,
                          static_cast<int>(worker->op), worker->offset, worker->started_ns);
  }
  return text;
}

}  // namespace ibnbd::sim
