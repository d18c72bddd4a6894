// SPDX-License-Identifier: Apache-2.0
// A backend for tests and for the simulator: a volume in memory that behaves as a disk does at its
// worst and only as well as the contract promises.  What was written and not flushed is kept apart
// from what is stable, and a crash loses it, or parts of it.  IOs take virtual time, may be held
// back, and may fail.
//
// FakeDisk is the medium: it survives the crash of the host that serves it.  FakeBackend is one
// host's access to it: after Crash() what it still executes has no effect any more and fails.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/prng.h"
#include "reactor/reactor.h"
#include "reactor/timers.h"
#include "rnbd/block_backend.h"
#include "tests/support/fake_disk.h"

namespace ibnbd::rnbd {

struct FakeTiming {
  // How long an IO takes: drawn from [low, high] by the generator.  Negative: it completes inside
  // Submit().
  std::int64_t low_ns = -1;
  std::int64_t high_ns = -1;
  // Some take longer, up to this.
  std::uint32_t slow_ppm = 0;
  std::int64_t slow_ns = 0;
};

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(std::shared_ptr<FakeDisk> disk, FakeTiming timing = {},
                       std::uint64_t seed = 1)
      : disk_(std::move(disk)), timing_(timing), prng_(seed) {}
  ~FakeBackend() override { CHECK_EQ(queue_count_, 0u); }

  [[nodiscard]] const Geometry& geometry() const override { return disk_->geometry(); }
  [[nodiscard]] std::string Describe() const override { return "fake"; }
  absl::StatusOr<std::unique_ptr<BackendQueue>> CreateQueue(Reactor& reactor,
                                                            std::uint32_t io_count_max) override;

  // What CheckPlace() says.
  absl::Status place;
  [[nodiscard]] absl::Status CheckPlace() const override { return place; }

  // Count as told for others.
  std::shared_ptr<SyncErrors> sync_errors() override { return sync_errors_; }

  // From now on IOs wait; Release() lets them take their course.
  void HoldIos() { holding_ = true; }
  void Release() {
    holding_ = false;
    for (auto& start : std::exchange(held_, {})) start();
  }
  // The host loses power: of each executing write some blocks reach the medium, and of what was not
  // flushed each block survives `survive_ppm` times in a million.  Later completions are -EIO and
  // change nothing.
  void Crash(Prng& prng, std::uint32_t survive_ppm);

  [[nodiscard]] std::uint32_t executing_count() const {
    return static_cast<std::uint32_t>(executing_.size());
  }
  [[nodiscard]] std::uint32_t queue_count() const { return queue_count_; }
  [[nodiscard]] std::uint64_t count(BackendOp op) const {
    return counts_[static_cast<std::size_t>(op)];
  }
  // Called with each IO when it is submitted; tests look at its fields.
  std::function<void(const BackendIo&)> on_submit;

 private:
  class Queue;
  struct Flight;  // One executing IO.

  const std::shared_ptr<FakeDisk> disk_;
  const FakeTiming timing_;
  Prng prng_;
  bool holding_ = false;
  bool crashed_ = false;
  std::uint32_t queue_count_ = 0;
  std::deque<std::function<void()>> held_;
  std::deque<Flight*> executing_;
  std::uint64_t counts_[6] = {};
  const std::shared_ptr<SyncErrors> sync_errors_ = std::make_shared<SyncErrors>();
};

struct FakeBackend::Flight {
  Flight(FakeBackend& owner, Reactor& in_reactor)
      : backend(owner), reactor(in_reactor), timer(in_reactor.timers(), [this] { Finish(); }) {}

  void Start(BackendIo& new_io) {
    io = &new_io;
    backend.executing_.push_back(this);
    ++backend.counts_[static_cast<std::size_t>(io->op)];
    if (backend.on_submit) backend.on_submit(*io);
    // A flush covers what had completed when it was submitted, and nothing later.
    flushed = io->op == BackendOp::kFlush || io->preflush ? backend.disk_->SnapshotUnflushed()
                                                          : FakeDisk::Snapshot();
    if (backend.holding_) {
      return backend.held_.push_back([this] { reactor.Post([this] { Go(); }); });
    }
    Go();
  }
  void Go() {
    if (backend.timing_.low_ns < 0) return Finish();
    const FakeTiming& timing = backend.timing_;
    const bool slow = timing.slow_ppm > 0 && backend.prng_.Chance(timing.slow_ppm);
    timer.ArmAfter(backend.prng_.Between(timing.low_ns, slow ? timing.slow_ns : timing.high_ns));
  }
  void Finish() {
    std::erase(backend.executing_, this);
    const int error = backend.crashed_ ? -EIO : backend.disk_->Execute(*io, flushed);
    BackendIo* finished = std::exchange(io, nullptr);
    finished->OnBackendDone(error);
  }

  FakeBackend& backend;
  Reactor& reactor;
  Timer timer;
  BackendIo* io = nullptr;  // Null: free.
  FakeDisk::Snapshot flushed;
};

class FakeBackend::Queue final : public BackendQueue {
 public:
  Queue(FakeBackend& backend, Reactor& reactor) : backend_(backend), reactor_(reactor) {
    ++backend_.queue_count_;
  }
  ~Queue() override {
    for (const auto& flight : flights_) CHECK(flight->io == nullptr);
    --backend_.queue_count_;
  }
  void Submit(BackendIo& io) override {
    for (const auto& flight : flights_) {
      if (flight->io == nullptr) return flight->Start(io);
    }
    flights_.push_back(std::make_unique<Flight>(backend_, reactor_));
    flights_.back()->Start(io);
  }

 private:
  FakeBackend& backend_;
  Reactor& reactor_;
  std::deque<std::unique_ptr<Flight>> flights_;
};

inline absl::StatusOr<std::unique_ptr<BackendQueue>> FakeBackend::CreateQueue(
    Reactor& reactor, std::uint32_t io_count_max) {
  (void)io_count_max;
  return std::make_unique<Queue>(*this, reactor);
}

inline void FakeBackend::Crash(Prng& prng, std::uint32_t survive_ppm) {
  crashed_ = true;
  for (const Flight* flight : executing_) {
    if (flight->io->op == BackendOp::kWrite) disk_->WriteSomeBlocks(*flight->io, prng);
  }
  disk_->LoseUnflushed(prng, survive_ppm);
}

}  // namespace ibnbd::rnbd
