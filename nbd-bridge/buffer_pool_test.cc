// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/buffer_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/prng.h"
#include "nbd-bridge/fake_ibnbd.h"

namespace ibnbd::bridge {
namespace {

constexpr std::uint32_t kMiB = 1u << 20;

TEST(BuddyAllocatorTest, GivesOutAllOfItAndThenNothing) {
  BuddyAllocator buddies(4 * kMiB);
  for (std::uint32_t i = 0; i < 4 * kMiB / 4096; ++i) ASSERT_TRUE(buddies.TryClaim(1));
  EXPECT_EQ(buddies.free_bytes(), 0u);
  EXPECT_FALSE(buddies.TryClaim(1));
}

TEST(BuddyAllocatorTest, RoundsUpToPowersOfTwo) {
  BuddyAllocator buddies(2 * kMiB);
  const auto free_after = [&](std::uint32_t length) {
    const auto offset = buddies.TryClaim(length);
    const std::uint32_t used = buddies.size() - buddies.free_bytes();
    buddies.Release(*offset, length);
    return used;
  };
  EXPECT_EQ(free_after(1), 4096u);
  EXPECT_EQ(free_after(4096), 4096u);
  EXPECT_EQ(free_after(4097), 8192u);
  EXPECT_EQ(free_after(65536), 65536u);
  EXPECT_EQ(free_after(65537), 131072u);
  EXPECT_EQ(free_after(kMiB), kMiB);
  EXPECT_EQ(buddies.free_bytes(), buddies.size());
}

TEST(BuddyAllocatorTest, MergesWhatCameBackInAnyOrder) {
  BuddyAllocator buddies(kMiB);
  std::vector<std::uint32_t> offsets;
  while (const auto offset = buddies.TryClaim(4096)) offsets.push_back(*offset);
  Prng prng(7);
  while (!offsets.empty()) {
    const std::size_t i = prng.Below(offsets.size());
    buddies.Release(offsets[i], 4096);
    offsets[i] = offsets.back();
    offsets.pop_back();
  }
  EXPECT_TRUE(buddies.TryClaim(kMiB));
}

TEST(BuddyAllocatorTest, ReusesTheBlockThatWasReleasedLast) {
  BuddyAllocator buddies(kMiB);
  const auto kept = buddies.TryClaim(4096);
  const auto first = buddies.TryClaim(4096);
  buddies.Release(*first, 4096);
  EXPECT_EQ(buddies.TryClaim(4096), first);
  EXPECT_NE(first, kept);
}

TEST(BuddyAllocatorTest, BlocksNeverOverlapWhateverTheOrder) {
  BuddyAllocator buddies(8 * kMiB);
  Prng prng(4711);
  std::map<std::uint32_t, std::uint32_t> used;  // Offset to length.
  for (int i = 0; i < 20'000; ++i) {
    if (!used.empty() && prng.Chance(480'000)) {
      auto it = used.begin();
      std::advance(it, static_cast<std::ptrdiff_t>(prng.Below(used.size())));
      buddies.Release(it->first, it->second);
      used.erase(it);
      continue;
    }
    const auto length = static_cast<std::uint32_t>(
        1 + prng.Below(prng.Chance(100'000) ? std::uint64_t{kMiB} : std::uint64_t{40'000}));
    const auto offset = buddies.TryClaim(length);
    if (!offset) continue;
    ASSERT_LE(*offset + length, buddies.size());
    const auto next = used.lower_bound(*offset);
    if (next != used.end()) {
      ASSERT_LE(*offset + length, next->first);
    }
    if (next != used.begin()) {
      ASSERT_LE(std::prev(next)->first + std::prev(next)->second, *offset);
    }
    used[*offset] = length;
  }
  for (const auto& [offset, length] : used) buddies.Release(offset, length);
  EXPECT_EQ(buddies.free_bytes(), buddies.size());
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(buddies.TryClaim(kMiB));
}

TEST(BuddyAllocatorDeathTest, ReleasingTwiceIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  BuddyAllocator buddies(kMiB);
  const auto offset = buddies.TryClaim(4096);
  buddies.Release(*offset, 4096);
  EXPECT_DEATH(buddies.Release(*offset, 4096), "CHECK failed");
}

TEST(BufferPoolTest, BlocksLieInTheRegisteredBuffer) {
  auto pool = BufferPool::Create(nullptr, 2 * kMiB);
  ASSERT_TRUE(pool.ok());
  auto* base = static_cast<std::byte*>(ibnbd_buffer_data((*pool)->buffer()));
  const BufferPool::Block a = (*pool)->TryClaim(kMiB), b = (*pool)->TryClaim(kMiB);
  EXPECT_GE(a.data, base);
  EXPECT_LE(b.data + kMiB, base + 2 * kMiB);
  EXPECT_EQ((*pool)->TryClaim(1).data, nullptr);
  EXPECT_FALSE((*pool)->untouched());
  (*pool)->Release(a);
  (*pool)->Release(b);
  EXPECT_TRUE((*pool)->untouched());
  pool->reset();
  EXPECT_EQ(fake::switches().buffers, 0);
}

}  // namespace
}  // namespace ibnbd::bridge
