// SPDX-License-Identifier: Apache-2.0
// Paths of a session, as an application adds, watches, weights and removes them.
#include <dlfcn.h>
#include <errno.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <ibnbd/ibnbd.h>
#include <netdb.h>

#include <atomic>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "tests/api/server_process.h"

namespace {

// What the library finds when it looks names up: "later.test" from some moment on, "slow.test" not
// before it is let go.
std::atomic<bool> later_is_known{false};
std::atomic<bool> slow_is_held{false};

}  // namespace

extern "C" __attribute__((visibility("default"))) int getaddrinfo(const char* node,
                                                                  const char* service,
                                                                  const addrinfo* hints,
                                                                  addrinfo** list) {
  using Function = int(const char*, const char*, const addrinfo*, addrinfo**);
  static const auto real = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, "getaddrinfo"));
  const std::string name = node == nullptr ? "" : node;
  if (!name.ends_with(".test")) return real(node, service, hints, list);
  if ((hints->ai_flags & AI_NUMERICHOST) != 0) return EAI_NONAME;
  if (name == "slow.test") slow_is_held.wait(true);
  if (name != "later.test" || !later_is_known) return EAI_AGAIN;
  return real("127.0.0.1", service, hints, list);
}

namespace {

using testing::HasSubstr;
using testing::StartsWith;

class PathsTest : public testing::Test {
 protected:
  void OpenSession(const char* paths, const char* volume = "mem", std::uint32_t flags = 0) {
    ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
    options.paths = paths;
    options.flags = flags;
    options.connect_timeout_ms = timeout_ms_;
    ASSERT_EQ(ibnbd_session_open(server_.uri().c_str(), &options, &session_), 0)
        << ibnbd_error_message();
    ASSERT_EQ(ibnbd_device_open(session_, volume, nullptr, &device_), 0) << ibnbd_error_message();
  }
  void SetUp() override { later_is_known = slow_is_held = false; }
  void TearDown() override { ibnbd_session_close(session_, 0); }
  // Empty struct_size: there is no such path.
  struct ibnbd_path_info Path(std::uint32_t index) {
    struct ibnbd_path_info info = {};
    info.struct_size = sizeof info;
    if (ibnbd_session_get_path_info(session_, index, &info) != 0) info.struct_size = 0;
    return info;
  }
  ibnbd_queue* queue() { return ibnbd_session_queue(session_, 0); }
  bool AwaitUp(std::uint32_t index) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (Path(index).state != IBNBD_PATH_UP) {
      if (std::chrono::steady_clock::now() > end) return false;
      ibnbd_queue_wait(queue(), 5);
    }
    return true;
  }
  bool AwaitFailure(std::uint32_t index) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (Path(index).connect_failures == 0) {
      if (std::chrono::steady_clock::now() > end) return false;
      ibnbd_queue_wait(queue(), 5);
    }
    return true;
  }
  void WriteAndRead(int count) {
    for (int i = 0; i < count; ++i) {
      std::vector<char> data(4096, static_cast<char>('a' + i % 26)), back(4096);
      const std::uint64_t offset = static_cast<std::uint64_t>(i) * 4096;
      ASSERT_EQ(ibnbd_pwrite(queue(), device_, data.data(), 4096, offset, 0), 0)
          << ibnbd_error_message();
      ASSERT_EQ(ibnbd_pread(queue(), device_, back.data(), 4096, offset), 0);
      ASSERT_EQ(data, back);
    }
  }
  ServerProcess server_;
  std::uint32_t timeout_ms_ = 30'000;
  ibnbd_session* session_ = nullptr;
  ibnbd_device* device_ = nullptr;
};

TEST_F(PathsTest, MorePathsAreGivenWithTheSessionAndUsed) {
  OpenSession("127.0.0.1 127.0.0.1@127.0.0.1");
  ASSERT_EQ(ibnbd_session_set_policy(session_, IBNBD_POLICY_ROUND_ROBIN), 0);
  for (std::uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(AwaitUp(i)) << i << Path(i).last_error;
  EXPECT_EQ(Path(3).struct_size, 0u);
  WriteAndRead(30);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_GE(Path(i).reads + Path(i).writes, 15u) << i;
    EXPECT_GT(Path(i).latency_ns, 0u);
    EXPECT_EQ(Path(i).weight, 100u);
    EXPECT_THAT(Path(i).address, HasSubstr("@127.0.0.1:"));
  }
  EXPECT_THAT(Path(2).path, HasSubstr("127.0.0.1@127.0.0.1:"));
}

TEST_F(PathsTest, TheFirstPathMayHaveASource) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  options.source = "127.0.0.2";
  ASSERT_EQ(ibnbd_session_open(server_.uri().c_str(), &options, &session_), 0)
      << ibnbd_error_message();
  EXPECT_THAT(Path(0).path, HasSubstr("127.0.0.2@127.0.0.1:"));
  EXPECT_THAT(Path(0).address, HasSubstr("127.0.0.2:"));
  for (const char* source : {"", "127.0.0.2:1", "::1", "192.0.2.1"}) {
    options.source = source;
    ibnbd_session* none = nullptr;
    EXPECT_LT(ibnbd_session_open(server_.uri().c_str(), &options, &none), 0) << source;
    EXPECT_THAT(ibnbd_error_message(), HasSubstr(source));
  }
}

TEST_F(PathsTest, PathsComeAndGoUnderAnOpenDevice) {
  OpenSession(nullptr);
  std::uint32_t id = 99;
  EXPECT_EQ(ibnbd_session_add_path(session_, "127.0.0.1", 100, &id), -EEXIST);
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("is there already"));
  const char* const second = "127.0.0.2@127.0.0.1";
  ASSERT_EQ(ibnbd_session_add_path(session_, second, 100, &id), 0) << ibnbd_error_message();
  EXPECT_EQ(id, 1u);
  EXPECT_EQ(ibnbd_session_add_path(session_, second, 100, nullptr), -EEXIST);
  ASSERT_TRUE(AwaitUp(1));
  WriteAndRead(20);
  ASSERT_EQ(ibnbd_session_remove_path(session_, 0, 10'000), 0) << ibnbd_error_message();
  WriteAndRead(20);
  EXPECT_EQ(Path(0).id, 1u);
  EXPECT_EQ(ibnbd_session_remove_path(session_, 1, 10'000), -EBUSY);
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("the last one"));
  EXPECT_EQ(ibnbd_session_remove_path(session_, 0, 10'000), -ENOENT);
}

TEST_F(PathsTest, APathThatLeadsNowhereHurtsNobodyAndSaysWhy) {
  OpenSession("127.0.0.1:1");
  WriteAndRead(20);
  EXPECT_TRUE(AwaitFailure(1));
  EXPECT_THAT(Path(1).last_error, HasSubstr("127.0.0.1:1"));
  EXPECT_NE(Path(1).state, IBNBD_PATH_UP);
}

TEST_F(PathsTest, WhatCannotBeAPathIsRefusedInWords) {
  OpenSession(nullptr);
  for (const char* text : {"", "@127.0.0.1", "127.0.0.1@", "127.0.0.1:0", "127.0.0.1:x",
                           "127.0.0.1:99999", "127.0.0.1:1@127.0.0.1", "[::1"}) {
    EXPECT_EQ(ibnbd_session_add_path(session_, text, 100, nullptr), -EINVAL) << text;
    EXPECT_THAT(ibnbd_error_message(), HasSubstr("path"));
  }
  EXPECT_LT(ibnbd_session_add_path(session_, "no such host", 100, nullptr), 0);
  EXPECT_EQ(ibnbd_session_add_path(session_, "::1@127.0.0.1", 100, nullptr), -EINVAL);
  EXPECT_EQ(ibnbd_session_add_path(session_, nullptr, 100, nullptr), -EINVAL);
  EXPECT_EQ(ibnbd_session_add_path(session_, "127.0.0.2@127.0.0.1", 1001, nullptr), -EINVAL);
  EXPECT_EQ(ibnbd_session_set_path_weight(session_, 0, 1001), -EINVAL);
  EXPECT_EQ(ibnbd_session_set_path_weight(session_, 7, 1), -ENOENT);
  EXPECT_EQ(ibnbd_session_set_policy(session_, 4), -EINVAL);
  for (int i = 0; i < 7; ++i) {
    const std::string path = "127.0.0." + std::to_string(i + 2) + "@127.0.0.1";
    EXPECT_EQ(ibnbd_session_add_path(session_, path.c_str(), 0, nullptr), 0);
  }
  EXPECT_EQ(ibnbd_session_add_path(session_, "127.0.0.9@127.0.0.1", 100, nullptr), -ENOBUFS);
  struct ibnbd_path_info info = {};
  EXPECT_EQ(ibnbd_session_get_path_info(session_, 0, &info), -EINVAL);
}

TEST_F(PathsTest, PathsOnlyTakesNoneFromTheUri) {
  OpenSession("127.0.0.2@127.0.0.1 127.0.0.1:1", "mem", IBNBD_SESSION_PATHS_ONLY);
  WriteAndRead(5);
  EXPECT_THAT(Path(0).path, HasSubstr("127.0.0.2@127.0.0.1:"));
  EXPECT_THAT(Path(0).address, HasSubstr("127.0.0.2:"));
  EXPECT_THAT(Path(1).path, HasSubstr("127.0.0.1:1"));
  EXPECT_EQ(Path(2).struct_size, 0u);
  ibnbd_session* none = nullptr;
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  options.flags = IBNBD_SESSION_PATHS_ONLY;
  EXPECT_EQ(ibnbd_session_open(server_.uri().c_str(), &options, &none), -EINVAL);
  options.paths = " ";
  EXPECT_EQ(ibnbd_session_open(server_.uri().c_str(), &options, &none), -EINVAL);
}

TEST_F(PathsTest, APathToAnotherServerIsRefusedAndSaysSo) {
  ServerProcess other;
  OpenSession(nullptr);
  const std::string path = other.uri().substr(other.uri().find("//") + 2);
  ASSERT_EQ(ibnbd_session_add_path(session_, path.c_str(), 100, nullptr), 0);
  EXPECT_TRUE(AwaitFailure(1));
  EXPECT_THAT(Path(1).last_error, HasSubstr("not the server that the session is with"));
  EXPECT_NE(Path(1).state, IBNBD_PATH_UP);
}

TEST_F(PathsTest, ANameThatCannotBeLookedUpIsShownAndLookedUpAgain) {
  OpenSession("nowhere.test 127.0.0.2@later.test:1 127.0.0.1", "mem", IBNBD_SESSION_PATHS_ONLY);
  WriteAndRead(5);
  ASSERT_TRUE(AwaitFailure(0) && AwaitFailure(1));
  EXPECT_THAT(Path(0).path, StartsWith("nowhere.test:"));
  EXPECT_THAT(Path(0).last_error, HasSubstr("resolve nowhere.test: "));
  EXPECT_STREQ(Path(1).path, "127.0.0.2@later.test:1");
  EXPECT_NE(Path(1).state, IBNBD_PATH_UP);
  EXPECT_EQ(ibnbd_session_add_path(session_, "127.0.0.2@later.test:1", 100, nullptr), -EEXIST);
  std::uint32_t id = 0;
  ASSERT_EQ(ibnbd_session_add_path(session_, "127.0.0.2@later.test", 100, &id), 0);
  EXPECT_EQ(id, 3u);
  ASSERT_TRUE(AwaitFailure(3));
  later_is_known = true;
  ASSERT_TRUE(AwaitUp(3)) << Path(3).last_error;
  EXPECT_THAT(Path(3).path, StartsWith("127.0.0.2@127.0.0.1:"));
  EXPECT_THAT(Path(3).address, StartsWith("127.0.0.2:"));
  while (Path(1).path != std::string("127.0.0.2@127.0.0.1:1")) ibnbd_queue_wait(queue(), 5);
  ASSERT_EQ(ibnbd_session_remove_path(session_, 2, 10'000), 0) << ibnbd_error_message();
  WriteAndRead(5);
}

TEST_F(PathsTest, ANameThatIsKnownNoMoreDoesNotLoseAPathThatIs) {
  later_is_known = true;
  OpenSession("127.0.0.2@later.test");
  ASSERT_TRUE(AwaitUp(1));
  later_is_known = false;
  server_.Kill();
  const std::uint64_t failures = Path(1).connect_failures;
  while (Path(1).connect_failures < failures + 2) ibnbd_queue_wait(queue(), 5);
  EXPECT_THAT(Path(1).last_error, HasSubstr("refused"));
  server_.Restart();
  EXPECT_TRUE(AwaitUp(1));
}

TEST_F(PathsTest, ANameThatLeadsWhereAPathDoesIsNoOther) {
  later_is_known = true;
  OpenSession(nullptr);
  EXPECT_EQ(ibnbd_session_add_path(session_, "later.test", 100, nullptr), -EEXIST);
  later_is_known = false;
  ASSERT_EQ(ibnbd_session_add_path(session_, "later.test", 100, nullptr), 0);
  ASSERT_TRUE(AwaitFailure(1));
  later_is_known = true;
  while (std::string(Path(1).last_error).find("as path 0 does") == std::string::npos) {
    ibnbd_queue_wait(queue(), 5);
  }
  EXPECT_NE(Path(1).state, IBNBD_PATH_UP);
  EXPECT_EQ(Path(0).state, IBNBD_PATH_UP);
}

TEST_F(PathsTest, NobodyWaitsForANameWhoseAnswerDoesNotCome) {
  slow_is_held = true;
  timeout_ms_ = 2000;
  OpenSession("slow.test:1 127.0.0.1", "mem", IBNBD_SESSION_PATHS_ONLY);
  WriteAndRead(5);
  ASSERT_EQ(ibnbd_session_add_path(session_, "slow.test:2", 100, nullptr), 0);
  EXPECT_EQ(Path(2).state, IBNBD_PATH_CONNECTING);
  ASSERT_TRUE(AwaitFailure(2));
  EXPECT_THAT(Path(2).last_error, HasSubstr("not looked up in time"));
  EXPECT_EQ(ibnbd_session_remove_path(session_, 2, 10'000), 0);
  EXPECT_EQ(ibnbd_session_close(std::exchange(session_, nullptr), 0), 0);
  slow_is_held = false;  // Its answers come when nobody is there.
  slow_is_held.notify_all();
}

TEST_F(PathsTest, ASessionWhoseNamesAreAllUnknownIsRefusedByName) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  options.paths = "nowhere.test later.test";
  options.flags = IBNBD_SESSION_PATHS_ONLY;
  EXPECT_LT(ibnbd_session_open(server_.uri().c_str(), &options, &session_), 0);
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("nowhere.test"));
}

TEST_F(PathsTest, PolicyAndPatienceAreShownAndChangeWhileTheSessionLives) {
  OpenSession(nullptr);
  struct ibnbd_session_info info = {};
  info.struct_size = sizeof info;
  ASSERT_EQ(ibnbd_session_get_info(session_, &info), 0);
  EXPECT_EQ(info.policy, static_cast<std::uint32_t>(IBNBD_POLICY_ADAPTIVE));
  EXPECT_EQ(info.dead_after_ms, 10'000u);  // One of our own servers.
  ASSERT_EQ(ibnbd_session_set_policy(session_, IBNBD_POLICY_MIN_LATENCY), 0);
  ASSERT_EQ(ibnbd_session_set_dead_after(session_, 1234), 0);
  ASSERT_EQ(ibnbd_session_get_info(session_, &info), 0);
  EXPECT_EQ(info.policy, static_cast<std::uint32_t>(IBNBD_POLICY_MIN_LATENCY));
  EXPECT_EQ(info.dead_after_ms, 1234u);
  for (const std::uint32_t ms : {1u, 999u, 3'600'001u}) {
    EXPECT_EQ(ibnbd_session_set_dead_after(session_, ms), -EINVAL);
    EXPECT_THAT(ibnbd_error_message(), HasSubstr("1000 to 3600000"));
    ibnbd_session* none = nullptr;
    ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
    options.dead_after_ms = ms;
    EXPECT_EQ(ibnbd_session_open(server_.uri().c_str(), &options, &none), -EINVAL);
  }
  ASSERT_EQ(ibnbd_session_set_dead_after(session_, 0), 0);
  ASSERT_EQ(ibnbd_session_get_info(session_, &info), 0);
  EXPECT_EQ(info.dead_after_ms, 10'000u);
}

TEST_F(PathsTest, AServerThatIsKilledIsOneServerToAllPaths) {
  OpenSession("127.0.0.1", "disk");
  ASSERT_TRUE(AwaitUp(1));
  server_.Kill();
  server_.Restart();
  std::vector<char> data(4096, 'x');
  EXPECT_EQ(ibnbd_pwrite(queue(), device_, data.data(), 4096, 0, 0), 0) << ibnbd_error_message();
  EXPECT_TRUE(AwaitUp(0));
  EXPECT_TRUE(AwaitUp(1));
}

}  // namespace
