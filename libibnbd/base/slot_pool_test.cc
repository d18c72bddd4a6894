// SPDX-License-Identifier: Apache-2.0
#include "base/slot_pool.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/prng.h"

namespace ibnbd {
namespace {

TEST(SlotPool, HandsOutEverySlotOnceAndThenIsExhausted) {
  SlotPool<int> pool(4);
  std::vector<bool> seen(4);
  for (int i = 0; i < 4; ++i) {
    ASSERT_FALSE(pool.exhausted());
    const SlotRef ref = pool.Claim();
    EXPECT_FALSE(seen[ref.index]);
    seen[ref.index] = true;
  }
  EXPECT_TRUE(pool.exhausted());
  EXPECT_EQ(pool.used_count(), 4u);
}

TEST(SlotPool, AReferenceThatWasReleasedFindsNothing) {
  SlotPool<int> pool(1);
  const SlotRef first = pool.Claim();
  *pool.Find(first) = 7;
  pool.Release(first.index);
  EXPECT_EQ(pool.Find(first), nullptr);
  const SlotRef second = pool.Claim();
  EXPECT_EQ(second.index, first.index);
  EXPECT_EQ(pool.Find(first), nullptr);
  ASSERT_NE(pool.Find(second), nullptr);
  EXPECT_EQ(*pool.Find(second), 7) << "the last user's value stays";
}

TEST(SlotPool, AnIndexBeyondThePoolFindsNothing) {
  SlotPool<int> pool(2);
  pool.Claim();
  EXPECT_EQ(pool.Find({2, 0}), nullptr);
  EXPECT_EQ(pool.Find({~0u, 0}), nullptr);
  EXPECT_EQ(pool.Find({1, 0}), nullptr) << "a free slot";
}

TEST(SlotPool, GenerationsWrapWithinTheBitsACookieHas) {
  SlotPool<int> pool(1);
  for (std::uint32_t i = 0; i < (1u << kSlotGenerationBits); ++i) {
    const SlotRef ref = pool.Claim();
    EXPECT_EQ(ref.generation, i);
    pool.Release(ref.index);
  }
  EXPECT_EQ(pool.Claim().generation, 0u);
}

TEST(SlotPool, CountsStayTrueUnderRandomUse) {
  SlotPool<std::uint64_t> pool(64);
  Prng prng(3);
  std::vector<SlotRef> held;
  for (int step = 0; step < 20'000; ++step) {
    if (!pool.exhausted() && (held.empty() || prng.Below(2) == 0)) {
      const SlotRef ref = pool.Claim();
      pool[ref.index] = ref.index;
      held.push_back(ref);
    } else {
      const std::size_t pick = prng.Below(held.size());
      ASSERT_NE(pool.Find(held[pick]), nullptr);
      ASSERT_EQ(*pool.Find(held[pick]), held[pick].index);
      pool.Release(held[pick].index);
      held[pick] = held.back();
      held.pop_back();
    }
    ASSERT_EQ(pool.used_count(), held.size());
  }
}

}  // namespace
}  // namespace ibnbd
