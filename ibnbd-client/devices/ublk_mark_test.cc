// SPDX-License-Identifier: Apache-2.0
// Whose a ublk device is, and of which volume: what is told apart, and what is not.
#include "ibnbd-client/devices/ublk_mark.h"

#include <gtest/gtest.h>

namespace ibnbd::client {
namespace {

constexpr std::uint64_t kOwner = 0x1122334455667788;
constexpr std::uint64_t kVolume = 0x99aabbccddeeff00;

TEST(UblkMark, ADeviceIsKnownByOwnerAndVolume) {
  const std::uint64_t flags = UblkFlagsOf({kOwner, kVolume});
  EXPECT_TRUE(UblkFlagsAre(flags, {kOwner, kVolume}));
  EXPECT_FALSE(UblkFlagsAre(flags, {kOwner, kVolume + 1}));
  EXPECT_FALSE(UblkFlagsAre(flags, {kOwner, kVolume ^ 1ull << 40}));
  EXPECT_FALSE(UblkFlagsAre(flags, {kOwner ^ 1ull << 32, kVolume}));
}

TEST(UblkMark, WhoDoesNotKnowTheVolumeKnowsTheOwner) {
  EXPECT_TRUE(UblkFlagsAre(UblkFlagsOf({kOwner, kVolume}), {kOwner, 0}));
  EXPECT_FALSE(UblkFlagsAre(UblkFlagsOf({kOwner ^ 1ull << 63, kVolume}), {kOwner, 0}));
}

TEST(UblkMark, ADeviceOfADaemonThatMarkedNoVolumesIsTheOwnersWhicheverVolumeItIsOf) {
  EXPECT_TRUE(UblkFlagsAre(kOwner, {kOwner, kVolume}));
  EXPECT_TRUE(UblkFlagsAre(kOwner, {kOwner, 0}));
  EXPECT_FALSE(UblkFlagsAre(kOwner + 1, {kOwner, kVolume}));
}

TEST(UblkMark, WhatIsNobodysIsNoDaemons) {
  EXPECT_EQ(UblkFlagsOf({0, kVolume}), 0u);
  EXPECT_TRUE(UblkFlagsAre(0, {0, kVolume}));
  EXPECT_FALSE(UblkFlagsAre(0, {kOwner, kVolume}));
  EXPECT_FALSE(UblkFlagsAre(0, {kOwner, 0}));
  EXPECT_FALSE(UblkFlagsAre(7, {0, kVolume}));
}

}  // namespace
}  // namespace ibnbd::client
