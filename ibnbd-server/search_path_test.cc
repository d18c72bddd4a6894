// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/search_path.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/backend_fixture.h"

namespace ibnbd {
namespace {

using testing::HasSubstr;

class SearchPathTest : public testing::Test {
 protected:
  SearchPathTest() {
    for (const char* name : {"vol", "vol/alice", "vol/alice/sub", "vol/bob", "vol/alice/deep"}) {
      EXPECT_EQ(mkdir((dir_ / name).c_str(), 0700), 0);
    }
    dir_.MakeFile("vol/alice/disk", 4096);
    dir_.MakeFile("vol/alice/sub/disk", 4096);
    dir_.MakeFile("vol/bob/secret", 4096);
    dir_.MakeFile("outside", 4096);
    EXPECT_EQ(symlink("disk", (dir_ / "vol/alice/inner").c_str()), 0);
    EXPECT_EQ(symlink("../bob/secret", (dir_ / "vol/alice/link").c_str()), 0);
    EXPECT_EQ(symlink((dir_ / "outside").c_str(), (dir_ / "vol/alice/absolute").c_str()), 0);
    EXPECT_EQ(symlink("/proc/self/exe", (dir_ / "vol/alice/magic").c_str()), 0);
    EXPECT_EQ(symlink("../outside", (dir_ / "vol/evil").c_str()), 0);
    EXPECT_EQ(symlink("..", (dir_ / "vol/up").c_str()), 0);
  }
  SearchPath Parse(const std::string& pattern) {
    auto path = SearchPath::Parse(pattern);
    EXPECT_TRUE(path.ok()) << path.status();
    return *std::move(path);
  }
  absl::Status Find(const std::string& session, const std::string& name) {
    return Parse(dir_ / "vol/%SESSNAME%").Find(session, name).status();
  }
  TempDir dir_;
};

TEST_F(SearchPathTest, FindsWhatLiesUnderTheSessionsDirectory) {
  EXPECT_TRUE(Find("alice", "disk").ok());
  EXPECT_TRUE(Find("alice", "/disk").ok());
  EXPECT_TRUE(Find("alice", "sub/disk").ok());
  EXPECT_TRUE(Find("alice", "inner").ok());
  EXPECT_EQ(*Parse(dir_ / "vol/%SESSNAME%").Find("alice", "inner"),
            *Parse(dir_ / "vol/%SESSNAME%").Find("alice", "disk"));
  EXPECT_TRUE(Parse(dir_ / "vol/%SESSNAME%/sub/").Find("alice", "disk").ok());
  EXPECT_TRUE(Parse(dir_ / "vol").Find("anybody", "bob/secret").ok());
}

TEST_F(SearchPathTest, LetsNoNameOut) {
  for (const char* name : {"../bob/secret", "sub/../../bob/secret", "..", "a..b", "", "/", "//"}) {
    EXPECT_EQ(Find("alice", name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
  for (const char* name : {"link", "absolute", "magic"}) {
    EXPECT_EQ(Find("alice", name).code(), absl::StatusCode::kPermissionDenied) << name;
  }
  EXPECT_EQ(Find("alice", dir_ / "outside").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Find("alice", "/etc/passwd").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Find("alice", std::string("disk\0x", 6)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SearchPathTest, LetsNoSessionNameOut) {
  for (const char* session : {"", ".", "..", "alice/sub", "/", "../vol/alice", "alice/../bob"}) {
    EXPECT_EQ(Find(session, "disk").code(), absl::StatusCode::kInvalidArgument) << session;
  }
  EXPECT_EQ(Find("up", "outside").code(), absl::StatusCode::kPermissionDenied);
  EXPECT_FALSE(Find("evil", "x").ok());
  EXPECT_EQ(Find("carol", "disk").code(), absl::StatusCode::kNotFound);
}

TEST_F(SearchPathTest, MissingNamesAreNotFoundByName) {
  const absl::Status status = Find("alice", "nothing");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nothing"));
}

TEST_F(SearchPathTest, OpensTheVolumeItFound) {
  const SearchPath path = Parse(dir_ / "vol/%SESSNAME%");
  const auto volume = path.Open("alice", "disk", {});
  ASSERT_TRUE(volume.ok()) << volume.status();
  EXPECT_EQ((*volume)->geometry().size_bytes, 4096u);
  EXPECT_FALSE(path.Open("alice", "link", {}).ok());
  EXPECT_FALSE(path.Open("alice", "sub", {}).ok());
}

TEST_F(SearchPathTest, RefusesPatternsThatMeanNothing) {
  for (const char* pattern : {"", "relative/%SESSNAME%", "/srv/x%SESSNAME%", "/srv/%SESSNAME%x",
                              "/srv/%SESSNAME%/%SESSNAME%"}) {
    const auto path = SearchPath::Parse(pattern);
    ASSERT_FALSE(path.ok()) << pattern;
    EXPECT_THAT(std::string(path.status().message()), HasSubstr(pattern));
  }
}

}  // namespace
}  // namespace ibnbd
