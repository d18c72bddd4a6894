// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/fault_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace ibnbd::sim {
namespace {
using ::testing::HasSubstr;
using ::testing::Not;

TEST(FaultPlanTest, DefaultPlanHasNoFaults) {
  EXPECT_THAT(FaultPlan().ToString(), HasSubstr("no faults"));
}

TEST(FaultPlanTest, EqualSeedsDrawEqualPlans) {
  Prng first(4711), second(4711);
  EXPECT_EQ(DrawSwarmPlan(first).ToString(), DrawSwarmPlan(second).ToString());
}

TEST(FaultPlanTest, SeedsDifferInWhichFaultsExistAtAll) {
  int with_cuts = 0, with_partitions = 0, with_both = 0;
  std::set<std::string> plans;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Prng prng(seed);
    const FaultPlan plan = DrawSwarmPlan(prng);
    plans.insert(plan.ToString());
    with_cuts += plan.cut_ppm != 0;
    with_partitions += plan.partition_ppm != 0;
    with_both += plan.cut_ppm != 0 && plan.partition_ppm != 0;
  }
  EXPECT_EQ(plans.size(), 200u);
  EXPECT_GT(with_cuts, 40);
  EXPECT_LT(with_cuts, 160);
  EXPECT_GT(with_partitions, 40);
  EXPECT_GT(with_both, 5);
}

TEST(FaultPlanTest, RangesAreNeverEmpty) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    Prng prng(seed);
    const FaultPlan plan = DrawSwarmPlan(prng);
    for (const NsRange& range :
         {plan.link_delay_ns, plan.late_landing_ns, plan.one_sided_ns, plan.partition_ns,
          plan.clog_ns, plan.stall_ns, plan.connect_late_ns, plan.slow_message_ns,
          plan.slow_completion_ns}) {
      EXPECT_LE(range.low, range.high) << plan.ToString();
      EXPECT_GE(range.low, 0) << plan.ToString();
    }
  }
}

TEST(FaultPlanTest, WithoutFaultsKeepsTheTimingOnly) {
  FaultPlan plan;
  plan.cut_ppm = 100;
  plan.stall_ppm = 7;
  plan.link_delay_ns = {1, 2};
  EXPECT_THAT(plan.ToString(), HasSubstr("cut=100ppm"));
  EXPECT_THAT(plan.ToString(), HasSubstr("stall=7ppm[100us..1s]"));
  const FaultPlan healed = plan.WithoutFaults();
  EXPECT_EQ(healed.cut_ppm, 0u);
  EXPECT_THAT(healed.ToString(), HasSubstr("no faults"));
  EXPECT_THAT(healed.ToString(), HasSubstr("link=1ns..2ns"));
  EXPECT_THAT(healed.ToString(), Not(HasSubstr("cut=")));
}

}  // namespace
}  // namespace ibnbd::sim
