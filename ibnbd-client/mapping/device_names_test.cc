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

TEST(DeviceNames, WritesAFileForUdevAndTakesItAway) {
  const std::string directory = ::testing::TempDir() + "/names";
  std::filesystem::remove_all(directory);
  const DeviceNames names(directory);
  Uri uri;
  uri.scheme = "tcp";
  uri.host = "h";
  uri.export_name = "v";
  // The node of a disk that no machine has: the event goes nowhere.
  ASSERT_TRUE(names.Add("/dev/ublkb-no-such", uri).ok());
  std::ifstream file(directory + "/ublkb-no-such");
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "IBNBD_LINK=ibnbd/h/v");
  names.Remove("/dev/ublkb-no-such");
  EXPECT_FALSE(std::filesystem::exists(directory + "/ublkb-no-such"));
}

TEST(DeviceNames, SaysWhereItCannotWrite) {
  const DeviceNames names("/proc/no/such");
  const absl::Status status = names.Add("/dev/ublkb0", Uri());
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("/proc/no/such/ublkb0"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace ibnbd::client
