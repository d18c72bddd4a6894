// SPDX-License-Identifier: Apache-2.0
// Who uses a device, read from a tree made up as /proc and /sys show it.
#include "ibnbd-client/mapping/device_users.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace ibnbd::client {
namespace {

namespace fs = std::filesystem;

class DeviceUsersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/users";
    fs::remove_all(root_);
    Write("sys/block/ublkb0/dev", "259:0\n");
    fs::create_directories(root_ + "/sys/block/ublkb0/holders");
    Write("sys/block/ublkb0/ublkb0p1/dev", "259:1\n");
    Write("sys/block/ublkb0/ublkb0p1/partition", "1\n");
    fs::create_directories(root_ + "/sys/block/ublkb0/ublkb0p1/holders");
    Write("proc/swaps", "Filename\tType\tSize\n");
    Write("proc/7/comm", "sleep\n");
    Write("proc/7/mountinfo", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    Link("mnt:[1]", "proc/7/ns/mnt");
    Link("/dev/null", "proc/7/fd/0");
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << text;
  }
  void Link(const std::string& target, const std::string& path) const {
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    fs::create_symlink(target, root_ + "/" + path);
  }
  [[nodiscard]] std::string User() const { return UserOf("/dev/ublkb0", root_); }

  std::string root_;
};

TEST_F(DeviceUsersTest, NobodyUsesAnIdleDevice) { EXPECT_EQ(User(), ""); }

TEST_F(DeviceUsersTest, NobodyUsesADeviceThatIsNotThere) {
  EXPECT_EQ(UserOf("/dev/ublkb1", root_), "");
}

TEST_F(DeviceUsersTest, AMountIsFoundByItsNumber) {
  Write("proc/7/mountinfo", "21 1 259:0 / /srv/data rw - ext4 /dev/root rw\n");
  EXPECT_EQ(User(), "mounted at /srv/data");
}

TEST_F(DeviceUsersTest, AMountOfAPartitionCounts) {
  Write("proc/7/mountinfo", "21 1 259:1 / /srv rw shared:1 master:2 - xfs /dev/x rw\n");
  EXPECT_EQ(User(), "mounted at /srv");
}

TEST_F(DeviceUsersTest, AFileSystemWithANumberOfItsOwnIsFoundByItsSource) {
  Write("proc/7/mountinfo", "21 1 0:44 / /btr rw - btrfs /dev/ublkb0 rw\n");
  EXPECT_EQ(User(), "mounted at /btr");
}

TEST_F(DeviceUsersTest, AMountInAnotherNamespaceIsFound) {
  Write("proc/8/comm", "container\n");
  Link("mnt:[2]", "proc/8/ns/mnt");
  Write("proc/8/mountinfo", "21 1 259:0 / /inside rw - ext4 /dev/root rw\n");
  EXPECT_EQ(User(), "mounted at /inside");
}

TEST_F(DeviceUsersTest, LinesOfMountinfoThatAreCutShortAreNoFault) {
  Write("proc/7/mountinfo", "21 1 259:0\n- - -\n\n21 1 259:0 / /x rw - ext4\n");
  EXPECT_EQ(User(), "");
}

TEST_F(DeviceUsersTest, SwapCounts) {
  Write("proc/swaps", "Filename\tType\n/dev/ublkb0p1 partition 1 0 -2\n");
  EXPECT_EQ(User(), "used for swap");
}

TEST_F(DeviceUsersTest, HoldersCount) {
  fs::create_directories(root_ + "/sys/block/ublkb0/ublkb0p1/holders/dm-3");
  EXPECT_EQ(User(), "held by dm-3");
}

TEST_F(DeviceUsersTest, AProcessThatHasItOpenIsNamed) {
  Link("/dev/ublkb0", "proc/7/fd/5");
  EXPECT_EQ(User(), "open in sleep (7)");
}

TEST_F(DeviceUsersTest, ADeviceWhoseNameBeginsAlikeIsAnother) {
  Link("/dev/ublkb01", "proc/7/fd/5");
  Write("proc/swaps", "Filename\n/dev/ublkb01 partition 1 0 -2\n");
  EXPECT_EQ(User(), "");
}

}  // namespace
}  // namespace ibnbd::client
