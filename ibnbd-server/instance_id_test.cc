// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/instance_id.h"

#include <gtest/gtest.h>

namespace ibnbd {
namespace {

TEST(InstanceId, IsTheUuidOfTheBoot) {
  const auto id = ParseUuid("00112233-4455-6677-8899-aabbccddeeff\n");
  ASSERT_TRUE(id.has_value());
  EXPECT_EQ((*id)[1], 0x11);
  EXPECT_EQ((*id)[15], 0xff);
}

TEST(InstanceId, IsRefusedIfItIsNoneOrAllZero) {
  EXPECT_FALSE(ParseUuid(""));
  EXPECT_FALSE(ParseUuid("00112233-4455-6677-8899-aabbccddeef"));
  EXPECT_FALSE(ParseUuid("00112233-4455-6677-8899-aabbccddeefg"));
  EXPECT_FALSE(ParseUuid("00000000-0000-0000-0000-000000000000"));
}

TEST(InstanceId, StaysOverRestartsOfTheProcessUnlessTheBootIsNotKnown) {
  EXPECT_EQ(ReadInstanceId(), ReadInstanceId());
  const InstanceId unknown = ReadInstanceId("/nonexistent");
  EXPECT_NE(unknown, InstanceId{});
  EXPECT_NE(unknown, ReadInstanceId("/nonexistent"));
}

}  // namespace
}  // namespace ibnbd
