// SPDX-License-Identifier: Apache-2.0
// One thread of nbd-bridge or of ibnbd-client's daemon: an io_uring for sockets and kernel devices,
// and one queue of each session, polled once per turn.  A turn collects socket completions
// (requests are decoded and submitted), polls the queues (the IOs leave in one batch; callbacks
// mark connections), lets marked connections send their replies, and enters the kernel once if
// there is something to submit.  When a turn found nothing the loop spins on user-space memory for
// a short, adaptive time and then sleeps in its own ring, into which the queues' file descriptors
// report.
#pragma once

#include <liburing.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "base/clock.h"
#include "base/intrusive_list.h"
#include "base/unique_fd.h"
#include "ibnbd/ibnbd.h"

namespace ibnbd::bridge {

// A submitted operation; embedded in its owner, which must outlive the completion.
class RingOp {
 public:
  virtual ~RingOp() = default;
  virtual void OnCqe(int result) = 0;
};

// Something that lives on a loop and wants its turn's end, or a tick.
class LoopMember {
 public:
  struct TurnHook : ListHook {
    explicit TurnHook(LoopMember& m) : member(m) {}
    LoopMember& member;
  };
  struct TickHook : ListHook {
    explicit TickHook(LoopMember& m) : member(m) {}
    LoopMember& member;
  };

  virtual ~LoopMember() = default;
  // Once after RequestTurnEnd().  May destroy the member.
  virtual void OnTurnEnd() = 0;
  virtual void OnTick() = 0;   // About once a second.  May not destroy any member.
  virtual void OnDrain() = 0;  // The loop is to end.  May not destroy any member.

 private:
  friend class EventLoop;
  TurnHook turn_hook_{*this};  // On turn_end_, or on retry_.
  TickHook tick_hook_{*this};
};

class EventLoop {
 public:
  using Task = absl::AnyInvocable<void()>;
  static constexpr std::int64_t kSpinNsMax = 50 * kNsPerUs;

  // `queues` are those of the sessions that belong to this loop from the start.
  EventLoop(const Clock& clock, const std::vector<ibnbd_queue*>& queues);
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // --- Any thread. ---
  void Post(Task task);
  // OnDrain() for every member; Run() returns when there is none left, or at the deadline.
  void StartDrain(std::int64_t deadline_ns);

  // --- The loop's thread. ---
  absl::Status Run();
  [[nodiscard]] std::int64_t now_ns() const { return now_ns_; }  // Of this turn.
  // Never fails: submits what is queued when the queue is full.  Fill it, then Bind() it.
  io_uring_sqe* GetSqe();
  void Bind(io_uring_sqe* sqe, RingOp& op) { io_uring_sqe_set_data(sqe, &op); }
  void Cancel(RingOp& op);  // Its completion still comes.
  // Sessions that come and go while the loop runs.  After RemoveQueue() the loop knows nothing of
  // the queue, and the session may be closed.
  void AddQueue(ibnbd_queue* queue);
  void RemoveQueue(ibnbd_queue* queue);

  void Add(LoopMember& member);
  void Remove(LoopMember& member);
  void RequestTurnEnd(LoopMember& member);
  // As RequestTurnEnd(), but after the next turn in which an IO completed, or at the next tick: for
  // those to whom a queue said -EAGAIN.
  void RequestRetry(LoopMember& member);
  // IOs were submitted outside of a socket completion; they leave before the loop sleeps.
  void NoteSubmitted() { submitted_ = true; }
  // True a few times a second, so that hostile clients cannot fill the log.
  bool MayLog();

  [[nodiscard]] std::uint64_t enter_count() const { return enter_count_; }

 private:
  class PollOp;
  class WakeOp;
  struct PolledQueue {
    ibnbd_queue* queue;
    std::unique_ptr<PollOp> op;  // Tells, while the loop sleeps, that the queue has something.
  };
  absl::Status CreateRing();
  bool RunTurn();
  void RunTurnEnds();
  void RunTick();
  bool DrainMailbox();
  bool DispatchCqes();
  bool PollQueues();
  void SubmitPending();
  [[nodiscard]] bool RingHasWork() const;
  bool Spin();
  void Sleep();
  void AdaptSpin(std::int64_t slept_ns);

  const Clock& clock_;
  std::vector<PolledQueue> queues_;
  std::unique_ptr<WakeOp> wake_op_;
  io_uring ring_{};
  bool ring_created_ = false;
  bool deferred_ = false;  // DEFER_TASKRUN: the kernel runs its work for us when we enter.
  bool submitted_ = false;
  std::int64_t now_ns_ = 0;
  std::int64_t next_tick_ns_ = 0;
  std::int64_t spin_ns_ = 0;
  std::int64_t drain_deadline_ns_ = -1;
  std::uint64_t enter_count_ = 0;
  int logs_left_ = 0;
  std::uint64_t logs_dropped_ = 0;

  IntrusiveList<LoopMember::TurnHook> turn_end_;
  IntrusiveList<LoopMember::TurnHook> retry_;
  IntrusiveList<LoopMember::TickHook> members_;

  // The mailbox: control plane only (new connections, the end).
  UniqueFd wake_fd_;
  std::atomic<bool> has_mail_{false};
  std::mutex mail_mutex_;
  std::vector<Task> mail_;
};

}  // namespace ibnbd::bridge
