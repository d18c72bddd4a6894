// SPDX-License-Identifier: Apache-2.0
#include "reactor/reactor.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "reactor/io_ring.h"

namespace ibnbd {
namespace {

class FakeClock final : public Clock {
 public:
  std::int64_t NowNs() const override { return now_ns; }
  std::int64_t now_ns = 0;
};

class RecordingOp final : public IoRingOp {
 public:
  void OnCqe(int result, std::uint32_t) override {
    ++count;
    last_result = result;
  }
  int count = 0;
  int last_result = 0;
};

const MonotonicClock kClock;

std::unique_ptr<Reactor> MakeReactor(ReactorOptions options = {}) {
  auto reactor = Reactor::Create(kClock, options);
  EXPECT_TRUE(reactor.ok()) << reactor.status();
  return *std::move(reactor);
}

TEST(Reactor, WithoutARingRunsTimersOfAFakeClock) {
  FakeClock clock;
  ReactorOptions options;
  options.with_ring = false;
  auto reactor = Reactor::Create(clock, options);
  ASSERT_TRUE(reactor.ok());
  EXPECT_EQ((*reactor)->ring(), nullptr);
  int fired = 0;
  Timer timer((*reactor)->timers(), [&] { ++fired; });
  timer.ArmAfter(100);
  EXPECT_FALSE((*reactor)->RunTurn());
  clock.now_ns = 99;
  EXPECT_FALSE((*reactor)->RunTurn());
  clock.now_ns = 100;
  EXPECT_TRUE((*reactor)->RunTurn());
  EXPECT_EQ(fired, 1);
  EXPECT_EQ((*reactor)->now_ns(), 100);
}

TEST(Reactor, RunsMailInPostingOrderInALaterTurn) {
  FakeClock clock;
  ReactorOptions options;
  options.with_ring = false;
  auto reactor = Reactor::Create(clock, options);
  ASSERT_TRUE(reactor.ok());
  std::string order;
  (*reactor)->Post([&] {
    order += "a";
    (*reactor)->Post([&] { order += "c"; });
  });
  (*reactor)->Post([&] { order += "b"; });
  EXPECT_TRUE((*reactor)->RunTurn());
  EXPECT_EQ(order, "ab");
  EXPECT_TRUE((*reactor)->RunTurn());
  EXPECT_EQ(order, "abc");
  EXPECT_FALSE((*reactor)->RunTurn());
}

class CountingSource final : public ReactorSource {
 public:
  explicit CountingSource(Reactor& reactor) : reactor_(reactor) { reactor.AddSource(*this); }
  bool Poll() override {
    if (++polls == 2) reactor_.RemoveSource(*this);
    return false;
  }
  void Flush() override { ++flushes; }
  int polls = 0, flushes = 0;

 private:
  Reactor& reactor_;
};

TEST(Reactor, ASourceMayRemoveItselfFromInsidePoll) {
  FakeClock clock;
  ReactorOptions options;
  options.with_ring = false;
  auto reactor = Reactor::Create(clock, options);
  ASSERT_TRUE(reactor.ok());
  CountingSource a(**reactor);
  CountingSource b(**reactor);
  for (int i = 0; i < 4; ++i) (*reactor)->RunTurn();
  EXPECT_EQ(a.polls, 2);
  EXPECT_EQ(a.flushes, 1);
  EXPECT_EQ(b.polls, 2);
}

TEST(Reactor, CreatedHereRunsThereAndKnowsItsThread) {
  auto reactor = MakeReactor();
  EXPECT_TRUE(reactor->InThread());  // Before the first turn everybody may prepare.
  RecordingOp nop;
  io_uring_sqe* sqe = reactor->ring()->GetSqe();
  io_uring_prep_nop(sqe);
  reactor->ring()->Prepare(sqe, nop);
  std::atomic<bool> seen{false};
  std::thread thread([&] { reactor->Run(); });
  while (!seen) {
    reactor->Post([&] {
      EXPECT_TRUE(reactor->InThread());
      if (nop.count > 0) seen = true;
    });
    std::this_thread::yield();
  }
  EXPECT_FALSE(reactor->InThread());
  reactor->Stop();
  thread.join();
  EXPECT_EQ(nop.count, 1);
}

TEST(Reactor, MailFromAnotherThreadWakesASleepingReactor) {
  ReactorOptions options;
  options.spin_ns_max = 0;
  auto reactor = MakeReactor(options);
  std::thread thread([&] { reactor->Run(); });
  std::atomic<int> count{0};
  for (int i = 0; i < 2000; ++i) {
    reactor->Post([&] { ++count; });
    while (count != i + 1) std::this_thread::yield();  // So that it goes to sleep between.
  }
  reactor->Stop();
  thread.join();
  EXPECT_EQ(count, 2000);
}

TEST(Reactor, WaitEndsWhenATimerIsDue) {
  auto reactor = MakeReactor();
  bool fired = false;
  Timer timer(reactor->timers(), [&] { fired = true; });
  reactor->RunTurn();
  timer.ArmAfter(5 * kNsPerMs);
  const std::int64_t start_ns = kClock.NowNs();
  while (!fired) {
    if (!reactor->RunTurn()) reactor->Wait(-1);
  }
  EXPECT_GE(kClock.NowNs() - start_ns, 5 * kNsPerMs);
}

TEST(Reactor, IdleUsesNoCpu) {
  auto reactor = MakeReactor();
  reactor->RunTurn();
  const std::uint64_t turns = reactor->stats().turns;
  bool fired = false;
  Timer timer(reactor->timers(), [&] { fired = true; });
  timer.ArmAfter(200 * kNsPerMs);
  rusage before{}, after{};
  getrusage(RUSAGE_THREAD, &before);
  while (!fired) {
    if (!reactor->RunTurn()) reactor->Wait(-1);
  }
  getrusage(RUSAGE_THREAD, &after);
  EXPECT_LT(reactor->stats().turns - turns, 20u);
  const auto us = [](const rusage& u) {
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1'000'000 + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
  };
  EXPECT_LT(us(after) - us(before), 20'000);
}

TEST(Reactor, ItsFdBecomesReadableForATimer) {
  auto reactor = MakeReactor();
  bool fired = false;
  Timer timer(reactor->timers(), [&] { fired = true; });
  reactor->RunTurn();
  timer.ArmAfter(50 * kNsPerMs);
  timer.ArmAfter(3 * kNsPerMs);
  int sleeps = 0;
  while (!fired) {
    reactor->RunTurn();
    if (fired || !reactor->PrepareToSleep()) continue;
    pollfd entry{reactor->fd(), POLLIN, 0};
    ASSERT_EQ(poll(&entry, 1, 5000), 1) << "the ring's fd stayed silent";
    ++sleeps;
  }
  EXPECT_GE(sleeps, 1);
  EXPECT_LE(sleeps, 3);
}

TEST(Reactor, AnEarlierTimerReplacesTheOneArmedInTheKernel) {
  auto reactor = MakeReactor();
  bool fired = false;
  Timer late(reactor->timers(), [] {});
  Timer early(reactor->timers(), [&] { fired = true; });
  late.ArmAfter(60 * kNsPerSecond);
  reactor->RunTurn();
  ASSERT_TRUE(reactor->PrepareToSleep());
  early.ArmAfter(2 * kNsPerMs);
  while (!fired) {
    if (reactor->PrepareToSleep()) {
      pollfd entry{reactor->fd(), POLLIN, 0};
      ASSERT_EQ(poll(&entry, 1, 5000), 1);
    }
    reactor->RunTurn();
  }
}

TEST(Reactor, ItsFdBecomesReadableForDeferredKernelWorkAndForMail) {
  auto reactor = MakeReactor();
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  RecordingOp op;
  char byte = 0;
  io_uring_sqe* sqe = reactor->ring()->GetSqe();
  io_uring_prep_read(sqe, fds[0], &byte, 1, 0);
  reactor->ring()->Prepare(sqe, op);
  while (reactor->RunTurn()) {
  }
  ASSERT_TRUE(reactor->PrepareToSleep());
  pollfd entry{reactor->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, 0), 0);
  ASSERT_EQ(write(fds[1], "x", 1), 1);
  ASSERT_EQ(poll(&entry, 1, 5000), 1);
  while (op.count == 0) reactor->RunTurn();
  EXPECT_EQ(op.last_result, 1);
  EXPECT_EQ(byte, 'x');

  while (reactor->RunTurn()) {
  }
  ASSERT_TRUE(reactor->PrepareToSleep());
  bool ran = false;
  std::thread([&] { reactor->Post([&] { ran = true; }); }).join();
  ASSERT_EQ(poll(&entry, 1, 5000), 1);
  reactor->RunTurn();
  EXPECT_TRUE(ran);
  close(fds[0]);
  close(fds[1]);
}

TEST(IoRing, ManyMoreSubmissionsThanEntriesAllComplete) {
  auto ring = IoRing::Create(8);
  ASSERT_TRUE(ring.ok());
  RecordingOp op;
  for (int i = 0; i < 1000; ++i) {
    io_uring_sqe* sqe = (*ring)->GetSqe();
    io_uring_prep_nop(sqe);
    (*ring)->Prepare(sqe, op);
  }
  while ((*ring)->inflight_count() > 0) {
    (*ring)->Submit();
    (*ring)->Dispatch(64);
  }
  EXPECT_EQ(op.count, 1000);
}

TEST(IoRing, DoesNotEnterTheKernelWithoutNeed) {
  auto ring = IoRing::Create(8);
  ASSERT_TRUE(ring.ok());
  for (int i = 0; i < 10; ++i) EXPECT_FALSE((*ring)->Submit());
  EXPECT_EQ((*ring)->enter_count(), 0u);
}

TEST(IoRing, WhatAnotherThreadPreparesAfterTheOwnerEndedIsCancelled) {
  auto ring = IoRing::Create(8);
  ASSERT_TRUE(ring.ok());
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  RecordingOp armed, late;
  char byte = 0;
  std::thread([&] {
    io_uring_sqe* sqe = (*ring)->GetSqe();
    io_uring_prep_read(sqe, fds[0], &byte, 1, 0);
    (*ring)->Prepare(sqe, armed);
    (*ring)->Submit();
  }).join();
  io_uring_sqe* sqe = (*ring)->GetSqe();
  io_uring_prep_nop(sqe);
  (*ring)->Prepare(sqe, late);
  while ((*ring)->inflight_count() > 0) {
    (*ring)->Submit();
    (*ring)->Dispatch(64);
  }
  EXPECT_EQ(armed.count, 1);
  EXPECT_LT(armed.last_result, 0);
  EXPECT_EQ(late.count, 1);
  EXPECT_EQ(late.last_result, -ECANCELED);
  close(fds[0]);
  close(fds[1]);
}

TEST(IoRing, BuffersAreRegisteredAndReused) {
  auto ring = IoRing::Create(8);
  ASSERT_TRUE(ring.ok());
  static std::byte memory[4096];
  const int first = (*ring)->RegisterBuffer(memory);
  if (first < 0) GTEST_SKIP() << "this kernel or memlock limit has no registered buffers";
  const int second = (*ring)->RegisterBuffer(memory);
  EXPECT_NE(first, second);
  (*ring)->UnregisterBuffer(first);
  EXPECT_EQ((*ring)->RegisterBuffer(memory), first);
}

}  // namespace
}  // namespace ibnbd
