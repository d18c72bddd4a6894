// SPDX-License-Identifier: Apache-2.0
// Queues: who owns one, running its turns, sleeping on it.  On the owner's thread, except
// ibnbd_queue_wake() and ibnbd_queue_fd().
#include <sched.h>

#include <cerrno>
#include <limits>

#include "capi/error.h"
#include "capi/handles.h"
#include "reactor/io_ring.h"

using ibnbd::kNsPerMs;
using ibnbd::capi::Fail;
using ibnbd::capi::InCallback;
using ibnbd::capi::Succeed;

int ibnbd_queue::OwnSlowly() {
  if (one_thread) {
    return Fail(-EPERM,
                "queue %u: belongs to the thread that opened the session "
                "(IBNBD_SESSION_ONE_THREAD)",
                index);
  }
  // With the store and the load of RunTurnIfOwned() this is Dekker's: either the visitor sees the
  // new owner and stays away, or we see the visitor and wait for its turn to end.
  owner.store(pthread_self(), std::memory_order_seq_cst);
  while (visited.load(std::memory_order_seq_cst)) sched_yield();
  reactor->AdoptThread();
  return 0;
}

bool ibnbd_queue::RunTurnIfOwned() {
  bool worked = false;
  visited.store(true, std::memory_order_seq_cst);
  if (owner.load(std::memory_order_seq_cst) == pthread_self()) {
    const std::uint64_t idle_turns = reactor->stats().idle_turns;
    RunTurn(0);
    worked = reactor->stats().idle_turns == idle_turns;
  }
  visited.store(false, std::memory_order_seq_cst);
  return worked;
}

int ibnbd_queue::RunTurn(std::uint32_t budget) {
  budget_left = budget == 0 ? std::numeric_limits<std::uint32_t>::max() : budget;
  callbacks_run = 0;
  reactor->RunTurn();
  return callbacks_run;
}

namespace {

int CheckQueue(const char* call, ibnbd_queue* queue) {
  if (queue == nullptr) return Fail(-EINVAL, "%s: the queue is NULL", call);
  return queue->Own();
}

int CheckMayPoll(const char* call, ibnbd_queue* queue) {
  if (const int error = CheckQueue(call, queue)) return error;
  if (InCallback()) return Fail(-EDEADLK, "%s: must not be called from a done callback", call);
  return 0;
}

}  // namespace

ibnbd_queue* ibnbd_session_queue(ibnbd_session* session, uint32_t index) {
  if (session == nullptr || !ibnbd::capi::IsOpenHandle(session)) {
    Fail(-EINVAL, "ibnbd_session_queue: this is not an open session");
    return nullptr;
  }
  if (index >= session->queues.size()) {
    Fail(-EINVAL, "ibnbd_session_queue: there is no queue %u: the session has %zu", index,
         session->queues.size());
    return nullptr;
  }
  Succeed();
  return session->queues[index].get();
}

int ibnbd_queue_poll(ibnbd_queue* queue, uint32_t budget) {
  if (const int error = CheckMayPoll("ibnbd_queue_poll", queue)) return error;
  Succeed();
  return queue->RunTurn(budget);
}

int ibnbd_queue_flush(ibnbd_queue* queue) {
  if (const int error = CheckQueue("ibnbd_queue_flush", queue)) return error;
  if (!InCallback()) {  // Otherwise the turn that runs the callback ends with it anyway.
    queue->port->Flush();
    queue->reactor->ring()->Submit();
  }
  return Succeed();
}

int ibnbd_queue_wait(ibnbd_queue* queue, int timeout_ms) {
  if (const int error = CheckMayPoll("ibnbd_queue_wait", queue)) return error;
  Succeed();
  int count = queue->RunTurn(0);
  if (count > 0 || timeout_ms == 0) return count;
  ibnbd::Reactor& reactor = *queue->reactor;
  const std::int64_t deadline_ns =
      timeout_ms < 0 ? -1 : reactor.clock().NowNs() + timeout_ms * kNsPerMs;
  while (!queue->woken.exchange(false, std::memory_order_acq_rel)) {
    std::int64_t left_ns = -1;
    if (deadline_ns >= 0) {
      left_ns = deadline_ns - reactor.clock().NowNs();
      if (left_ns <= 0) return 0;
    }
    if (queue->finished.empty()) reactor.Wait(left_ns);
    const std::uint64_t idle_turns = reactor.stats().idle_turns;
    count = queue->RunTurn(0);
    if (count > 0) return count;
    // Nothing to do after a sleep: the time is over, or a signal came.
    if (reactor.stats().idle_turns != idle_turns) return 0;
  }
  return 0;
}

int ibnbd_queue_fd(ibnbd_queue* queue) {
  if (queue == nullptr) return Fail(-EINVAL, "ibnbd_queue_fd: the queue is NULL");
  Succeed();
  return queue->reactor->fd();
}

int ibnbd_queue_prepare_sleep(ibnbd_queue* queue) {
  if (const int error = CheckMayPoll("ibnbd_queue_prepare_sleep", queue)) return error;
  Succeed();
  queue->port->Flush();  // What was submitted since the last poll.
  const bool may_sleep = queue->reactor->PrepareToSleep();
  const bool woken = queue->woken.exchange(false, std::memory_order_acq_rel);
  return !may_sleep || woken || !queue->finished.empty() ? 1 : 0;
}

int ibnbd_queue_wake(ibnbd_queue* queue) {
  if (queue == nullptr) return Fail(-EINVAL, "ibnbd_queue_wake: the queue is NULL");
  queue->woken.store(true, std::memory_order_release);
  queue->reactor->Post([] {});
  return Succeed();
}
