// SPDX-License-Identifier: Apache-2.0
// What a volume may answer: a register per sector, judged against the history of writes.
//
//   O1  A read returns, per sector, a value that some linear order of acknowledged and in-doubt
//       writes allows.
//   O2  Each IO completes exactly once (the workload counts; it reports here).
//   O3  What a FLUSH or FUA acknowledged survives a crash of the server, and no FLUSH acknowledges
//       what a crash has undone: it fails once, which takes back the promise.
//   O4  Permits and chunks are conserved: nothing is outstanding when all IOs have completed.
//   O5  Guard bytes between the client's buffers are untouched.
//   O6  After close nothing is left: no region, connection, timer or slot (destructors CHECK it).
//   O7  Two runs of a seed give one trace hash.
//   O8  After the storm every IO completes within a virtual deadline.
//   O9  A volume that stands where another one stood under the same name is never written to by
//       who had opened the other one (the server actor reports it).
//   O10 What a client's next life gets to do again, and what had waited for longer than the loss
//       policy lets it when that life took it, is not done.
//
// Several clients may use one volume.  A flush promises what its own client wrote, as a device's
// flush does; what others wrote it makes stable if it is still there.  If the application outlives
// its client (workload_resume.cc) nothing changes for it, and nothing here: an IO that the next
// life is given again is the same IO, and a flush promises what was acknowledged in any life.
//
// The rule for O1 and O3.  A write that is not acknowledged may be issued again, so until its end
// it may take effect more than once, as on any block device.  Every write has a life [start, end]:
// it began when it was submitted; it took effect by the time it was acknowledged, or first read.
// Value v is allowed for a read that began at `t` unless some write w with start >= v.end took
// effect by `t`, and nothing since can have undone w.  What can undo w is a crash of the server
// before w was stable.  A read that returns v orders the writes that had certainly taken effect
// before it: they came before v and are gone.  When another client has taken the volume over, what
// its former writer has not been answered ends without an answer.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace ibnbd::sim {

using WriteId = std::uint64_t;  // 0: the volume's first content, zeros.
using ClientId = std::uint32_t;

class SectorHistory {
 public:
  SectorHistory();

  void OnWriteStarted(WriteId id, bool zeroes, std::int64_t now, ClientId client = 0);
  // `certain`: acknowledged; otherwise it may or may not have happened.  After `now` it cannot
  // happen any more.
  void OnWriteEnded(WriteId id, bool certain, bool stable, std::int64_t now);
  // A flush of `client` that began at `started` was acknowledged at `now`.
  void OnFlushed(std::int64_t started, std::int64_t now, ClientId client = 0);
  void OnCrash(std::int64_t now);
  // The client was told, by a flush that failed, that a crash may have undone what was acknowledged
  // so far: later flushes do not promise it.
  void OnLossReported(std::int64_t now, ClientId client = 0);
  // The application died or closed the volume, and forgot what it had not flushed: nobody will be
  // told if that is lost, and later flushes do not promise it.
  void OnClientGone(std::int64_t now, ClientId client);
  // `client` asked at `asked` to be let in alone, and was: what others had begun before cannot
  // happen any more.  They are away, and are not let in again with it.
  void OnTakenOver(std::int64_t asked, std::int64_t now, ClientId client);
  // Forgets what no read that began at `oldest_started` or later may return.  If that leaves too
  // much, reads that began before `now` are judged less strictly.
  void Prune(std::int64_t oldest_started, std::int64_t now);

  // No reason: `id` (or some zeroes, if `is_zero`) may be what a read of [started, now] saw.
  // Else why not, and whether a crash would have been an excuse, had nothing been flushed (O3).
  struct Verdict {
    const char* reason = nullptr;
    bool broken_promise = false;
  };
  Verdict CheckRead(WriteId id, bool is_zero, std::int64_t started, std::int64_t now);

 private:
  static constexpr std::int64_t kNever = INT64_MAX;
  struct Write {
    WriteId id = 0;
    ClientId client = 0;
    bool zeroes = false;
    std::int64_t start = 0;
    std::int64_t end = kNever;        // Took effect by then, if it did.
    std::int64_t effective = kNever;  // Certainly took effect by then.
    std::int64_t acked = kNever;
    bool lost = false;                // The client knows that it may be.
    std::int64_t stable = kNever;     // Survives crashes from then on.
    std::int64_t gone = kNever;       // A read showed by then that another write came after it;
    std::int64_t gone_seen = kNever;  // it began then, and no crash since has undone the other one.
  };
  enum class Promises : std::uint8_t { kKept, kForgotten };
  [[nodiscard]] bool Superseded(const Write& candidate, std::int64_t started, std::int64_t now,
                                Promises promises = Promises::kKept) const;
  [[nodiscard]] bool CrashedBetween(std::int64_t begin, std::int64_t end) const;
  static void Promise(Write* write);
  void ForgetBefore(std::int64_t oldest_started);
  [[nodiscard]] bool MayBeUndone(const Write& write, std::int64_t until,
                                 Promises promises = Promises::kKept) const;

  static constexpr std::size_t kPruneSizeMin = 64, kPruneSizeMax = 500;
  std::vector<Write> writes_;
  std::size_t prune_at_ = kPruneSizeMin;
  std::int64_t forgotten_ns_ = -1;
  std::vector<std::int64_t> crashes_;
};

// The finding of an oracle, in one line.
struct Finding {
  std::string oracle;  // "O1".
  std::string text;
};

class VolumeOracle {
 public:
  VolumeOracle(std::uint32_t volume, std::uint64_t sector_count);

  // Several clients write: their ids must differ.
  [[nodiscard]] WriteId NextWriteId() { return next_write_id_++; }
  void OnWriteStarted(WriteId id, bool zeroes, std::uint64_t sector, std::uint64_t count,
                      std::int64_t now, ClientId client = 0);
  void OnWriteEnded(WriteId id, bool certain, bool stable, std::uint64_t sector,
                    std::uint64_t count, std::int64_t now);
  void OnFlushed(std::int64_t started, std::int64_t now, ClientId client = 0);
  void OnCrash(std::int64_t now);
  void OnLossReported(std::int64_t now, ClientId client = 0);
  void OnClientGone(std::int64_t now, ClientId client);
  void OnTakenOver(std::int64_t asked, std::int64_t now, ClientId client);
  [[nodiscard]] std::uint32_t crash_count() const { return crash_count_; }
  void OnReadStarted(std::int64_t started) { reads_started_.insert(started); }
  // A read that began at `started` ended; if it succeeded, OnRead() judges what it returned.
  void OnReadEnded(std::int64_t started) { reads_started_.erase(reads_started_.find(started)); }
  // `bytes` is what a read of `count` sectors returned.
  void OnRead(const std::byte* bytes, std::uint64_t sector, std::uint64_t count,
              std::int64_t started, std::int64_t now);
  void Report(const char* oracle, std::string text) {
    findings_.push_back({oracle, std::move(text)});
  }

  [[nodiscard]] const std::vector<Finding>& findings() const { return findings_; }

  // What a write puts into a sector: its id, the volume and the sector, repeated to fill it.
  static void Fill(std::byte* bytes, std::uint32_t volume, WriteId id, std::uint64_t sector,
                   std::uint64_t count);

 private:
  const std::uint32_t volume_;
  std::vector<SectorHistory> sectors_;
  WriteId next_write_id_ = 1;
  std::uint32_t crash_count_ = 0;
  std::multiset<std::int64_t> reads_started_;  // Of the reads under way.
  std::vector<Finding> findings_;
};

}  // namespace ibnbd::sim
