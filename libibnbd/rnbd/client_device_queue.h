// SPDX-License-Identifier: Apache-2.0
// One lane's view of a device: takes the user's IOs, cuts them into parts of what one message
// carries, and keeps them, in order of submission, until they are done.  While the device is not
// open they stay; when it is open again, what was lost is issued again from the start.  On the
// lane's thread, but for what says otherwise.
//
//   Q1  Every IO is on ios_ from Submit() until it completes, in order of submission.
//   Q2  An IO completes only when none of its parts is out: nothing touches its memory then (S2).
//   Q3  IOs before next_ want no part to be issued, unless the device is not open.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/intrusive_list.h"
#include "base/slot_pool.h"
#include "proto/rnbd.h"
#include "rnbd/client.h"
#include "rnbd/client_ledger.h"
#include "rtrs/client_lane.h"
#include "rtrs/port.h"

namespace ibnbd::rnbd {

class DeviceQueueImpl final : public DeviceQueue, private rtrs::PortClient {
 public:
  // What control says when a device is open (again).
  struct Opened {
    std::uint32_t generation = 0;  // Counts opens; parts carry the one they were made under.
    std::uint32_t device_id = 0;
    bool preflush_flag = false;  // The server understands F_PREFLUSH.
    // The server's machine may not be the one that acknowledged parts before: an IO of which some
    // are done must not count on them.
    bool restart = false;
    bool writes_lost = false;  // It is not, and completed writes may be gone (C5).
    std::uint32_t loss = 0;    // The number of the last such loss.
  };
  // The device's ledger, and which of its lanes this queue is.
  struct LedgerShare {
    std::shared_ptr<WriteLedger> ledger;
    std::size_t lane = 0;
  };

  // `on_not_open(generation)` is called, on the lane's thread, when the server says that it does
  // not have the device open.
  DeviceQueueImpl(rtrs::ClientLane& lane, const DeviceInfo& info, std::uint32_t io_parts_max,
                  LedgerShare ledger, std::function<void(std::uint32_t)> on_not_open);
  ~DeviceQueueImpl() override;  // Requires: TearDown() was called, or Attach() never.

  int Submit(Io& io) override;
  [[nodiscard]] const Stats& stats() const override { return stats_; }

  // --- From the control thread, by Reactor::Post(). ---
  void Attach();
  void SetOpen(const Opened& opened);
  void SetHeld();
  void SetFailing();  // The loss policy's time is over.
  void CancelAll();   // The device is being closed and its deadline is over.
  void TearDown();    // Requires: no IO outstanding.
  // Appends what is outstanding, as far as `out` has room without allocating.
  void ListIos(std::uint32_t lane, std::vector<OutstandingIo>* out);

  // --- Any thread. ---
  [[nodiscard]] rtrs::ClientLane& lane() { return lane_; }
  void StartClosing() { closing_.store(true, std::memory_order_relaxed); }
  void GrowTo(std::uint64_t size_bytes) {
    size_bytes_.store(size_bytes, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint32_t outstanding() const {
    return outstanding_.load(std::memory_order_acquire);
  }

 private:
  enum class State : std::uint8_t {
    kHeld,       // Waits for SetOpen().
    kOpen,       // IOs flow.
    kFailing,    // IOs fail with -ETIMEDOUT; waits for SetOpen().
    kCancelled,  // IOs fail with -ECANCELED; waits for TearDown().
  };
  // Of an IO.  Flushes are made for pre-flush and FUA where the server has no flag for them.
  enum Phase : std::uint8_t { kPreflush, kData, kPostflush };

  struct Part final : rtrs::ClientRequest {
    void OnDone(int error) override { queue->OnPartDone(*this, error); }
    DeviceQueueImpl* queue = nullptr;
    Io* io = nullptr;
    std::uint32_t index = 0;
    std::uint32_t generation = 0;
    bool flushes = false;
    std::uint64_t covered = 0;  // If it flushes: the ledger's sum when it was made.
    proto::Io io_message;
  };

  void OnCompletion(const rtrs::CookieParts&, const fabric::Completion&) override {}
  void OnCmEvent(fabric::CmEvent&) override {}
  void OnTurnEnd() override;

  [[nodiscard]] int Check(const Io& io) const;
  [[nodiscard]] int CheckRange(const Io& io) const;
  [[nodiscard]] std::uint64_t PartSizeMax(const Io& io) const;
  [[nodiscard]] bool NeedsPreflush(const Io& io) const;
  [[nodiscard]] bool NeedsPostflush(const Io& io) const;
  [[nodiscard]] bool WantsPart(Io& io) const;
  [[nodiscard]] bool IsBarrier(const Io& io) const;
  void BeginNew(Io& io) const;
  void Begin(Io& io) const;
  void Issue();
  void IssuePart(Io& io);
  void FillData(Part& part, Io& io);
  void FillFlush(Part& part);
  void ReportLoss(Io& io);
  void OnPartDone(Part& part, int error);
  void NoteLoss(std::uint32_t generation, int error);
  void Settle(Io& io);
  void Rewind() { next_ = ios_.empty() ? nullptr : &ios_.front(); }
  void Complete(Io& io, int error);
  void CompleteIdle(int error);
  [[nodiscard]] int EndError() const;  // Of the states that end IOs; 0 in the others.

  rtrs::ClientLane& lane_;
  const DeviceInfo info_;                  // A copy: the queue may outlive the device for a while.
  std::atomic<std::uint64_t> size_bytes_;  // What info_ says, or more: volumes grow.
  const std::function<void(std::uint32_t)> on_not_open_;
  State state_ = State::kHeld;
  Opened opened_;
  const LedgerShare ledger_;
  bool loss_to_report_ = false;  // Completed writes may be gone, and nobody on this lane knows yet.
  bool attached_ = false;
  std::uint64_t context_ = 0;
  SlotPool<Part> parts_;
  IntrusiveList<Io> ios_;
  Io* next_ = nullptr;
  Stats stats_;
  std::atomic<bool> closing_{false};
  std::atomic<std::uint32_t> outstanding_{0};
};

}  // namespace ibnbd::rnbd
