// SPDX-License-Identifier: Apache-2.0
#include "base/prng.h"

#include <gtest/gtest.h>

#include <array>

namespace ibnbd {
namespace {

TEST(Prng, GivesTheSequenceOfThePaper) {
  // SplitMix64 with seed 0; the values every implementation publishes.
  Prng prng(0);
  EXPECT_EQ(prng.Next(), 0xe220a8397b1dcdafu);
  EXPECT_EQ(prng.Next(), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(prng.Next(), 0x06c45d188009454fu);
}

TEST(Prng, StaysWithinItsBounds) {
  Prng prng(1);
  EXPECT_EQ(prng.Below(0), 0u);
  EXPECT_EQ(prng.Below(1), 0u);
  bool low = false, high = false;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_LT(prng.Below(10), 10u);
    const std::int64_t value = prng.Between(-3, 3);
    ASSERT_GE(value, -3);
    ASSERT_LE(value, 3);
    low |= value == -3;
    high |= value == 3;
  }
  EXPECT_TRUE(low && high);
}

TEST(Prng, ChanceIsAboutWhatItSays) {
  Prng prng(2);
  int hits = 0;
  for (int i = 0; i < 100'000; ++i) hits += prng.Chance(250'000) ? 1 : 0;
  EXPECT_NEAR(hits, 25'000, 1000);
  EXPECT_FALSE(prng.Chance(0));
  EXPECT_TRUE(prng.Chance(1'000'000));
}

TEST(Prng, AForkDoesNotShiftItsParent) {
  Prng a(7), b(7);
  Prng child = a.Fork();
  (void)b.Fork();
  for (int i = 0; i < 100; ++i) (void)child.Next();
  EXPECT_EQ(a.Next(), b.Next());
}

}  // namespace
}  // namespace ibnbd
