// SPDX-License-Identifier: Apache-2.0
// The names of links: what servers may call their exports must not lead out of /dev/ibnbd.
#include "ibnbd-client/mapping/device_names.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace ibnbd::client {
namespace {

std::string LinkOf(const char* host, const char* name, std::uint16_t port = kDefaultPort) {
  Uri uri;
  uri.scheme = "tcp";
  uri.host = host;
  uri.port = port;
  uri.export_name = name;
  return LinkNameOf(uri);
}

TEST(LinkNameOf, IsServerAndExport) {
  EXPECT_EQ(LinkOf("10.0.0.2", "vol0"), "ibnbd/10.0.0.2/vol0");
  EXPECT_EQ(LinkOf("storage1", "group/vol-1"), "ibnbd/storage1/group/vol-1");
}

TEST(LinkNameOf, NamesThePortOnlyIfItIsNotTheUsualOne) {
  EXPECT_EQ(LinkOf("h", "v", 1234), "ibnbd/h/v");
  EXPECT_EQ(LinkOf("h", "v", 4711), "ibnbd/h:4711/v");
}

TEST(LinkNameOf, KeepsTheColonsOfAnIpv6Address) {
  EXPECT_EQ(LinkOf("fe80::1%eth0", "v"), "ibnbd/fe80::1\\x25eth0/v");
}

TEST(LinkNameOf, LosesTheSlashesInFrontOfAPath) {
  EXPECT_EQ(LinkOf("h", "/dev/sdb"), "ibnbd/h/dev/sdb");
  EXPECT_EQ(LinkOf("h", "//x"), "ibnbd/h/x");
}

TEST(LinkNameOf, NeverLeadsUpwards) {
  EXPECT_EQ(LinkOf("h", "../../sda"), "ibnbd/h/\\x2e./\\x2e./sda");
  EXPECT_EQ(LinkOf("h", ".hidden"), "ibnbd/h/\\x2ehidden");
  EXPECT_EQ(LinkOf("..", "v"), "ibnbd/\\x2e./v");
  EXPECT_EQ(LinkOf("a/b", "v"), "ibnbd/a\\x2fb/v");
}

TEST(LinkNameOf, HasNothingThatUdevWouldSplitOrReplace) {
  EXPECT_EQ(LinkOf("h", "a b\n\"c$d"), "ibnbd/h/a\\x20b\\x0a\\x22c\\x24d");
  EXPECT_EQ(LinkOf("h", "v\xc3\xa4"), "ibnbd/h/v\\xc3\\xa4");
}

// The nodes are of disks that no machine has: the events go nowhere.
class DeviceNamesTest : public ::testing::Test {
 protected:
  DeviceNamesTest() { std::filesystem::remove_all(directory_); }
  ~DeviceNamesTest() override { std::filesystem::remove_all(directory_); }
  static Uri Named(const char* name) {
    Uri uri;
    uri.scheme = "tcp";
    uri.host = "h";
    uri.export_name = name;
    return uri;
  }
  [[nodiscard]] bool Exists(const std::string& name) const {
    return std::filesystem::exists(directory_ + "/" + name);
  }

  const std::string directory_ = ::testing::TempDir() + "/names";
  const DeviceNames names_{directory_};
};

TEST_F(DeviceNamesTest, WritesAFileForUdevAndTakesItAway) {
  ASSERT_TRUE(names_.Write("/dev/ublkb-no-such", Named("v")).ok());
  ASSERT_TRUE(names_.Write("/dev/ublkb-no-such", Named("w")).ok());
  std::ifstream file(directory_ + "/ublkb-no-such");
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "IBNBD_LINK=ibnbd/h/w");
  EXPECT_FALSE(std::getline(file, line));
  EXPECT_FALSE(Exists("ublkb-no-such.new"));
  names_.Remove("/dev/ublkb-no-such");
  EXPECT_FALSE(Exists("ublkb-no-such"));
}

TEST_F(DeviceNamesTest, TakesAwayWhatNobodyHoldsAnyMore) {
  ASSERT_TRUE(names_.Write("/dev/of-the-daemon", Named("a")).ok());
  absl::StatusOr<UniqueFd> held = names_.WriteHeld("/dev/held", Named("b"));
  ASSERT_TRUE(held.ok()) << held.status();
  names_.RemoveStale(nullptr);
  EXPECT_TRUE(Exists("of-the-daemon"));
  EXPECT_TRUE(Exists("held"));
  held->Reset();  // As the end of its process does.
  names_.RemoveStale(nullptr);
  EXPECT_TRUE(Exists("of-the-daemon"));
  EXPECT_FALSE(Exists("held"));
}

TEST_F(DeviceNamesTest, TakesAwayWhatIsNotKnown) {
  ASSERT_TRUE(names_.Write("/dev/known", Named("a")).ok());
  ASSERT_TRUE(names_.Write("/dev/gone", Named("b")).ok());
  const absl::StatusOr<UniqueFd> held = names_.WriteHeld("/dev/held", Named("c"));
  ASSERT_TRUE(held.ok()) << held.status();
  const std::vector<std::string> known = {"/dev/known"};
  names_.RemoveStale(&known);
  EXPECT_TRUE(Exists("known"));
  EXPECT_FALSE(Exists("gone"));
  EXPECT_TRUE(Exists("held"));
}

TEST_F(DeviceNamesTest, GivesWhatWasHeldToWhoGetsTheSameNumber) {
  absl::StatusOr<UniqueFd> held = names_.WriteHeld("/dev/x", Named("a"));
  ASSERT_TRUE(held.ok()) << held.status();
  held->Reset();
  ASSERT_TRUE(names_.Write("/dev/x", Named("b")).ok());
  names_.RemoveStale(nullptr);
  EXPECT_TRUE(Exists("x"));
}

TEST_F(DeviceNamesTest, HasNothingToTakeAwayWithoutItsDirectory) { names_.RemoveStale(nullptr); }

TEST(DeviceNames, SaysWhereItCannotWrite) {
  const DeviceNames names("/proc/no/such");
  const absl::Status status = names.Write("/dev/ublkb0", Uri());
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("/proc/no/such/ublkb0"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace ibnbd::client
