// SPDX-License-Identifier: Apache-2.0
// One thread, one loop: sources are polled, timers fire, mail is read, posts go out in one batch,
// and when there was nothing to do the loop spins for a short, adaptive time and then sleeps in one
// io_uring_enter.  A source never blocks and never spins by itself.
//
// Three users, one class: a daemon's thread calls Run(); the C API's queues call RunTurn() and
// Wait() from the application's thread; the simulator creates reactors without a ring and calls
// RunTurn() whenever virtual time moved.  What runs inside cannot tell which.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "reactor/timers.h"

namespace ibnbd {

class IoRing;

// Something that is looked at once per turn.
class ReactorSource {
 public:
  virtual ~ReactorSource() = default;
  // Does what can be done without waiting, within a budget of its own; true if it did anything.
  virtual bool Poll() = 0;
  // End of turn: hands everything that was posted to the network or the disk.
  virtual void Flush() {}
  // For sources that the ring alone does not speak for.  Asked while the reactor spins: true if
  // Poll() would find something.  A look at memory, no system call.
  virtual bool HasWork() { return false; }
  // The reactor is about to sleep: from now on what happens must complete something on its ring.
  // HasWork() is asked once more afterwards.
  virtual void PrepareToSleep() {}
};

struct ReactorOptions {
  bool with_ring = true;  // False in the simulator.
  std::uint32_t ring_entries =
      1024;  // Submission queue; the completion queue has four times as many.
  std::int64_t spin_ns_max =
      50'000;  // Upper bound of the adaptive spin before sleeping; 0: never spin.
  // False: turns may be run by one thread now and by another later (never at once).  Costs some
  // speed: the kernel cannot defer work for us (IoRing::Create()).
  bool thread_bound = true;
};

class Reactor {
 public:
  using Task = absl::AnyInvocable<void()>;

  static absl::StatusOr<std::unique_ptr<Reactor>> Create(const Clock& clock,
                                                         const ReactorOptions& options);
  ~Reactor();  // Requires: not running, no sources, no armed timers.
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // --- On the owner's thread. ---
  // True on the thread that last ran a turn, or before the first turn.
  [[nodiscard]] bool InThread() const;
  // From now on InThread() holds on the calling thread: for one that uses what lives here before it
  // runs a turn.  Requires: no other thread is inside.
  void AdoptThread() { thread_.store(std::this_thread::get_id(), std::memory_order_relaxed); }
  [[nodiscard]] std::int64_t now_ns() const { return now_ns_; }  // Of this turn.
  [[nodiscard]] const Clock& clock() const { return clock_; }
  [[nodiscard]] Timers& timers() { return timers_; }
  [[nodiscard]] IoRing* ring() { return ring_.get(); }  // Null in the simulator.
  void AddSource(ReactorSource& source);
  void RemoveSource(ReactorSource& source);  // Also from inside Poll().

  // One turn.  True if anything was done.
  bool RunTurn();
  // Whether RunTurn() would find anything now, as far as sources say (ReactorSource::HasWork()).
  [[nodiscard]] bool HasWork();
  // Sleeps until something may be done or `timeout_ns` (negative: no limit) has passed, then
  // returns; spins first, as adapted.  Call RunTurn() next.  Requires a ring.
  void Wait(std::int64_t timeout_ns);
  // Readable when a turn would find work; for foreign event loops.  Call PrepareToSleep() before
  // each sleep: it submits what is pending and arms the next timer.  Requires a ring.
  [[nodiscard]] int fd() const;
  // False if there is work already: run a turn instead of sleeping.
  bool PrepareToSleep();
  // The next timer, or -1.
  [[nodiscard]] std::int64_t next_deadline_ns() const { return timers_.next_deadline_ns(); }
  void Run();  // Turns and waits until Stop(); for daemons.

  // --- Any thread. ---
  void Post(
      Task task);  // Runs it in a later turn, in posting order per poster.  Wakes the reactor.
  void Stop();

  struct Stats {
    std::uint64_t turns = 0, idle_turns = 0, sleeps = 0, wakeups_by_mail = 0;
  };
  [[nodiscard]] const Stats& stats() const { return stats_; }

 private:
  Reactor(const Clock& clock, const ReactorOptions& options);
  class WakeOp;
  class TimeoutOp;
  bool DrainMailbox();
  void WakeUp();
  bool PollSources();
  bool Spin(std::int64_t start_ns);
  void AdaptSpin(std::int64_t waited_ns);
  [[nodiscard]] bool HasUserSpaceWork();
  [[nodiscard]] bool SourcesHaveWork();
  // False: there is work after all.
  bool PrepareSources();

  const Clock& clock_;
  const ReactorOptions options_;
  std::int64_t now_ns_ = 0;
  Timers timers_;
  std::unique_ptr<IoRing> ring_;
  std::vector<ReactorSource*> sources_;  // Null entries: removed during this turn.
  std::atomic<std::thread::id> thread_{};
  std::atomic<bool> stop_{false};
  // The mailbox.  The flag is what the loop looks at; the mutex is taken only when there is mail.
  std::atomic<bool> has_mail_{false};
  std::atomic<bool> sleeping_{false};
  std::mutex mail_mutex_;
  std::vector<Task> mail_;
  std::vector<Task>
      mail_batch_;  // Being run; swapped with mail_, so that both keep their capacity.
  std::unique_ptr<WakeOp> wake_op_;
  std::unique_ptr<TimeoutOp> timeout_op_;  // For foreign event loops only.
  bool source_removed_ = false;
  std::int64_t spin_ns_ = 0;
  Stats stats_;
};

}  // namespace ibnbd
