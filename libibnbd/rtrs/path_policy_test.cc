// SPDX-License-Identifier: Apache-2.0
// Which path is picked: with a clock that the test turns, and a model of paths that take a certain
// time for each request.
#include "rtrs/path_policy.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>

#include "gtest/gtest.h"

namespace ibnbd::rtrs {
namespace {

constexpr PathWork kRead4K{4096, true};
constexpr std::int64_t kUs = 1000, kMs = 1'000'000;

class PathPolicyTest : public ::testing::Test {
 protected:
  void Use(std::uint32_t count, PathPolicyKind kind = PathPolicyKind::kAdaptive) {
    policy.SetKind(kind);
    for (std::uint32_t i = 0; i < count; ++i) policy.Add(i);
    mask = (1u << count) - 1;
  }
  std::uint32_t Pick() {
    const int path = policy.Pick(mask, kRead4K, now);
    EXPECT_GE(path, 0);
    return static_cast<std::uint32_t>(path);
  }
  // One after the other; counts what each path got.
  void RunOneByOne(int count) {
    for (int i = 0; i < count; ++i) {
      const std::uint32_t path = Pick();
      ++picks[path];
      const std::uint32_t load = policy.OnPosted(path, kRead4K, now);
      const std::int64_t posted = now;
      now += service[path];
      policy.OnAnswered(path, kRead4K, load, posted, now);
    }
  }
  // As many as `depth` at once; each path serves one after the other.
  void RunMany(int depth, int count) {
    struct Request {
      std::int64_t posted, done;
      std::uint32_t load;
    };
    std::array<std::deque<Request>, 2> queues;
    const auto submit = [&] {
      const std::uint32_t path = Pick();
      ++picks[path];
      const std::uint32_t load = policy.OnPosted(path, kRead4K, now);
      const std::int64_t begins = queues[path].empty() ? now : queues[path].back().done;
      queues[path].push_back({now, begins + service[path], load});
    };
    for (int i = 0; i < depth; ++i) submit();
    for (int i = 0; i < count; ++i) {
      const std::uint32_t path =
          queues[0].empty() ||
                  (!queues[1].empty() && queues[1].front().done < queues[0].front().done)
              ? 1
              : 0;
      const Request request = queues[path].front();
      queues[path].pop_front();
      now = request.done;
      policy.OnAnswered(path, kRead4K, request.load, request.posted, now);
      if (i > count / 10) longest_ns = std::max(longest_ns, now - request.posted);
      if (i < count - depth) submit();
    }
  }
  PathPolicy policy;
  std::int64_t longest_ns = 0;
  std::uint32_t mask = 0;
  std::int64_t now = 1'000 * kMs;
  std::array<std::int64_t, kClientPathsMax> service{};
  std::array<int, kClientPathsMax> picks{};
};

TEST_F(PathPolicyTest, WithoutCandidatesThereIsNone) {
  Use(2);
  EXPECT_EQ(policy.Pick(0, kRead4K, now), -1);
  EXPECT_EQ(policy.Pick(2, kRead4K, now), 1);
}

TEST_F(PathPolicyTest, RoundRobinIsExactAndFollowsTheWeights) {
  Use(3, PathPolicyKind::kRoundRobin);
  service.fill(100 * kUs);
  RunOneByOne(300);
  EXPECT_EQ(picks[0], 100);
  EXPECT_EQ(picks[1], 100);
  picks = {};
  policy.SetWeight(0, 300);
  policy.SetWeight(1, 0);
  RunOneByOne(400);
  EXPECT_NEAR(picks[0], 300, 2);
  EXPECT_EQ(picks[1], 0);
  EXPECT_NEAR(picks[2], 100, 2);
}

TEST_F(PathPolicyTest, WeightZeroIsUsedWhenNothingElseIsThere) {
  Use(2);
  policy.SetWeight(0, 0);
  policy.SetWeight(1, 0);
  EXPECT_GE(policy.Pick(3, kRead4K, now), 0);
  policy.SetWeight(1, 1);
  EXPECT_EQ(policy.Pick(3, kRead4K, now), 1);
  EXPECT_EQ(policy.Pick(1, kRead4K, now), 0);
}

TEST_F(PathPolicyTest, MinInflightCountsBytesAndNotOnlyRequests) {
  Use(2, PathPolicyKind::kMinInflight);
  const PathWork large{128 << 10, false};
  policy.OnPosted(0, large, now);
  for (int i = 0; i < 5; ++i) {
    const std::uint32_t path = Pick();
    EXPECT_EQ(path, 1u);
    policy.OnPosted(path, kRead4K, now);
  }
}

TEST_F(PathPolicyTest, MinLatencyTakesTheFastestAndNoticesWhenThatChanges) {
  Use(2, PathPolicyKind::kMinLatency);
  service = {100 * kUs, 300 * kUs};
  RunOneByOne(1000);
  EXPECT_GT(picks[0], 950);
  service = {500 * kUs, 300 * kUs};
  RunOneByOne(200);
  picks = {};
  RunOneByOne(1000);
  EXPECT_GT(picks[1], 950);
}

TEST_F(PathPolicyTest, AdaptiveUsesEqualPathsEqually) {
  Use(2);
  service = {100 * kUs, 110 * kUs};
  RunOneByOne(2000);
  EXPECT_NEAR(picks[0], 1000, 100);
}

TEST_F(PathPolicyTest, ABrownOutIsNoticedWithinAFewAnswers) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(200);
  service[1] = 1100 * kUs;
  const std::int64_t begun = now;
  while (!policy.drained(1)) RunOneByOne(1);
  EXPECT_LT(now - begun, 100 * kMs);
  picks = {};
  RunOneByOne(20'000);
  EXPECT_GT(picks[1], 10);            // Probes go on,
  EXPECT_LT(picks[1], 20'000 / 128);  // but not so many that a p99 could see them.
}

TEST_F(PathPolicyTest, APathThatIsWellAgainIsUsedAgain) {
  Use(2);
  service = {100 * kUs, 100 * kUs};
  RunOneByOne(200);
  service[1] = 2 * kMs;
  RunOneByOne(5000);
  ASSERT_TRUE(policy.drained(1));
  service[1] = 100 * kUs;
  RunOneByOne(100'000);
  EXPECT_FALSE(policy.drained(1));
  picks = {};
  RunOneByOne(1000);
  EXPECT_NEAR(picks[1], 500, 60);
}

TEST_F(PathPolicyTest, AnOldEstimateOfWorkThatHasEndedDoesNotKeepAPathOut) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(200);
  const PathWork large{1 << 20, false};
  for (std::uint32_t path = 0; path < 2; ++path) {
    for (int i = 0; i < 10; ++i) {
      policy.OnPosted(path, large, now);
      policy.OnAnswered(path, large, 1, now - (path == 0 ? 1 : 10) * kMs, now);
    }
  }
  ASSERT_TRUE(policy.drained(1));
  RunOneByOne(300'000);  // Of small reads, and both paths are well.
  EXPECT_FALSE(policy.drained(1));
}

TEST_F(PathPolicyTest, AStandbyIsNoMeasureForThePathsInUse) {
  Use(3);
  service = {50 * kUs, 1 * kMs, 1 * kMs};
  for (std::uint32_t path = 0; path < 3; ++path) {
    for (int i = 0; i < 3; ++i) {  // Too few to be compared yet.
      policy.OnPosted(path, kRead4K, now);
      policy.OnAnswered(path, kRead4K, 1, now - service[path], now);
    }
  }
  policy.SetWeight(0, 0);
  policy.OnPosted(0, kRead4K, now);
  policy.OnAnswered(0, kRead4K, 1, now - service[0], now);
  RunOneByOne(1000);
  EXPECT_EQ(picks[0], 0);
  EXPECT_FALSE(policy.drained(1));
  EXPECT_FALSE(policy.drained(2));
}

TEST_F(PathPolicyTest, EachRelapseDoublesTheTimeToProveItself) {
  Use(2);
  service.fill(100 * kUs);
  std::int64_t longest = 0;
  for (int round = 0; round < 4; ++round) {
    service[1] = 100 * kUs;
    while (policy.drained(1)) RunOneByOne(1);
    RunOneByOne(20);
    service[1] = 3 * kMs;
    while (!policy.drained(1)) RunOneByOne(1);
    const std::int64_t drained_at = now;
    service[1] = 100 * kUs;
    while (policy.drained(1)) RunOneByOne(1);
    longest = now - drained_at;
  }
  EXPECT_GE(longest, 4 * PathPolicy::kProbationNsMin);
}

TEST_F(PathPolicyTest, AStalledPathGetsNothingBeforeItAnswers) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(100);
  policy.OnPosted(1, kRead4K, now);  // And no answer comes.
  const std::int64_t posted = now;
  const std::int64_t until = now + 100 * kMs;
  int last = 0;
  while (now < until) {
    const std::uint32_t path = Pick();
    if (path == 1) {
      last = static_cast<int>((now - posted) / kMs);
      now += 100 * kUs;
      continue;
    }
    policy.OnPosted(0, kRead4K, now);
    now += 100 * kUs;
    policy.OnAnswered(0, kRead4K, 1, now - 100 * kUs, now);
  }
  EXPECT_LE(last, 6);  // Noticed after 5 ms.
  EXPECT_TRUE(policy.drained(1));
}

TEST_F(PathPolicyTest, OneOutlierIsForgiven) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(500);
  policy.OnPosted(1, kRead4K, now);
  policy.OnAnswered(1, kRead4K, 1, now - 4 * kMs, now);
  EXPECT_FALSE(policy.drained(1));
}

TEST_F(PathPolicyTest, ARequestThatIsAloneTakesTheFasterPath) {
  Use(2);
  service = {100 * kUs, 180 * kUs};
  RunOneByOne(200);
  picks = {};
  RunOneByOne(20'000);
  EXPECT_FALSE(policy.drained(1));
  EXPECT_GT(picks[1], 10);  // It is looked at now and then,
  EXPECT_LT(picks[1], 20'000 / 128);
  service[1] = 60 * kUs;  // so that it is seen when that changes.
  RunOneByOne(20'000);
  picks = {};
  RunOneByOne(1000);
  EXPECT_GT(picks[1], 950);
}

TEST_F(PathPolicyTest, ASlowerPathTakesItsShareOfManyRequests) {
  Use(2);
  service = {100 * kUs, 200 * kUs};
  const std::int64_t begun = now;
  RunMany(32, 20'000);
  EXPECT_FALSE(policy.drained(1));
  EXPECT_NEAR(picks[0], 2 * picks[1], picks[1] / 5);
  EXPECT_LT(now - begun, 20'000 * 70 * kUs);  // Both have always been busy.
  EXPECT_LT(longest_ns, 32 * 100 * kUs);      // No worse than the faster path alone.
}

TEST_F(PathPolicyTest, APathThatJoinsABusyOneDoesNotMakeItLookSlow) {
  Use(1);
  service.fill(100 * kUs);
  RunMany(32, 2000);
  policy.Add(1);
  mask = 3;
  picks = {};
  const std::int64_t begun = now;
  RunMany(32, 5000);
  EXPECT_FALSE(policy.drained(0));
  EXPECT_FALSE(policy.drained(1));
  EXPECT_NEAR(picks[0], picks[1], 500);
  EXPECT_LT(now - begun, 5000 * 55 * kUs);
}

TEST_F(PathPolicyTest, APathThatLosesPacketsGetsLittleThoughMostOfItsAnswersAreFast) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(200);
  int lost = 0;
  picks = {};
  for (int i = 0; i < 20'000; ++i) {
    const int before = picks[1];
    service[1] = before % 40 == 20 ? 200 * kMs : 100 * kUs;  // Sent again when a timer has expired.
    RunOneByOne(1);
    if (service[1] > kMs && picks[1] != before) ++lost;
  }
  EXPECT_GT(lost, 1);
  EXPECT_LT(lost, 20);  // 250 of them, if both paths were used alike.
}

TEST_F(PathPolicyTest, WhatHitsAllPathsAlikeIsNoFaultOfOne) {
  Use(2);
  for (int i = 0; i < 5000; ++i) {
    service.fill(i % 50 == 49 ? 50 * kMs : 100 * kUs);
    RunOneByOne(1);
    ASSERT_FALSE(policy.drained(0) && policy.drained(1));
  }
  EXPECT_GT(picks[0], 1500);
  EXPECT_GT(picks[1], 1500);
}

TEST_F(PathPolicyTest, ProbesOfAnIllPathTakeLittleOfTheTime) {
  Use(2);
  service = {100 * kUs, 30 * kMs};
  RunOneByOne(600);
  ASSERT_TRUE(policy.drained(1));
  picks = {};
  const std::int64_t begun = now;
  RunOneByOne(200'000);
  EXPECT_GT(picks[1], 2);
  EXPECT_LT(picks[1] * service[1], (now - begun) / 50);
}

TEST_F(PathPolicyTest, LargeRequestsDoNotMakeAPathLookSlow) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(200);
  const PathWork large{128 << 10, true};
  for (int i = 0; i < 50; ++i) {
    policy.OnPosted(1, large, now);
    policy.OnAnswered(1, large, 1, now - 2 * kMs, now);
  }
  EXPECT_FALSE(policy.drained(1));
}

TEST_F(PathPolicyTest, IfAllAreIllAlikeAllAreUsed) {
  Use(2);
  service.fill(100 * kUs);
  RunOneByOne(200);
  policy.OnPosted(0, kRead4K, now);
  policy.OnPosted(1, kRead4K, now);
  now += 50 * kMs;
  std::array<int, 2> got{};
  for (int i = 0; i < 100; ++i) {
    const std::uint32_t path = Pick();
    ++got[path];
    policy.OnPosted(path, kRead4K, now);
  }
  EXPECT_NEAR(got[0], 50, 2);
}

TEST_F(PathPolicyTest, APathThatJoinsAgainBeginsAfresh) {
  Use(2);
  service = {100 * kUs, 5 * kMs};
  RunOneByOne(2000);
  ASSERT_TRUE(policy.drained(1));
  policy.Remove(1);
  policy.Add(1);
  EXPECT_FALSE(policy.drained(1));
  EXPECT_EQ(policy.estimate_ns(1), 0);
}

}  // namespace
}  // namespace ibnbd::rtrs
