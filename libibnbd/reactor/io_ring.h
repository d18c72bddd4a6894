// SPDX-License-Identifier: Apache-2.0
// RAII over one io_uring, owned by a reactor and used by everything that lives on it: the tcp
// fabric's sockets, the file backends, the mailbox's eventfd, ublk.  Submissions are collected and
// go to the kernel in one io_uring_enter per turn; completions are dispatched to the IoRingOp that
// was submitted.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "base/intrusive_list.h"

namespace ibnbd {

// One submitted operation; embedded in its owner and must outlive its (last) completion.
class IoRingOp {
 public:
  virtual ~IoRingOp() = default;
  // On the ring's thread.  `result` and `flags` are the CQE's.  Multishot operations get several;
  // the last has no IORING_CQE_F_MORE.  -ECANCELED may come unasked: the kernel cancels what a
  // thread has submitted when that thread ends.  Do it again, unless the ring is abandoned().
  virtual void OnCqe(int result, std::uint32_t flags) = 0;

 private:
  friend class IoRing;
  struct Link : ListHook {
    IoRingOp* op = nullptr;
    std::uint32_t pending_count = 0;  // Final completions that are still to come.
  };
  Link link_;  // On the ring's list while any is pending: found when the ring is lost.
};

class IoRing {
 public:
  // Uses SINGLE_ISSUER, DEFER_TASKRUN (or COOP_TASKRUN) and TASKRUN_FLAG where the kernel has them;
  // falls back without.  May be created and filled on one thread and used on another: the ring
  // belongs to the thread that first submits, to it alone if `thread_bound`.  What another thread
  // prepares later (taking things down after the owner has ended) completes with -ECANCELED.
  static absl::StatusOr<std::unique_ptr<IoRing>> Create(std::uint32_t entries,
                                                        bool thread_bound = true);
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  // A zeroed submission entry bound to `op`; submits what is queued when the queue is full, so it
  // never fails.  Fill it with io_uring_prep_*(), which is given the entry first; user_data is set
  // here and must not be changed: call Prepare() *after* the prep function.  Typical use:
  //   io_uring_sqe* sqe = ring.GetSqe();
  //   io_uring_prep_read(sqe, ...);
  //   ring.Prepare(sqe, op);
  io_uring_sqe* GetSqe();
  void Prepare(io_uring_sqe* sqe, IoRingOp& op);

  // Asks the kernel to cancel `op`; its completion still comes (-ECANCELED, or what it was).
  void Cancel(IoRingOp& op);

  // Submits what is queued and runs deferred kernel work, without waiting; no system call if
  // neither is needed.  True if a system call was made.
  bool Submit();
  // Dispatches completions that are there, at most `budget`; no system call.  Returns how many.
  std::size_t Dispatch(std::size_t budget);
  // True if Dispatch() would find something or the kernel has deferred work for us.
  [[nodiscard]] bool HasWork() const;
  // Submits and sleeps until a completion is there or `timeout_ns` (negative: none) has passed.
  void SubmitAndWait(std::int64_t timeout_ns);

  // Registered buffers: a sparse table of `kBufferSlots`.  Returns a slot index, or -1 if the
  // kernel refuses (memlock, too many): the caller then uses plain addresses.
  int RegisterBuffer(std::span<std::byte> memory);
  void UnregisterBuffer(int slot);

  // So many operations more may wait in worker threads of the kernel's at the same time (fewer, if
  // negative).  By default it is 4 per CPU, for all rings of the thread: as many operations that do
  // not end stop everything else that needs a worker.
  void ChangeWorkersMax(int count);

  // Its thread has ended, and it was bound to it: all completes with -ECANCELED.
  [[nodiscard]] bool abandoned() const { return abandoned_; }

  [[nodiscard]] int fd() const { return ring_.ring_fd; }
  [[nodiscard]] std::uint64_t enter_count() const { return enter_count_; }
  [[nodiscard]] std::uint32_t inflight_count() const { return inflight_count_; }

  static constexpr unsigned kBufferSlots = 1024;

 private:
  IoRing() = default;
  void Enable();
  int Enter(unsigned wait_count, std::int64_t timeout_ns);
  void Abandon();
  void CompleteOne(IoRingOp& op, int result, std::uint32_t flags);
  [[nodiscard]] bool KernelHasWork() const;

  io_uring ring_{};
  bool created_ = false;
  bool enabled_ = false;    // Created disabled: SINGLE_ISSUER binds to the thread that enables it.
  bool abandoned_ = false;  // The owner's thread has ended; nothing goes to the kernel any more.
  int owner_tid_ = 0;
  IntrusiveList<IoRingOp::Link> inflight_;
  bool buffers_ready_ = false;
  std::uint64_t enter_count_ = 0;
  std::uint32_t inflight_count_ = 0;
  unsigned workers_base_ = 0;  // What the kernel began with; 0: it was not asked yet.
  int workers_added_ = 0;
  std::unique_ptr<bool[]> buffer_used_;
};

}  // namespace ibnbd
