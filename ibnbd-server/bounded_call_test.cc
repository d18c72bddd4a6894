// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/bounded_call.h"

#include <signal.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace ibnbd {
namespace {

constexpr std::int64_t kForEver = 600 * kNsPerSecond;

TEST(BoundedCall, WhatReturnsHasRun) {
  BoundedCall call;
  const auto count = std::make_shared<int>(0);
  for (int i = 1; i <= 100; ++i) {
    ASSERT_TRUE(call.Run([count] { ++*count; }, kForEver));
    ASSERT_EQ(*count, i);
  }
}

TEST(BoundedCall, WhatHangsIsLeftBehindAndNothingElseIsBegunUntilItReturns) {
  struct Shared {
    absl::Notification begun, release;
    std::atomic<int> others{0};
  };
  const auto shared = std::make_shared<Shared>();
  BoundedCall call;
  EXPECT_FALSE(call.Run(
      [shared] {
        shared->begun.Notify();
        shared->release.WaitForNotification();
      },
      kNsPerMs));
  shared->begun.WaitForNotification();
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(call.Run([shared] { ++shared->others; }, kForEver));  // At once, not then.
  }
  BoundedCall another;
  EXPECT_TRUE(another.Run([] {}, kForEver));
  shared->release.Notify();
  while (!call.Run([shared] { ++shared->others; }, kForEver)) {
  }
  EXPECT_EQ(shared->others, 1);
}

// A second each would be more than the test has.
TEST(BoundedCall, ManyThatHangCostLittleMoreThanOne) {
  const auto release = std::make_shared<absl::Notification>();
  std::vector<BoundedCall> calls(200);
  for (BoundedCall& call : calls) {
    ASSERT_FALSE(call.Run([release] { release->WaitForNotification(); }));
  }
  release->Notify();
  for (BoundedCall& call : calls) ASSERT_TRUE(call.Wait(kForEver));
}

// What is only slow must not keep the patience short that others' hanging has left it.
TEST(BoundedCall, WhatIsSlowIsWaitedForAgainSomeTimeAfterAnotherHung) {
  const auto release = std::make_shared<absl::Notification>();
  BoundedCall hung;
  ASSERT_FALSE(hung.Run([release] { release->WaitForNotification(); }));
  BoundedCall slow;
  constexpr std::int64_t kSlowNs = BoundedCall::kPatienceNs / 2;
  constexpr int kTriesMax = 3 * BoundedCall::kPatienceRestNs / kSlowNs;
  int tries = 1;
  while (!slow.Run([] {
    absl::Notification().WaitForNotificationWithTimeout(absl::Nanoseconds(kSlowNs));
  }) && tries < kTriesMax) {
    ASSERT_TRUE(slow.Wait(kForEver));
    ++tries;
  }
  EXPECT_LT(tries, kTriesMax);
  release->Notify();
  ASSERT_TRUE(hung.Wait(kForEver));
}

TEST(BoundedCall, WhoAsksAgainWaitsForWhatWasLeftBehind) {
  const auto release = std::make_shared<absl::Notification>();
  BoundedCall call;
  EXPECT_TRUE(call.Wait(0));
  EXPECT_FALSE(call.Run([release] { release->WaitForNotification(); }, kNsPerMs));
  EXPECT_FALSE(call.Wait(kNsPerMs));
  EXPECT_EQ(call.Get<int>("it", []() -> absl::StatusOr<int> { return 1; }).status().message(),
            "it does not answer: Device or resource busy");
  release->Notify();
  EXPECT_TRUE(call.Wait(kForEver));
  EXPECT_EQ(*call.Get<int>(
                "it", []() -> absl::StatusOr<int> { return 1; }, kForEver),
            1);
}

TEST(BoundedCall, ALateAnswerIsThereForWhoAsksAgain) {
  const auto answers = std::make_shared<absl::Notification>();
  const auto begun = std::make_shared<std::atomic<int>>(0);
  LateCall<int> call;
  const auto ask = [&](std::int64_t patience_ns) {
    return call.Get(
        "it",
        [answers, begun]() -> absl::StatusOr<int> {
          const int number = ++*begun;
          answers->WaitForNotification();
          return number;
        },
        patience_ns);
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(ask(0).status().message(), "it does not answer: Device or resource busy");
    EXPECT_TRUE(call.IsUnderWay());
  }
  answers->Notify();
  EXPECT_EQ(*ask(kForEver), 1);
  EXPECT_FALSE(call.IsUnderWay());
  EXPECT_EQ(*ask(kForEver), 2);  // Anew: an answer is for one who asks.
}

// One that the main thread waits for, and has not held back everywhere.
TEST(BoundedCall, SignalsDoNotComeToItsThread) {
  const auto held_back = std::make_shared<sigset_t>();
  BoundedCall call;
  ASSERT_TRUE(
      call.Run([held_back] { pthread_sigmask(SIG_SETMASK, nullptr, held_back.get()); }, kForEver));
  EXPECT_EQ(sigismember(held_back.get(), SIGTERM), 1);
  EXPECT_EQ(sigismember(held_back.get(), SIGHUP), 1);
  sigset_t ours;
  pthread_sigmask(SIG_SETMASK, nullptr, &ours);
  EXPECT_EQ(sigismember(&ours, SIGTERM), 0);
}

TEST(BoundedCall, ItMayEndBeforeWhatItHasLeftBehind) {
  struct Shared {
    absl::Notification release, done;
  };
  const auto shared = std::make_shared<Shared>();
  {
    BoundedCall call;
    EXPECT_FALSE(call.Run(
        [shared] {
          shared->release.WaitForNotification();
          shared->done.Notify();
        },
        kNsPerMs));
  }
  shared->release.Notify();
  shared->done.WaitForNotification();
}

}  // namespace
}  // namespace ibnbd
