// SPDX-License-Identifier: Apache-2.0
// How a session and its paths are called.
#include "ibnbd-client/mapping/session_settings.h"

#include <gtest/gtest.h>

#include <cstring>

namespace ibnbd::client {
namespace {

SessionReport AReport(const std::vector<std::string>& paths) {
  SessionReport report;
  report.key = KeyOf(*ParseUri("tcp://127.0.0.1:4711/vol"), "hostA");
  report.name = "hostA";
  for (const std::string& text : paths) {
    ibnbd_path_info path = {};
    path.id = static_cast<std::uint32_t>(2 * report.paths.size());
    std::strncpy(path.path, text.c_str(), sizeof(path.path) - 1);
    report.paths.push_back(path);
  }
  return report;
}

TEST(SessionSettings, TheVolumesOfAServerHaveOneKeyPerName) {
  const SessionKey key = KeyOf(*ParseUri("tcp://h:4711/vol"), "");
  EXPECT_EQ(key, KeyOf(*ParseUri("tcp://h:4711/other"), ""));
  EXPECT_NE(key, KeyOf(*ParseUri("tcp://h:4711/vol"), "hostA"));
  EXPECT_NE(key, KeyOf(*ParseUri("rdma://h:4711/vol"), ""));
  EXPECT_NE(key, KeyOf(*ParseUri("tcp://h:4712/vol"), ""));
  EXPECT_EQ(PortOf(key), 4711);
  EXPECT_EQ(PortOf(KeyOf(*ParseUri("tcp://h"), "")), 1234);
}

TEST(SessionSettings, ASessionBeginsWithThePathOfItsUri) {
  for (const char* server : {"h:4711", "10.0.0.2:4711", "[::1]:4711"}) {
    const SessionSettings settings =
        FreshSettings(KeyOf(*ParseUri(std::string("tcp://") + server + "/vol"), ""));
    ASSERT_EQ(settings.paths.size(), 1U);
    EXPECT_EQ(settings.paths[0].path, server);
    EXPECT_EQ(settings.paths[0].weight, 100U);
  }
}

TEST(SessionSettings, WishesNameThePathOfTheUriOnlyWithASource) {
  const SessionKey key = KeyOf(*ParseUri("tcp://[::1]:4711/vol"), "");
  EXPECT_EQ(WishedPaths(key, {"", "a b:1"}), (std::vector<std::string>{"a", "b:1"}));
  EXPECT_EQ(WishedPaths(key, {"::2", "a"}), (std::vector<std::string>{"::2@[::1]:4711", "a"}));
  EXPECT_EQ(FreshSettings(key, "::2").paths[0].path, "::2@[::1]:4711");
}

TEST(SessionSettings, APathHasOneCanonicalSpelling) {
  for (const Names names : {Names::kLookedUp, Names::kRefused}) {
    EXPECT_EQ(*CanonicalPath("127.0.0.2", 4711, names), "127.0.0.2:4711");
    EXPECT_EQ(*CanonicalPath("127.0.0.2:1", 4711, names), "127.0.0.2:1");
    EXPECT_EQ(*CanonicalPath("127.0.0.3@127.0.0.2:1", 4711, names), "127.0.0.3@127.0.0.2:1");
    EXPECT_EQ(*CanonicalPath("::1", 4711, names), "[::1]:4711");
    EXPECT_EQ(*CanonicalPath("::1@[::1]:1", 4711, names), "::1@[::1]:1");
  }
  EXPECT_EQ(*CanonicalPath("a.invalid", 4711, Names::kRefused), "a.invalid:4711");
  EXPECT_EQ(*CanonicalPath("b.invalid@a.invalid:1", 4711, Names::kRefused),
            "b.invalid@a.invalid:1");
  EXPECT_FALSE(CanonicalPath("a.invalid", 4711, Names::kLookedUp).ok());
  for (const char* text : {"", "@", "127.0.0.1@", "@127.0.0.1", "127.0.0.1:x", "127.0.0.1:0",
                           "127.0.0.1:1@127.0.0.2", "::1@127.0.0.1"}) {
    const auto canonical = CanonicalPath(text, 4711, Names::kRefused);
    ASSERT_FALSE(canonical.ok()) << text;
    EXPECT_NE(canonical.status().message().find("path \""), absl::string_view::npos) << text;
  }
}

TEST(SessionSettings, APathIsFoundByNumberAndBySpelling) {
  const SessionReport report =
      AReport({"127.0.0.1:4711", "127.0.0.2:4711", "127.0.0.3@127.0.0.2:4711"});
  EXPECT_EQ(*FindPath(report, "0"), 0U);
  EXPECT_EQ(*FindPath(report, "4"), 2U);
  EXPECT_EQ(*FindPath(report, "127.0.0.2"), 1U);
  EXPECT_EQ(*FindPath(report, "127.0.0.2:4711"), 1U);
  EXPECT_EQ(*FindPath(report, "127.0.0.3@127.0.0.2"), 2U);
  EXPECT_EQ(*FindPath(AReport({"127.0.0.1:4711", "a.invalid:4711"}), "a.invalid"), 1U);
  for (const char* text : {"1", "127.0.0.9", "127.0.0.2:1"}) {
    const auto found = FindPath(report, text);
    ASSERT_FALSE(found.ok()) << text;
    EXPECT_EQ(found.status().message(),
              std::string("session hostA has no path ") + text +
                  "; it has 127.0.0.1:4711, 127.0.0.2:4711, 127.0.0.3@127.0.0.2:4711");
  }
}

}  // namespace
}  // namespace ibnbd::client
