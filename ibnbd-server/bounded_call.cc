// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/bounded_call.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

namespace ibnbd {

struct BoundedCall::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool running = false;
};

namespace {

template <class State>
struct Call {
  std::shared_ptr<State> state;
  std::function<void()> f;
};

template <class State>
void* Perform(void* argument) {
  const std::unique_ptr<Call<State>> call(static_cast<Call<State>*>(argument));
  call->f();
  call->f = nullptr;  // What it holds goes first: a lock on a file, say.
  {
    const std::lock_guard<std::mutex> lock(call->state->mutex);
    call->state->running = false;
  }
  call->state->changed.notify_all();
  return nullptr;
}

// Nobody waits for its end: it may never come.  Signals are for others: one that the main thread
// will wait for must not come here, where nobody has a use for it.
bool StartDetached(void* (*function)(void*), void* argument) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);  // Cannot fail.
  pthread_t thread{};
  const int error = pthread_create(&thread, nullptr, function, argument);
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) return false;
  (void)pthread_detach(thread);
  return true;
}

}  // namespace

bool BoundedCall::Run(std::function<void()> f, WaitsItself waits) {
  static std::atomic<std::int64_t> tired_until_ns{0};
  if (!Wait(0)) return false;  // Known, and has cost its moment.
  const bool tired = MonotonicClock().NowNs() < tired_until_ns;
  if (Run(std::move(f), (tired ? kPatienceLeftNs : kPatienceNs) + waits.ns)) return true;
  // One that had little time need not hang: it would keep all others short of it for ever.
  if (!tired) tired_until_ns = MonotonicClock().NowNs() + kPatienceRestNs;
  return false;
}

BoundedCall::BoundedCall() : state_(std::make_shared<State>()) {}

bool BoundedCall::Run(std::function<void()> f, std::int64_t patience_ns) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  if (state_->running) return false;
  auto call = std::make_unique<Call<State>>(Call<State>{state_, std::move(f)});
  if (!StartDetached(Perform<State>, call.get())) return false;
  (void)call.release();    // The thread's.
  state_->running = true;  // It cannot have got to the end: we have the mutex.
  return state_->changed.wait_for(lock, std::chrono::nanoseconds(patience_ns),
                                  [this] { return !state_->running; });
}

bool BoundedCall::Wait(std::int64_t patience_ns) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return state_->changed.wait_for(lock, std::chrono::nanoseconds(patience_ns),
                                  [this] { return !state_->running; });
}

}  // namespace ibnbd
