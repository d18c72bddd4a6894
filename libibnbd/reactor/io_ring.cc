// SPDX-License-Identifier: Apache-2.0
#include "reactor/io_ring.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

// From best to plainest; the kernel answers EINVAL to flags it does not know.
constexpr unsigned kBoundFlags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
};
// A ring that several threads use in turn: no deferral, because deferred work would wait for a
// thread that may never come back.
constexpr unsigned kUnboundFlags[] = {0};

}  // namespace

absl::StatusOr<std::unique_ptr<IoRing>> IoRing::Create(std::uint32_t entries, bool thread_bound) {
  std::unique_ptr<IoRing> self(new IoRing);
  const std::span<const unsigned> choices = thread_bound ? std::span<const unsigned>(kBoundFlags)
                                                         : std::span<const unsigned>(kUnboundFlags);
  int error = -EINVAL;
  for (unsigned flags : choices) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP |
                   IORING_SETUP_SUBMIT_ALL;
    params.cq_entries = entries * 4;
    error = io_uring_queue_init_params(entries, &self->ring_, &params);
    if (error != -EINVAL) break;
  }
  if (error < 0) return ErrnoStatus(error, "create reactor: io_uring_setup");
  self->created_ = true;
  // Sparse, so that slots can be filled while operations run; an old kernel or a tight memlock
  // limit leaves us without, which is slower, not wrong.
  if (io_uring_register_buffers_sparse(&self->ring_, kBufferSlots) == 0) {
    self->buffers_ready_ = true;
    self->buffer_used_ = std::make_unique<bool[]>(kBufferSlots);
  }
  return self;
}

IoRing::~IoRing() {
  if (created_) io_uring_queue_exit(&ring_);
  // The owners may outlive the ring, as long as the kernel is through with their memory.
  while (!inflight_.empty()) inflight_.PopFront();
}

void IoRing::Enable() {
  if (std::exchange(enabled_, true)) return;
  // liburing 2.3 declares io_uring_enable_rings() but does not export it.
  const int error = io_uring_register(static_cast<unsigned>(ring_.ring_fd),
                                      IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  CHECK(error >= 0);
  owner_tid_ = ::gettid();
}

bool IoRing::KernelHasWork() const {
  return (IO_URING_READ_ONCE(*ring_.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

bool IoRing::HasWork() const {
  if (abandoned_) return !inflight_.empty();
  return io_uring_cq_ready(&ring_) != 0 || KernelHasWork();
}

// The one place that enters the kernel.  Negative errno of the kernel, or 0.
int IoRing::Enter(unsigned wait_count, std::int64_t timeout_ns) {
  if (abandoned_) return -EEXIST;
  Enable();
  ++enter_count_;
  int result = 0;
  if (wait_count == 0) {
    result = io_uring_submit_and_get_events(&ring_);
  } else if (timeout_ns < 0) {
    result = io_uring_submit_and_wait(&ring_, wait_count);
  } else {
    __kernel_timespec ts{timeout_ns / kNsPerSecond, timeout_ns % kNsPerSecond};
    io_uring_cqe* cqe = nullptr;
    result = io_uring_submit_and_wait_timeout(&ring_, &cqe, wait_count, &ts, nullptr);
  }
  // EEXIST: a thread-bound ring on a foreign thread.  EINTR, ETIME, EAGAIN and EBUSY pass by
  // themselves: the queue is kept and goes with the next call.
  if (result == -EEXIST) Abandon();
  CHECK(result >= 0 || result == -EEXIST || result == -EINTR || result == -ETIME ||
        result == -EAGAIN || result == -EBUSY);
  return result < 0 ? result : 0;
}

// A thread-bound ring on a foreign thread.  Once the owner's thread is gone the kernel can not
// start or continue any operation of it, so they are as good as cancelled: their memory is left
// alone, and only their completions are missing.  A second thread while the first lives is a bug.
void IoRing::Abandon() {
  const pid_t process = ::getpid();
  // A joined thread may take a moment to vanish.
  for (int i = 0; ::syscall(SYS_tgkill, process, owner_tid_, 0) == 0; ++i) {
    CHECK(i < 1'000'000);
    ::sched_yield();
  }
  abandoned_ = true;
}

io_uring_sqe* IoRing::GetSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    (void)Enter(0, 0);  // Any error leaves the queue as it was, and we try again.
    // Nobody will read these entries any more.
    if (abandoned_) ring_.sq.sqe_tail = ring_.sq.sqe_head = *ring_.sq.khead;
    sqe = io_uring_get_sqe(&ring_);
  }
  std::memset(sqe, 0, sizeof *sqe);
  return sqe;
}

void IoRing::Prepare(io_uring_sqe* sqe, IoRingOp& op) {
  sqe->user_data = reinterpret_cast<std::uintptr_t>(&op);
  ++inflight_count_;
  IoRingOp::Link& link = op.link_;
  if (link.pending_count++ == 0) {
    link.op = &op;
    inflight_.PushBack(link);
  }
}

void IoRing::CompleteOne(IoRingOp& op, int result, std::uint32_t flags) {
  if ((flags & IORING_CQE_F_MORE) == 0) {
    --inflight_count_;
    if (--op.link_.pending_count == 0) op.link_.Unlink();
  }
  op.OnCqe(result, flags);
}

void IoRing::Cancel(IoRingOp& op) {
  io_uring_sqe* sqe = GetSqe();
  io_uring_prep_cancel64(sqe, reinterpret_cast<std::uintptr_t>(&op), 0);
  sqe->user_data = 0;  // Its own completion interests nobody.
}

bool IoRing::Submit() {
  if (abandoned_) return false;
  if (io_uring_sq_ready(&ring_) == 0 && !KernelHasWork()) return false;
  (void)Enter(0, 0);
  return true;
}

std::size_t IoRing::Dispatch(std::size_t budget) {
  std::size_t count = 0;
  while (abandoned_ && count < budget && !inflight_.empty()) {
    ++count;
    CompleteOne(*inflight_.front().op, -ECANCELED, 0);
  }
  while (!abandoned_ && count < budget) {
    const unsigned head = *ring_.cq.khead;
    if (head == io_uring_smp_load_acquire(ring_.cq.ktail)) break;
    const io_uring_cqe& cqe = ring_.cq.cqes[head & *ring_.cq.kring_mask];
    auto* op = reinterpret_cast<IoRingOp*>(cqe.user_data);
    const int result = cqe.res;
    const std::uint32_t flags = cqe.flags;
    // Given back before the call: the owner may prepare, submit or destroy.
    io_uring_cq_advance(&ring_, 1);
    ++count;
    if (op != nullptr) CompleteOne(*op, result, flags);
  }
  return count;
}

void IoRing::SubmitAndWait(std::int64_t timeout_ns) { (void)Enter(1, timeout_ns); }

int IoRing::RegisterBuffer(std::span<std::byte> memory) {
  if (!buffers_ready_) return -1;
  for (unsigned slot = 0; slot < kBufferSlots; ++slot) {
    if (buffer_used_[slot]) continue;
    iovec iov{memory.data(), memory.size()};
    __u64 tag = 0;
    if (io_uring_register_buffers_update_tag(&ring_, slot, &iov, &tag, 1) != 1) return -1;
    buffer_used_[slot] = true;
    return static_cast<int>(slot);
  }
  return -1;
}

// A kernel before 5.15 knows no limit, and a foreign thread after the owner's end needs none.
void IoRing::ChangeWorkersMax(int count) {
  workers_added_ += count;
  unsigned limits[2] = {0, 0};  // Of regular files and of all else; 0 asks.
  if (workers_base_ == 0) {
    if (io_uring_register_iowq_max_workers(&ring_, limits) != 0 || limits[0] == 0) return;
    workers_base_ = limits[0];
  }
  limits[0] = workers_base_ + static_cast<unsigned>(workers_added_);
  limits[1] = 0;
  (void)io_uring_register_iowq_max_workers(&ring_, limits);
}

void IoRing::UnregisterBuffer(int slot) {
  CHECK(slot >= 0 && static_cast<unsigned>(slot) < kBufferSlots);
  const auto index = static_cast<unsigned>(slot);
  CHECK(buffer_used_[index]);
  iovec iov{nullptr, 0};
  __u64 tag = 0;
  // Refused only on a foreign thread after the owner has ended; the ring's end then unpins it.
  if (io_uring_register_buffers_update_tag(&ring_, index, &iov, &tag, 1) == 1) {
    buffer_used_[index] = false;
  }
}

}  // namespace ibnbd
