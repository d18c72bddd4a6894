// SPDX-License-Identifier: Apache-2.0
#include "reactor/reactor.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "reactor/io_ring.h"

namespace ibnbd {
namespace {
constexpr std::size_t kDispatchBudget = 256;  // Completions per turn: others want their turn too.
constexpr std::int64_t kSpinStartNs = 4'000;  // A little more than a wake-up costs.

inline void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}
}  // namespace

// An eventfd that is always being read by the ring: Post() from another thread writes to it only if
// the reactor sleeps.
class Reactor::WakeOp final : public IoRingOp {
 public:
  WakeOp(IoRing& ring, UniqueFd fd) : ring_(ring), fd_(std::move(fd)) { Arm(); }
  void OnCqe(int result, std::uint32_t) override {
    if (result != -ECANCELED || !ring_.abandoned()) Arm();
  }
  void Signal() const {
    const std::uint64_t one = 1;
    // Can only fail when the counter is full, and then the reader is awake anyway.
    (void)!::write(fd_.get(), &one, sizeof one);
  }

 private:
  void Arm() {
    io_uring_sqe* sqe = ring_.GetSqe();
    io_uring_prep_read(sqe, fd_.get(), &counter_, sizeof counter_, 0);
    ring_.Prepare(sqe, *this);
  }
  IoRing& ring_;
  UniqueFd fd_;
  std::uint64_t counter_ = 0;
};

// Makes the ring's fd readable when the next timer is due.
class Reactor::TimeoutOp final : public IoRingOp {
 public:
  explicit TimeoutOp(IoRing& ring) : ring_(ring) {}
  void OnCqe(int, std::uint32_t) override { armed_ = false; }
  // An earlier time-out that is armed already only causes one needless turn.
  void ArmFor(std::int64_t deadline_ns, std::int64_t now_ns) {
    if (armed_ && deadline_ns_ <= deadline_ns) return;
    deadline_ns_ = deadline_ns;
    const std::int64_t delay_ns = std::max<std::int64_t>(deadline_ns - now_ns, 0);
    ts_ = {delay_ns / kNsPerSecond, delay_ns % kNsPerSecond};
    io_uring_sqe* sqe = ring_.GetSqe();
    if (armed_) {
      io_uring_prep_timeout_update(
          sqe, &ts_, reinterpret_cast<std::uintptr_t>(static_cast<IoRingOp*>(this)), 0);
      return;  // user_data stays 0: if it fired meanwhile, the turn that sees it arms anew.
    }
    io_uring_prep_timeout(sqe, &ts_, 0, 0);
    ring_.Prepare(sqe, *this);
    armed_ = true;
  }

 private:
  IoRing& ring_;
  __kernel_timespec ts_{};
  std::int64_t deadline_ns_ = 0;
  bool armed_ = false;
};

Reactor::Reactor(const Clock& clock, const ReactorOptions& options)
    : clock_(clock), options_(options), now_ns_(clock.NowNs()) {
  timers_.set_now_ns(now_ns_);
}

absl::StatusOr<std::unique_ptr<Reactor>> Reactor::Create(const Clock& clock,
                                                         const ReactorOptions& options) {
  std::unique_ptr<Reactor> self(new Reactor(clock, options));
  if (options.with_ring) {
    ASSIGN_OR_RETURN(self->ring_, IoRing::Create(options.ring_entries, options.thread_bound));
    // Not EFD_NONBLOCK: the ring would hand EAGAIN back instead of waiting.
    UniqueFd fd(::eventfd(0, EFD_CLOEXEC));
    if (!fd.valid()) return ErrnoStatus(errno, "create reactor: eventfd");
    self->wake_op_ = std::make_unique<WakeOp>(*self->ring_, std::move(fd));
    self->timeout_op_ = std::make_unique<TimeoutOp>(*self->ring_);
  }
  return self;
}

Reactor::~Reactor() {
  for (const ReactorSource* source : sources_) CHECK(source == nullptr);
  ring_.reset();  // Before the operations that the kernel still holds.
}

bool Reactor::InThread() const {
  const std::thread::id id = thread_.load(std::memory_order_relaxed);
  return id == std::thread::id() || id == std::this_thread::get_id();
}

void Reactor::AddSource(ReactorSource& source) { sources_.push_back(&source); }

void Reactor::RemoveSource(ReactorSource& source) {
  for (ReactorSource*& entry : sources_) {
    if (entry == &source) entry = nullptr;
  }
  source_removed_ = true;
}

bool Reactor::RunTurn() {
  thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  if (sleeping_.load(std::memory_order_relaxed)) sleeping_.store(false, std::memory_order_relaxed);
  now_ns_ = clock_.NowNs();
  timers_.set_now_ns(now_ns_);
  ++stats_.turns;
  bool worked = false;
  if (has_mail_.load(std::memory_order_relaxed)) worked |= DrainMailbox();
  if (ring_ != nullptr) worked |= ring_->Dispatch(kDispatchBudget) > 0;
  worked |= timers_.FireDue(now_ns_);
  worked |= PollSources();
  if (ring_ != nullptr) worked |= ring_->Submit();
  if (!worked) ++stats_.idle_turns;
  return worked;
}

bool Reactor::PollSources() {
  bool worked = false;
  // By index: a source may add or remove sources while it is polled.
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (sources_[i] != nullptr) worked |= sources_[i]->Poll();
  }
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (sources_[i] != nullptr) sources_[i]->Flush();
  }
  if (source_removed_) {
    source_removed_ = false;
    std::erase(sources_, nullptr);
  }
  return worked;
}

bool Reactor::DrainMailbox() {
  {
    std::lock_guard<std::mutex> lock(mail_mutex_);
    has_mail_.store(false, std::memory_order_relaxed);
    mail_batch_.swap(mail_);
  }
  // Mail that these tasks post to us waits for the next turn.
  for (Task& task : mail_batch_) task();
  const bool worked = !mail_batch_.empty();
  mail_batch_.clear();
  return worked;
}

void Reactor::Post(Task task) {
  {
    std::lock_guard<std::mutex> lock(mail_mutex_);
    mail_.push_back(std::move(task));
    // Sequentially consistent together with sleeping_: either we see that the reactor is about to
    // sleep, or it sees our mail before it does (Dekker).
    has_mail_.store(true, std::memory_order_seq_cst);
  }
  if (sleeping_.load(std::memory_order_seq_cst)) WakeUp();
}

void Reactor::Stop() {
  stop_.store(true, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst)) WakeUp();
}

void Reactor::WakeUp() {
  if (wake_op_ != nullptr) wake_op_->Signal();
}

bool Reactor::HasUserSpaceWork() {
  return ring_->HasWork() || has_mail_.load(std::memory_order_relaxed) ||
         stop_.load(std::memory_order_relaxed) || SourcesHaveWork();
}

bool Reactor::HasWork() {
  if (has_mail_.load(std::memory_order_relaxed)) return true;
  const std::int64_t deadline_ns = timers_.next_deadline_ns();
  if (deadline_ns >= 0 && deadline_ns <= clock_.NowNs()) return true;
  return SourcesHaveWork() || (ring_ != nullptr && ring_->HasWork());
}

bool Reactor::SourcesHaveWork() {
  for (ReactorSource* source : sources_) {
    if (source != nullptr && source->HasWork()) return true;
  }
  return false;
}

bool Reactor::PrepareSources() {
  for (ReactorSource* source : sources_) {
    if (source != nullptr) source->PrepareToSleep();
  }
  return !SourcesHaveWork();
}

// Looks at memory only.  True if there is something to do.
bool Reactor::Spin(std::int64_t start_ns) {
  if (spin_ns_ <= 0) return false;
  const std::int64_t end_ns = start_ns + spin_ns_;
  // The clock is read once in 32 looks.  The round limit is for clocks that stand still.
  for (int round = 0; round < 100'000; ++round) {
    for (int look = 0; look < 32; ++look) {
      CpuRelax();
      if (HasUserSpaceWork()) return true;
    }
    if (clock_.NowNs() >= end_ns) return false;
  }
  return false;
}

// As KVM's halt polling: a wait, spin and sleep together, that a full spin would have covered makes
// the next spin longer; a longer wait makes it shorter, because then the spin bought nothing.  An
// idle reactor thus sleeps without any spin.
void Reactor::AdaptSpin(std::int64_t waited_ns) {
  if (waited_ns > options_.spin_ns_max) {
    spin_ns_ /= 2;
    if (spin_ns_ < kSpinStartNs) spin_ns_ = 0;
  } else {
    spin_ns_ = std::min(std::max(spin_ns_ * 2, kSpinStartNs), options_.spin_ns_max);
  }
}

void Reactor::Wait(std::int64_t timeout_ns) {
  CHECK(ring_ != nullptr);
  if (HasUserSpaceWork()) return;
  const std::int64_t start_ns = clock_.NowNs();
  if (Spin(start_ns)) return;
  sleeping_.store(true, std::memory_order_seq_cst);
  if (has_mail_.load(std::memory_order_seq_cst) || stop_.load(std::memory_order_seq_cst)) {
    sleeping_.store(false, std::memory_order_relaxed);
    return;
  }
  if (!PrepareSources()) {
    sleeping_.store(false, std::memory_order_relaxed);
    return;
  }
  const std::int64_t deadline_ns = timers_.next_deadline_ns();
  if (deadline_ns >= 0) {
    const std::int64_t until_ns = std::max<std::int64_t>(deadline_ns - clock_.NowNs(), 0);
    timeout_ns = timeout_ns < 0 ? until_ns : std::min(timeout_ns, until_ns);
  }
  if (timeout_ns != 0) {
    ++stats_.sleeps;
    ring_->SubmitAndWait(timeout_ns);
    AdaptSpin(clock_.NowNs() - start_ns);
  }
  sleeping_.store(false, std::memory_order_relaxed);
  if (has_mail_.load(std::memory_order_relaxed)) ++stats_.wakeups_by_mail;
}

int Reactor::fd() const {
  CHECK(ring_ != nullptr);
  return ring_->fd();
}

bool Reactor::PrepareToSleep() {
  CHECK(ring_ != nullptr);
  sleeping_.store(true, std::memory_order_seq_cst);  // Until the next turn.
  const bool idle = PrepareSources();
  const std::int64_t deadline_ns = timers_.next_deadline_ns();
  const std::int64_t now_ns = clock_.NowNs();
  const bool due = deadline_ns >= 0 && deadline_ns <= now_ns;
  if (deadline_ns >= 0 && !due) timeout_op_->ArmFor(deadline_ns, now_ns);
  ring_->Submit();
  return idle && !due && !has_mail_.load(std::memory_order_seq_cst) && !ring_->HasWork();
}

void Reactor::Run() {
  while (!stop_.load(std::memory_order_relaxed)) {
    if (!RunTurn()) Wait(-1);
  }
  stop_.store(false, std::memory_order_relaxed);
}

}  // namespace ibnbd
