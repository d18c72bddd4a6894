// SPDX-License-Identifier: Apache-2.0
// See event_loop.h.
#include "nbd-bridge/event_loop.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd::bridge {
namespace {

constexpr unsigned kEntries = 1024;
constexpr unsigned kCqeBudget = 256;
constexpr std::int64_t kSpinStartNs = 8 * kNsPerUs;
constexpr int kLogsPerTick = 10;

inline void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

// Tells that a queue has something.  One shot, armed before a sleep; it stays armed if something
// else ended the sleep.
class EventLoop::PollOp final : public RingOp {
 public:
  void OnCqe(int /*result*/) override {
    armed_ = false;
    if (orphaned_) delete this;
  }
  void Arm(EventLoop& loop, int fd) {
    if (armed_) return;
    armed_ = true;
    io_uring_sqe* sqe = loop.GetSqe();
    io_uring_prep_poll_add(sqe, fd, POLLIN);
    loop.Bind(sqe, *this);
  }
  // Its queue goes away; an armed poll lives on until its completion has come.
  static void Retire(EventLoop& loop, std::unique_ptr<PollOp> op) {
    if (!op->armed_) return;
    op->orphaned_ = true;
    loop.Cancel(*op.release());
  }

 private:
  bool armed_ = false;
  bool orphaned_ = false;
};

// Reads the mailbox's eventfd.
class EventLoop::WakeOp final : public RingOp {
 public:
  WakeOp(EventLoop& loop, int fd) : loop_(loop), fd_(fd) {}
  void Arm() {
    io_uring_sqe* sqe = loop_.GetSqe();
    io_uring_prep_read(sqe, fd_, &value_, sizeof(value_), 0);
    loop_.Bind(sqe, *this);
  }
  void OnCqe(int /*result*/) override { Arm(); }

 private:
  EventLoop& loop_;
  const int fd_;
  std::uint64_t value_ = 0;
};

EventLoop::EventLoop(const Clock& clock, const std::vector<ibnbd_queue*>& queues)
    : clock_(clock), wake_fd_(::eventfd(0, EFD_CLOEXEC)) {
  CHECK(wake_fd_.valid());
  for (ibnbd_queue* queue : queues) AddQueue(queue);
  wake_op_ = std::make_unique<WakeOp>(*this, wake_fd_.get());
}

EventLoop::~EventLoop() {
  while (!turn_end_.empty()) turn_end_.PopFront();
  while (!retry_.empty()) retry_.PopFront();
  while (!members_.empty()) members_.PopFront();
}

// On the loop's thread: the ring belongs to the thread that creates it.
absl::Status EventLoop::CreateRing() {
  io_uring_params params{};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CLAMP;
  int result = io_uring_queue_init_params(kEntries, &ring_, &params);
  deferred_ = result == 0;
  if (result == -EINVAL) {  // Before Linux 6.1.
    params = {};
    params.flags = IORING_SETUP_CLAMP;
    result = io_uring_queue_init_params(kEntries, &ring_, &params);
  }
  if (result < 0) return ErrnoStatus(result, "io_uring_setup");
  ring_created_ = true;
  return absl::OkStatus();
}

void EventLoop::Post(Task task) {
  {
    std::lock_guard<std::mutex> lock(mail_mutex_);
    mail_.push_back(std::move(task));
  }
  has_mail_.store(true, std::memory_order_release);
  const std::uint64_t one = 1;
  // Cannot fail but by overflow, and then the loop is awake.
  (void)!::write(wake_fd_.get(), &one, sizeof(one));
}

void EventLoop::StartDrain(std::int64_t deadline_ns) {
  Post([this, deadline_ns] {
    drain_deadline_ns_ = deadline_ns;
    members_.ForEach([](LoopMember::TickHook& hook) { hook.member.OnDrain(); });
  });
}

bool EventLoop::DrainMailbox() {
  if (!has_mail_.exchange(false, std::memory_order_acquire)) return false;
  std::vector<Task> batch;
  {
    std::lock_guard<std::mutex> lock(mail_mutex_);
    batch.swap(mail_);
  }
  for (Task& task : batch) task();
  return true;
}

absl::Status EventLoop::Run() {
  RETURN_IF_ERROR(CreateRing());
  wake_op_->Arm();
  now_ns_ = clock_.NowNs();
  next_tick_ns_ = now_ns_ + kNsPerSecond;
  logs_left_ = kLogsPerTick;
  while (true) {
    const bool busy = RunTurn();
    if (drain_deadline_ns_ >= 0 && (members_.empty() || now_ns_ >= drain_deadline_ns_)) break;
    if (!busy && !Spin()) Sleep();
  }
  io_uring_queue_exit(&ring_);
  ring_created_ = false;
  return absl::OkStatus();
}

bool EventLoop::RunTurn() {
  now_ns_ = clock_.NowNs();
  bool busy = DispatchCqes();
  if (has_mail_.load(std::memory_order_relaxed)) busy |= DrainMailbox();
  submitted_ = false;  // What was submitted so far leaves with the poll.
  busy |= PollQueues();
  if (now_ns_ >= next_tick_ns_) RunTick();
  RunTurnEnds();
  if (submitted_) {
    for (const PolledQueue& polled : queues_) ibnbd_queue_flush(polled.queue);
    busy = true;
  }
  SubmitPending();
  return busy;
}

bool EventLoop::PollQueues() {
  bool any = false;
  for (const PolledQueue& polled : queues_) any |= ibnbd_queue_poll(polled.queue, 0) > 0;
  if (any && !retry_.empty()) turn_end_.Splice(retry_);
  return any;
}

void EventLoop::RunTurnEnds() {
  // Members that ask again are served in the next turn.
  IntrusiveList<LoopMember::TurnHook> batch;
  batch.Splice(turn_end_);
  while (!batch.empty()) batch.PopFront().member.OnTurnEnd();
}

void EventLoop::RunTick() {
  next_tick_ns_ = now_ns_ + kNsPerSecond;
  if (logs_dropped_ != 0) LOG_WARN(logs_dropped_, " lines about clients were not logged");
  logs_dropped_ = 0;
  logs_left_ = kLogsPerTick;
  turn_end_.Splice(retry_);
  members_.ForEach([](LoopMember::TickHook& hook) { hook.member.OnTick(); });
}

io_uring_sqe* EventLoop::GetSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    ++enter_count_;
    (void)io_uring_submit(&ring_);  // A short submission leaves room all the same.
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void EventLoop::Cancel(RingOp& op) {
  io_uring_sqe* sqe = GetSqe();
  io_uring_prep_cancel(sqe, &op, 0);
  io_uring_sqe_set_data(sqe, nullptr);
}

bool EventLoop::RingHasWork() const {
  return io_uring_cq_ready(&ring_) != 0 || (__atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED) &
                                            (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

void EventLoop::SubmitPending() {
  const bool kernel_waits = (__atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED) &
                             (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
  if (io_uring_sq_ready(&ring_) == 0 && !kernel_waits) return;
  ++enter_count_;
  // EINTR, EAGAIN and EBUSY leave the entries queued; the next turn tries again.
  (void)io_uring_submit_and_get_events(&ring_);
}

bool EventLoop::DispatchCqes() {
  io_uring_cqe* cqes[kCqeBudget];
  const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes, kCqeBudget);
  for (unsigned i = 0; i < count; ++i) {
    auto* op = static_cast<RingOp*>(io_uring_cqe_get_data(cqes[i]));
    const int result = cqes[i]->res;
    if (op != nullptr) op->OnCqe(result);
  }
  io_uring_cq_advance(&ring_, count);
  return count != 0;
}

bool EventLoop::Spin() {
  if (spin_ns_ <= 0) return RingHasWork();
  const std::int64_t end_ns = clock_.NowNs() + spin_ns_;
  do {
    for (int look = 0; look < 8; ++look) {
      if (RingHasWork() || has_mail_.load(std::memory_order_relaxed)) return true;
      if (PollQueues()) return true;
      CpuRelax();
    }
  } while (clock_.NowNs() < end_ns);
  return false;
}

void EventLoop::Sleep() {
  for (const PolledQueue& polled : queues_) {
    if (ibnbd_queue_prepare_sleep(polled.queue) != 0) return;
  }
  for (const PolledQueue& polled : queues_) polled.op->Arm(*this, ibnbd_queue_fd(polled.queue));
  const std::int64_t before_ns = clock_.NowNs();
  // Nobody here: no ticks, an idle bridge uses no processor time.
  std::int64_t until_ns =
      members_.empty() && retry_.empty() ? before_ns + 3600 * kNsPerSecond : next_tick_ns_;
  if (drain_deadline_ns_ >= 0) until_ns = std::min(until_ns, drain_deadline_ns_);
  const std::int64_t wait_ns = std::max<std::int64_t>(until_ns - before_ns, 1);
  __kernel_timespec timeout{.tv_sec = wait_ns / kNsPerSecond, .tv_nsec = wait_ns % kNsPerSecond};
  io_uring_cqe* cqe = nullptr;
  ++enter_count_;
  (void)io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
  AdaptSpin(clock_.NowNs() - before_ns);
}

// As KVM's halt polling: a sleep that would have fitted into a spin makes the next spin longer, a
// long one ends the spinning.
void EventLoop::AdaptSpin(std::int64_t slept_ns) {
  if (slept_ns > kSpinNsMax) {
    spin_ns_ /= 2;
    if (spin_ns_ < kSpinStartNs) spin_ns_ = 0;
  } else {
    spin_ns_ = std::min(std::max(spin_ns_ * 2, kSpinStartNs), kSpinNsMax);
  }
}

void EventLoop::AddQueue(ibnbd_queue* queue) {
  queues_.push_back({queue, std::make_unique<PollOp>()});
}

void EventLoop::RemoveQueue(ibnbd_queue* queue) {
  const auto at = std::find_if(queues_.begin(), queues_.end(), [queue](const PolledQueue& polled) {
    return polled.queue == queue;
  });
  CHECK(at != queues_.end());
  PollOp::Retire(*this, std::move(at->op));
  queues_.erase(at);
}

void EventLoop::Add(LoopMember& member) {
  members_.PushBack(member.tick_hook_);
  next_tick_ns_ = std::min(next_tick_ns_, now_ns_ + kNsPerSecond);
}

void EventLoop::Remove(LoopMember& member) {
  if (member.tick_hook_.linked()) member.tick_hook_.Unlink();
  if (member.turn_hook_.linked()) member.turn_hook_.Unlink();
}

void EventLoop::RequestTurnEnd(LoopMember& member) {
  if (member.turn_hook_.linked()) member.turn_hook_.Unlink();  // It may wait for a retry.
  turn_end_.PushBack(member.turn_hook_);
}

void EventLoop::RequestRetry(LoopMember& member) {
  if (!member.turn_hook_.linked()) retry_.PushBack(member.turn_hook_);
}

bool EventLoop::MayLog() {
  if (logs_left_ > 0) {
    --logs_left_;
    return true;
  }
  ++logs_dropped_;
  return false;
}

}  // namespace ibnbd::bridge
