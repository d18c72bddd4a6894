// SPDX-License-Identifier: Apache-2.0
// What a client does with one volume, over all lives of the client: it opens the device, keeps
// io_depth IOs under way, and holds every answer against the volume's oracle.
//
// The application may outlive the client, as a file system on a kernel device outlives the daemon:
// then the kernel keeps what was not answered for the client's next life, which goes on with the
// device, and no promise ends (workload_resume.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/arena.h"
#include "fabric/sim/sim_world.h"
#include "rnbd/client.h"
#include "tests/sim/oracle.h"

namespace ibnbd::sim {

struct WorkloadOptions {
  ClientId client = 0;
  std::uint32_t volume = 0;
  std::uint64_t volume_id = 0;  // What it must be: as a daemon would remember.
  std::uint64_t sector_count = 96;
  rnbd::AccessMode mode = rnbd::AccessMode::kReadWrite;
  bool contended = false;  // Another client wants it as exclusively: being kept out is in order.
  // Of a migration: wants it for itself, its guest does not.  Kept out only if it opens it anew
  // while the guest is there, or if the guest has another number: it came while this one was away.
  bool source = false;
  // Contended, and the server never forgets who wrote last: what another client holds when this one
  // is let in cannot land any more.
  bool takes_over = false;
  std::uint32_t io_depth = 8;
  // Larger than one chunk carries, most of the time: splitting is part of the game.
  std::uint32_t io_sectors_max = 32;
  std::uint32_t part_sectors_max = 16;  // What one chunk carries.
  std::int64_t fail_after_ns = -1;      // Loss policy.
  std::int64_t think_ns_max = 200 * kNsPerUs;
  // After so many IOs it slows down: another seed teaches more than more of the same.
  std::uint64_t fast_ios = 2000;
  std::uint32_t read_percent = 40;
  bool backend_may_fail = false;  // EIO is then an answer, not a finding.
};

struct WorkloadCounts {
  std::uint64_t submitted = 0, completed = 0, abandoned = 0;
  std::uint64_t reads = 0, writes = 0, flushes = 0, zeroes = 0, discards = 0;
  std::uint64_t errors = 0, timeouts = 0, cancelled = 0, opens = 0, opens_refused = 0;
  std::uint64_t wrong_volumes = 0, resumes = 0;
  void Add(const WorkloadCounts& other);
};

class Workload {
 public:
  Workload(World& world, const WorkloadOptions& options, VolumeOracle& oracle);
  ~Workload();  // Requires: no life is left (Bury() was called for each).

  [[nodiscard]] const WorkloadOptions& options() const { return options_; }

  // --- The lives of the client, one after the other. ---
  // `lanes`: the reactors of the client's lanes.
  void Begin(rnbd::Client& client, fabric::Fabric& fabric, std::vector<Reactor*> lanes);
  void OnSessionReady();
  // The client dies, and what it says from now on means nothing.  What is under way is kept for its
  // next life if the application outlives it, and if the device was open; else it is in doubt.
  void OnCrash(bool application_survives);
  // Instead of OnSessionReady(), in a life that goes on with the device; it has started already.
  [[nodiscard]] bool resumable() const { return resumable_; }
  void Resume();
  // The client has been closed, or its ghost has: its memory may go.  The oldest life first.
  void Bury();

  void Reopen();     // Closes the device, with IOs under way, and opens it again.
  void OnClosing();  // The client is about to be closed.
  void SetFailAfter(std::int64_t fail_after_ns);
  // No more IOs are submitted; idle() once all have completed.
  void StopSubmitting() { submitting_ = false; }
  [[nodiscard]] bool idle() const { return outstanding_ == 0; }
  [[nodiscard]] bool open() const;
  // It has had the volume open, and goes on with that when it can; with this number.
  [[nodiscard]] bool has_device() const;
  [[nodiscard]] std::uint16_t writer_epoch() const;
  [[nodiscard]] const WorkloadCounts& counts() const { return counts_; }
  [[nodiscard]] std::string Describe() const;

 private:
  struct Crew;
  // One of io_depth workers: thinks, submits, judges the answer, thinks again.
  class Worker final : public rnbd::Io {
   public:
    void OnIoDone(int error) override;
    Crew* crew = nullptr;
    std::uint32_t index = 0;
    std::uint32_t lane = 0;
    bool outstanding = false;
    bool too_old = false;  // The loss policy's time was over when this life took it: it must fail.
    WriteId write_id = 0;
    std::int64_t started_ns = 0;
    std::span<std::byte> buffer;  // Between guard bytes.
  };
  // What belongs to one life of the client.
  struct Crew {
    Workload* workload = nullptr;
    bool dead = false;
    rnbd::Client* client = nullptr;
    rnbd::Device* device = nullptr;
    std::uint32_t openings = 0;  // Of the device: thoughts of earlier ones mean nothing.
    std::vector<Reactor*> lanes;
    Arena arena;
    std::unique_ptr<fabric::Region> region;
    std::vector<std::unique_ptr<Worker>> workers;
  };

  // An IO that the life before has not answered.
  struct LeftOver {
    std::uint32_t worker;
    rnbd::IoOp op;
    bool fua, preflush, no_unmap;
    std::uint64_t offset, length;
    WriteId write_id;
    std::int64_t started_ns;
  };
  // What a daemon writes down of its device, every second.  Times are the host's.
  struct Note {
    rnbd::DevicePast past;
    std::int64_t waits_since_ns = 0;  // The loss of the server; without one, when it was noted.
  };

  [[nodiscard]] bool Alive(std::uint32_t life) const;
  void TakeNote(Crew& crew);
  void NoteLater(Crew& crew, std::int64_t delay_ns);
  void LeaveIos(Crew& crew);
  void GiveUpIos(Crew& crew);
  void AbandonLeftOvers();
  void Abandon(const LeftOver& io);
  void SubmitLeftOvers(Crew& crew, std::uint32_t lane, bool too_old);
  void PrepareData(Worker& worker);
  void OpenDevice(Crew& crew);
  void OpenLater(Crew& crew, std::int64_t delay_ns);
  void OnOpened(Crew& crew, absl::StatusOr<rnbd::Device*> device, std::int64_t asked_ns);
  void Think(Worker& worker, std::int64_t think_ns_max);
  void Submit(Worker& worker);
  void DrawIo(Worker& worker);
  void DrawOp(Worker& worker);
  void StartIo(Worker& worker);
  void GiveToDevice(Worker& worker);
  void OnDone(Worker& worker, int error);
  void Judge(Worker& worker, int error);
  void JudgeError(Worker& worker, int error);
  void EndDoubts(std::int64_t started_ns);
  void EndWrite(Worker& worker, int error);
  void TakeDoubt(WriteId id, std::uint64_t sector, std::uint64_t count);
  bool TakeLossReport(const Worker& worker);
  void CheckGuards(const Worker& worker);

  World& world_;
  WorkloadOptions options_;
  VolumeOracle& oracle_;
  Prng prng_;
  std::vector<std::unique_ptr<Crew>> crews_;  // The last one is alive, unless dead.
  // Writes whose fate the workload was not told.  They may still take effect until the device is
  // open again, which the first later success proves.
  struct InDoubt {
    WriteId id;
    std::uint64_t sector, count;
    std::int64_t since_ns;
  };
  std::vector<InDoubt> in_doubt_;
  // What each lane was told of power losses: once each, to all that were under way at that time.
  struct LossReports {
    std::uint32_t count = 0;
    std::int64_t last_ns = -1;
  };
  std::vector<LossReports> loss_reports_;
  std::vector<LeftOver> left_over_;  // Not given to the device again yet; in order of submission.
  std::optional<Note> note_;         // Of the device that is open, or is to be resumed.
  std::int64_t away_since_ns_ = 0;   // At the crash: since when no IO could end; the host's time.
  bool resumable_ = false;
  std::uint32_t lives_ = 0;
  std::uint32_t outstanding_ = 0;
  bool submitting_ = true;
  bool fails_after_ = false;  // A loss policy was set at any time.
  WorkloadCounts counts_;
};

}  // namespace ibnbd::sim
