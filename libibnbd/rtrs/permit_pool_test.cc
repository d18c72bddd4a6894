// SPDX-License-Identifier: Apache-2.0
// Permits: dealt without gap or overlap, handed out once, given back once.
#include "rtrs/permit_pool.h"

#include <set>

#include "gtest/gtest.h"

namespace ibnbd::rtrs {
namespace {

TEST(PermitPool, EveryChunkIsDealtToExactlyOneConnection) {
  for (const std::uint32_t depth : {2u, 3u, 5u, 16u, 17u, 128u, 512u, 65535u}) {
    for (const std::uint32_t lanes : {1u, 2u, 3u, 7u, 16u}) {
      if (depth < 1 + lanes) continue;
      std::uint32_t next = 0;
      for (std::uint32_t cid = 0; cid <= lanes; ++cid) {
        const PermitRange range = DealPermits(depth, lanes, cid);
        EXPECT_EQ(range.first, next) << depth << " " << lanes << " " << cid;
        EXPECT_GE(range.count, 1u) << depth << " " << lanes << " " << cid;
        next = range.first + range.count;
      }
      EXPECT_EQ(next, depth);
      EXPECT_LE(DealPermits(depth, lanes, 0).count, 8u);
    }
  }
}

TEST(PermitPool, LanesDifferByAtMostOnePermit) {
  std::set<std::uint32_t> counts;
  for (std::uint32_t cid = 1; cid <= 7; ++cid) counts.insert(DealPermits(128, 7, cid).count);
  EXPECT_LE(*counts.rbegin() - *counts.begin(), 1u);
}

TEST(PermitPool, APermitIsHandedOutOnceUntilItIsReleased) {
  PermitPool pool({10, 3});
  std::set<std::uint32_t> taken;
  for (int i = 0; i < 3; ++i) taken.insert(pool.TryAcquire());
  EXPECT_EQ(taken, (std::set<std::uint32_t>{10, 11, 12}));
  EXPECT_EQ(pool.TryAcquire(), PermitPool::kNone);
  EXPECT_TRUE(pool.empty());
  pool.Release(11);
  EXPECT_EQ(pool.used_count(), 2u);
  EXPECT_EQ(pool.TryAcquire(), 11u);
}

TEST(PermitPool, ChunksOfOthersAreNotOwned) {
  const PermitPool pool({10, 3});
  EXPECT_FALSE(pool.Owns(9));
  EXPECT_TRUE(pool.Owns(10));
  EXPECT_TRUE(pool.Owns(12));
  EXPECT_FALSE(pool.Owns(13));
  EXPECT_FALSE(pool.Owns(0));
  EXPECT_FALSE(pool.Owns(~0u));
}

TEST(PermitPoolDeathTest, ReleasingTwiceIsABug) {
  PermitPool pool({0, 2});
  const std::uint32_t chunk = pool.TryAcquire();
  pool.Release(chunk);
  EXPECT_DEATH(pool.Release(chunk), "CHECK failed");
}

}  // namespace
}  // namespace ibnbd::rtrs
