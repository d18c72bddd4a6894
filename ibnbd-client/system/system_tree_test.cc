// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/system/system_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "ibnbd-client/system/fake_tree_fixture.h"
#include "ibnbd-client/system/rdma_devices.h"

namespace ibnbd::client {
namespace {

using testing::ElementsAre;

TEST(SystemTree, WhatIsNotThereIsAbsent) {
  const FakeTree fake;
  EXPECT_FALSE(fake.tree().Exists("/sys"));
  EXPECT_FALSE(fake.tree().ReadLine("/sys/x").has_value());
  EXPECT_TRUE(fake.tree().List("/sys").empty());
  EXPECT_TRUE(ReadRdmaDevices(fake.tree()).empty());
}

TEST(SystemTree, ADirectoryIsNoFile) {
  FakeTree fake;
  fake.MakeDirectory("/sys/x");
  EXPECT_FALSE(fake.tree().Read("/sys/x").has_value());
}

TEST(SystemTree, NumbersWithAnythingElseAreNone) {
  FakeTree fake;
  fake.Write("/a", "1500\n");
  fake.Write("/b", "0x1003\nrest");
  fake.Write("/c", "15 00");
  fake.Write("/d", "");
  fake.Write("/e", "0xzz");
  EXPECT_EQ(fake.tree().ReadNumber("/a"), 1500u);
  EXPECT_EQ(fake.tree().ReadNumber("/b"), 0x1003u);
  EXPECT_FALSE(fake.tree().ReadNumber("/c").has_value());
  EXPECT_FALSE(fake.tree().ReadNumber("/d").has_value());
  EXPECT_FALSE(fake.tree().ReadNumber("/e").has_value());
}

TEST(SystemTree, ReadsNoMoreThanItsLimit) {
  FakeTree fake;
  fake.Write("/big", std::string(SystemTree::kReadMax + 5000, 'x'));
  EXPECT_EQ(fake.tree().Read("/big")->size(), SystemTree::kReadMax);
}

TEST(FindModule, KnowsLoadedBuiltInAvailableAndMissingOnes) {
  FakeTree fake;
  fake.SetModules("kernel/a/rdma_rxe.ko.xz: kernel/b/ib_core.ko.xz\nkernel/c/ublk-drv.ko:\n",
                  "kernel/d/crc32-generic.ko\n");
  fake.MakeDirectory("/sys/module/nbd");
  EXPECT_EQ(FindModule(fake.tree(), "nbd"), ModuleState::kLoaded);
  EXPECT_EQ(FindModule(fake.tree(), "crc32_generic"), ModuleState::kLoaded);
  EXPECT_EQ(FindModule(fake.tree(), "rdma_rxe"), ModuleState::kAvailable);
  EXPECT_EQ(FindModule(fake.tree(), "ublk_drv"), ModuleState::kAvailable);
  // A dependency, and a part of a name, are no modules of that name.
  EXPECT_EQ(FindModule(fake.tree(), "ib_core"), ModuleState::kMissing);
  EXPECT_EQ(FindModule(fake.tree(), "rxe"), ModuleState::kMissing);
  EXPECT_EQ(FindModule(fake.tree(), "rdma_rx"), ModuleState::kMissing);
}

TEST(HasCapability, ReadsTheEffectiveSet) {
  FakeTree fake;
  EXPECT_FALSE(HasCapability(fake.tree(), 12));
  fake.Write("/proc/self/status", "CapPrm:\t0000000000001000\nCapEff:\t0000000000001000\n");
  EXPECT_TRUE(HasCapability(fake.tree(), 12));
  EXPECT_FALSE(HasCapability(fake.tree(), 13));
  EXPECT_FALSE(HasCapability(fake.tree(), -1));
  EXPECT_FALSE(HasCapability(fake.tree(), 64));
  fake.Write("/proc/self/status", "CapEff:\tnonsense\n");
  EXPECT_FALSE(HasCapability(fake.tree(), 12));
}

TEST(ParseGid, TakesEightGroupsOfFourDigitsOnly) {
  EXPECT_TRUE(ParseGid("0000:0000:0000:0000:0000:ffff:0a4d:0001").has_value());
  EXPECT_FALSE(ParseGid("").has_value());
  EXPECT_FALSE(ParseGid("0000:0000:0000:0000:0000:ffff:0a4d").has_value());
  EXPECT_FALSE(ParseGid("0000:0000:0000:0000:0000:ffff:0a4d:001").has_value());
  EXPECT_FALSE(ParseGid("0000:0000:0000:0000:0000:ffff:0a4d:000g").has_value());
  EXPECT_FALSE(ParseGid("0000:0000:0000:0000:0000:ffff:0a4d:0001:0000").has_value());
  EXPECT_FALSE(ParseGid("0000:0000:0000:0000:0000:ffff:0a4d:0x01").has_value());
}

TEST(ReadRdmaDevices, ReadsPortsAndTheAddressesInTheirOrder) {
  FakeTree fake;
  fake.AddRdmaDevice("rxe0", "eth0");
  fake.SetGid("rxe0", 10, "fe80:0000:0000:0000:b0af:57ff:fe06:b041", "eth0");
  fake.SetGid("rxe0", 2, "0000:0000:0000:0000:0000:ffff:0a4d:0001", "eth0");
  fake.Write("/sys/class/infiniband/rxe0/ports/x/state", "4: ACTIVE");
  const std::vector<RdmaDevice> devices = ReadRdmaDevices(fake.tree());
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_EQ(devices[0].soft_netdev, "eth0");
  ASSERT_EQ(devices[0].ports.size(), 1u);
  const RdmaPort& port = devices[0].ports[0];
  EXPECT_EQ(port.state, "ACTIVE");
  ASSERT_EQ(port.gids.size(), 2u);
  EXPECT_EQ(port.gids[0].Text(), "10.77.0.1");
  EXPECT_TRUE(port.gids[0].IsIpv4() && port.gids[0].IsRoceV2() && !port.gids[0].IsLinkLocal());
  EXPECT_EQ(port.gids[1].Text(), "fe80::b0af:57ff:fe06:b041");
  EXPECT_TRUE(port.gids[1].IsLinkLocal());
  EXPECT_EQ(GidOfAddress("10.77.0.1"), port.gids[0].bytes);
  EXPECT_FALSE(GidOfAddress("10.77.0").has_value());
}

TEST(ReadNetdev, TakesNoPathForAName) {
  FakeTree fake;
  fake.AddNetdev("eth0", 9000);
  EXPECT_TRUE(ReadNetdev(fake.tree(), "eth0")->is_up);
  EXPECT_EQ(ReadNetdev(fake.tree(), "eth0")->mtu, 9000u);
  EXPECT_FALSE(ReadNetdev(fake.tree(), "../net/eth0").has_value());
  EXPECT_FALSE(ReadNetdev(fake.tree(), ".").has_value());
  EXPECT_FALSE(ReadNetdev(fake.tree(), "").has_value());
  EXPECT_FALSE(ReadNetdev(fake.tree(), std::string(16, 'e')).has_value());
}

TEST(DefaultRouteNetdev, PicksTheLowestMetricThatIsUp) {
  FakeTree fake;
  EXPECT_FALSE(DefaultRouteNetdev(fake.tree()).has_value());
  fake.Write("/proc/net/ipv6_route",
             "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
             "00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n"
             "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
             "fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth6\n");
  EXPECT_EQ(DefaultRouteNetdev(fake.tree()), "eth6");
  fake.Write("/proc/net/route",
             "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"
             "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
             "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
             "down0\t00000000\t0101A8C0\t0002\t0\t0\t1\t00000000\t0\t0\t0\n"
             "half0\t00000000\t0101A8C0\t0003\t0\t0\t1\t00000080\t0\t0\t0\n"
             "eth1\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n");
  EXPECT_EQ(DefaultRouteNetdev(fake.tree()), "eth0");
}

}  // namespace
}  // namespace ibnbd::client
