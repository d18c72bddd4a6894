// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/softroce/softroce.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "base/status_macros.h"
#include "ibnbd-client/system/fake_tree_fixture.h"

namespace ibnbd::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A machine with eth0 (10.77.0.1, the default route's), lo and down0; its GIDs come at the third
// look.
class FakeHost final : public SoftRoceHost, public RdmaLinks {
 public:
  FakeHost() {
    fake.AddNetdev("eth0");
    fake.AddNetdev("lo", 65536, "0x9");
    fake.AddNetdev("down0", 1500, "0x1002");
    fake.SetRoot(true);
    fake.SetModules("kernel/ib_uverbs.ko:\nkernel/rdma_ucm.ko:\nkernel/rdma_rxe.ko:\n");
    fake.Write("/proc/net/route", "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n");
  }

  const SystemTree& tree() override { return fake.tree(); }
  RdmaLinks& links() override { return *this; }
  absl::Status LoadModule(const std::string& name) override {
    if (!module_status.ok()) return module_status;
    fake.MakeDirectory("/sys/module/" + name);
    loaded.push_back(name);
    return absl::OkStatus();
  }
  std::vector<std::string> Addresses(const std::string& netdev) override {
    return netdev == "eth0" ? addresses : std::vector<std::string>();
  }
  void Pause() override {
    if (++pauses == 2 && gids_come) {
      fake.SetGid(soft, 1, "0000:0000:0000:0000:0000:ffff:0a4d:0001", "eth0");
    }
  }

  absl::StatusOr<std::vector<RdmaLink>> List() override { return kernel_links; }
  absl::Status AddSoftRoce(const std::string& device, const std::string& netdev) override {
    if (add_errno != 0) return ErrnoStatus(add_errno, "add");
    AddLink(renames_to.empty() ? device : renames_to, netdev, true);
    return absl::OkStatus();
  }
  absl::Status Remove(std::uint32_t index) override {
    if (remove_errno != 0) return ErrnoStatus(remove_errno, "remove");
    removed.push_back(index);
    if (remove_works) {
      std::erase_if(kernel_links, [=](const RdmaLink& l) { return l.device_index == index; });
    }
    return absl::OkStatus();
  }
  absl::StatusOr<RdmaUsers> Users(std::uint32_t) override { return users; }
  absl::StatusOr<bool> CannotConnect(std::uint32_t) override { return false; }
  void AddLink(const std::string& device, const std::string& netdev, bool is_soft) {
    soft = device;
    fake.AddRdmaDevice(device, is_soft ? netdev : "");
    fake.SetGid(device, 0, "fe80:0000:0000:0000:0000:0000:0000:0001", netdev);
    kernel_links.push_back({next_index++, device, 1, 4, netdev});
  }

  FakeTree fake;
  std::vector<RdmaLink> kernel_links;
  std::vector<std::string> loaded, addresses = {"10.77.0.1"};
  std::vector<std::uint32_t> removed;
  RdmaUsers users;
  std::string soft, renames_to;
  absl::Status module_status;
  std::uint32_t next_index = 5;
  int add_errno = 0, remove_errno = 0, pauses = 0;
  bool gids_come = true, remove_works = true;
};

std::string AddError(FakeHost& host, const SoftRoceAdd& add) {
  const auto added = AddSoftRoce(host, add);
  return added.ok() ? "added " + added->link.device : std::string(added.status().message());
}

TEST(AddSoftRoce, LoadsWhatIsMissingAndWaitsForTheAddress) {
  FakeHost host;
  const auto added = AddSoftRoce(host, {"eth0", "", 10});
  ASSERT_TRUE(added.ok()) << added.status();
  EXPECT_EQ(added->link.device, "rxe_eth0");
  EXPECT_FALSE(added->by_default_route);
  EXPECT_TRUE(added->has_address);
  ASSERT_EQ(added->link.gids.size(), 2u);
  EXPECT_EQ(added->link.gids[1].Text(), "10.77.0.1");
  EXPECT_EQ(host.pauses, 2);
  EXPECT_THAT(host.loaded, ElementsAre("ib_uverbs", "rdma_ucm", "rdma_rxe", "crc32_generic"));
}

TEST(AddSoftRoce, LoadsNothingThatIsThere) {
  FakeHost host;
  for (const char* module : {"ib_uverbs", "rdma_ucm", "rdma_rxe"}) {
    host.fake.MakeDirectory(std::string("/sys/module/") + module);
  }
  host.fake.Write("/proc/crypto", "name         : crc32\ndriver       : crc32-generic\n");
  EXPECT_EQ(AddError(host, {"eth0", "own", 10}), "added own");
  EXPECT_THAT(host.loaded, IsEmpty());
}

TEST(AddSoftRoce, TakesTheDefaultRouteAndFindsTheDeviceThatUdevRenamed) {
  FakeHost host;
  host.renames_to = "roceeth0";
  const auto added = AddSoftRoce(host, {});
  ASSERT_TRUE(added.ok()) << added.status();
  EXPECT_TRUE(added->by_default_route);
  EXPECT_EQ(added->link.device, "roceeth0");
}

TEST(AddSoftRoce, WithoutADefaultRouteAsksForANetworkDevice) {
  FakeHost host;
  host.fake.Remove("/proc/net/route");
  EXPECT_THAT(AddError(host, {}), HasSubstr("no default route"));
}

TEST(AddSoftRoce, RefusesWhatCannotWorkBeforeItTouchesTheMachine) {
  FakeHost host;
  EXPECT_THAT(AddError(host, {"eth7", "", 1}), HasSubstr("eth7: no such network device"));
  EXPECT_THAT(AddError(host, {"../net/eth0", "", 1}), HasSubstr("no such network device"));
  EXPECT_THAT(AddError(host, {"lo", "", 1}), HasSubstr("lo is the loopback device"));
  EXPECT_THAT(AddError(host, {"down0", "", 1}), HasSubstr("ip link set down0 up"));
  EXPECT_THAT(AddError(host, {"eth0", "a b", 1}), HasSubstr("1 to 63 letters"));
  host.fake.SetRoot(false);
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("only root may"));
  EXPECT_THAT(host.loaded, IsEmpty());
  EXPECT_THAT(host.kernel_links, IsEmpty());
}

TEST(AddSoftRoce, SaysWhichDeviceIsThereAlready) {
  FakeHost host;
  host.AddLink("rxe0", "eth0", true);
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("eth0 has one already: rxe0"));
  host.fake.AddNetdev("eth1");
  EXPECT_THAT(AddError(host, {"eth1", "rxe0", 1}), HasSubstr("name exists, on eth0; --name"));
}

TEST(AddSoftRoce, HardwareOnTheNetworkDeviceIsNoReasonNotTo) {
  FakeHost host;
  host.AddLink("mlx5_0", "eth0", false);
  EXPECT_EQ(AddError(host, {"eth0", "", 10}), "added rxe_eth0");
}

TEST(AddSoftRoce, NamesTheModuleThatTheKernelDoesNotHave) {
  FakeHost host;
  host.fake.SetModules("kernel/ib_uverbs.ko:\nkernel/rdma_ucm.ko:\n");
  host.fake.MakeDirectory("/sys/module/ib_uverbs");
  host.fake.MakeDirectory("/sys/module/rdma_ucm");
  host.module_status = absl::UnavailableError("modprobe rdma_rxe: not found");
  EXPECT_THAT(AddError(host, {"eth0", "", 1}),
              HasSubstr("kernel 6.1.0-test has no module rdma_rxe (modprobe rdma_rxe: not found)"));
  // Known, and cannot be loaded: that is another story.
  host.fake.SetModules("kernel/rdma_rxe.ko:\n");
  EXPECT_THAT(AddError(host, {"eth0", "", 1}),
              testing::EndsWith("rxe_eth0 on eth0: modprobe rdma_rxe: not found"));
}

TEST(AddSoftRoce, ExplainsWhatTheKernelRefuses) {
  FakeHost host;
  host.add_errno = ENOENT;
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("modprobe crc32_generic"));
  host.add_errno = EPERM;
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("only root may"));
  host.fake.Write("/sys/class/net/eth0/uevent", "DEVTYPE=vlan\nINTERFACE=eth0\n");
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("is a VLAN"));
  host.add_errno = EEXIST;
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("such a device already"));
  host.add_errno = ENOMEM;
  EXPECT_THAT(AddError(host, {"eth0", "", 1}), HasSubstr("Cannot allocate memory"));
}

TEST(AddSoftRoce, StopsWaitingForAnAddressThatDoesNotCome) {
  FakeHost host;
  host.gids_come = false;
  EXPECT_THAT(AddError(host, {"eth0", "", 3}),
              HasSubstr("has not taken the addresses of eth0 (10.77.0.1) in 3 seconds"));
  EXPECT_EQ(host.pauses, 3 * kPausesPerSecond);
}

TEST(AddSoftRoce, WithoutAnAddressTheDeviceIsReadyAtOnce) {
  FakeHost host;
  host.addresses.clear();
  const auto added = AddSoftRoce(host, {"eth0", "", 3});
  ASSERT_TRUE(added.ok()) << added.status();
  EXPECT_FALSE(added->has_address);
  EXPECT_EQ(host.pauses, 0);
}

TEST(RemoveSoftRoce, FindsItByEitherName) {
  FakeHost host;
  host.AddLink("mlx5_0", "eth0", false);
  host.AddLink("rxe_eth0", "eth0", true);
  EXPECT_EQ(*RemoveSoftRoce(host, "eth0", 1), "rxe_eth0 on eth0");
  host.AddLink("rxe_eth0", "eth0", true);
  EXPECT_EQ(*RemoveSoftRoce(host, "rxe_eth0", 1), "rxe_eth0 on eth0");
  EXPECT_THAT(host.removed, ElementsAre(6u, 7u));
}

TEST(RemoveSoftRoce, RefusesHardwareStrangersAndOrdinaryUsers) {
  FakeHost host;
  host.AddLink("mlx5_0", "eth0", false);
  EXPECT_THAT(RemoveSoftRoce(host, "mlx5_0", 1).status().message(),
              HasSubstr("mlx5_0: not a Soft-RoCE device"));
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 1).status().message(), HasSubstr("no Soft-RoCE device"));
  host.AddLink("rxe_eth0", "eth0", true);
  host.fake.SetRoot(false);
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 1).status().message(), HasSubstr("only root may"));
  host.fake.SetRoot(true);
  host.remove_errno = EPERM;
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 1).status().message(), HasSubstr("only root may"));
  host.remove_errno = EBUSY;
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 1).status().message(), HasSubstr("busy"));
  EXPECT_THAT(host.removed, IsEmpty());
}

TEST(RemoveSoftRoce, NeverLetsTheKernelWaitForThoseWhoUseIt) {
  FakeHost host;
  host.AddLink("rxe_eth0", "eth0", true);
  host.fake.Write("/proc/77/comm", "ibnbd-server\n");
  host.fake.Write("/proc/79/status", "Name:\treactor0\nTgid:\t77\nPid:\t79\n");
  host.fake.Write("/proc/79/comm", "reactor0\n");
  host.users = {3, {79, 77, 78}};
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 1).status().message(),
              HasSubstr("rxe_eth0 is in use by ibnbd-server (pid 77), a program (pid 78)"));
  host.users = {3, {}};
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 1).status().message(),
              HasSubstr("in use by 3 programs"));
  EXPECT_THAT(host.removed, IsEmpty());
}

TEST(RemoveSoftRoce, SaysWhenTheDeviceStays) {
  FakeHost host;
  host.AddLink("rxe_eth0", "eth0", true);
  host.remove_works = false;
  EXPECT_THAT(RemoveSoftRoce(host, "eth0", 2).status().message(),
              HasSubstr("still there after 2 seconds"));
  EXPECT_EQ(host.pauses, 2 * kPausesPerSecond);
}

TEST(ShowLinks, FiltersByEitherName) {
  FakeHost host;
  EXPECT_THAT(*ShowLinks(host, ""), IsEmpty());
  host.AddLink("mlx5_0", "eth1", false);
  host.AddLink("rxe_eth0", "eth0", true);
  EXPECT_EQ(ShowLinks(host, "")->size(), 2u);
  EXPECT_EQ(ShowLinks(host, "eth0")->at(0).device, "rxe_eth0");
  EXPECT_EQ(ShowLinks(host, "mlx5_0")->at(0).netdev, "eth1");
  EXPECT_THAT(ShowLinks(host, "eth9").status().message(), HasSubstr("eth9: no RDMA device"));
}

}  // namespace
}  // namespace ibnbd::client
