// SPDX-License-Identifier: Apache-2.0
// Heartbeats and pauses, without a clock.
#include "gtest/gtest.h"
#include "rtrs/backoff.h"
#include "rtrs/heartbeat.h"

namespace ibnbd::rtrs {
namespace {

TEST(Heartbeat, OnlyOneMessageIsUnansweredAtATime) {
  Heartbeat heartbeat(5);
  EXPECT_EQ(heartbeat.Tick(), Heartbeat::Verdict::kSend);
  EXPECT_EQ(heartbeat.Tick(), Heartbeat::Verdict::kWait);
  heartbeat.OnSignOfLife();
  EXPECT_EQ(heartbeat.Tick(), Heartbeat::Verdict::kSend);
}

TEST(Heartbeat, ASilentPeerIsDeadAfterTheMissesThatRtrsAllows) {
  Heartbeat heartbeat(5);
  int ticks = 1;
  while (heartbeat.Tick() != Heartbeat::Verdict::kDead) ++ticks;
  // The message at tick 1; 6 ticks of 5 s are the 30 s of the Linux driver.
  EXPECT_EQ(ticks, 7);
}

TEST(Heartbeat, AnySignOfLifeStartsTheCountAgain) {
  Heartbeat heartbeat(2);
  for (int i = 0; i < 100; ++i) {
    EXPECT_NE(heartbeat.Tick(), Heartbeat::Verdict::kDead);
    if (i % 3 == 2) heartbeat.OnSignOfLife();
  }
}

TEST(Backoff, PausesDoubleUpToTheLongestWithinAQuarterOfJitter) {
  Backoff backoff(100, 1000, Prng(1));
  for (const std::int64_t expected : {100, 200, 400, 800, 1000, 1000, 1000}) {
    const std::int64_t pause = backoff.Next();
    EXPECT_GE(pause, expected - expected / 4);
    EXPECT_LE(pause, expected + expected / 4);
  }
  backoff.Reset();
  EXPECT_LE(backoff.Next(), 125);
  EXPECT_GE(backoff.Longest(), 750);
}

TEST(Backoff, TwoClientsDoNotPauseInStep) {
  Backoff one(1'000'000, 64'000'000, Prng(1));
  Backoff other(1'000'000, 64'000'000, Prng(2));
  int equal = 0;
  for (int i = 0; i < 10; ++i) equal += one.Next() == other.Next() ? 1 : 0;
  EXPECT_LT(equal, 3);
}

TEST(Backoff, AMaximumBelowTheMinimumIsTheMinimum) {
  Backoff backoff(1000, 10, Prng(3));
  for (int i = 0; i < 5; ++i) EXPECT_GE(backoff.Next(), 750);
}

}  // namespace
}  // namespace ibnbd::rtrs
