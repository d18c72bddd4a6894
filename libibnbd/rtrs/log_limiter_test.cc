// SPDX-License-Identifier: Apache-2.0
#include "rtrs/log_limiter.h"

#include <gtest/gtest.h>

namespace ibnbd::rtrs {
namespace {

TEST(LogLimiter, CountsWhatItRefusesAndAllowsAgainAfterASecond) {
  LogLimiter limiter(2);
  EXPECT_TRUE(limiter.Allow(100));
  EXPECT_TRUE(limiter.Allow(100));
  EXPECT_FALSE(limiter.Allow(100));
  EXPECT_FALSE(limiter.Allow(99 + kNsPerSecond));
  EXPECT_TRUE(limiter.Allow(100 + kNsPerSecond));
  EXPECT_EQ(limiter.TakeSuppressedCount(), 2u);
  EXPECT_EQ(limiter.TakeSuppressedCount(), 0u);
}

}  // namespace
}  // namespace ibnbd::rtrs
