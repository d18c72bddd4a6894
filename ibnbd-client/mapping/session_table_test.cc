// SPDX-License-Identifier: Apache-2.0
// Several who want the session with one server at once, which takes connections and says nothing.
#include "ibnbd-client/mapping/session_table.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "ibnbd-client/mapping/silent_server_fixture.h"

namespace ibnbd::client {
namespace {

class SessionTableTest : public ::testing::Test {
 protected:
  absl::Status Try(std::uint32_t timeout_ms) {
    SessionTable::Told told;
    return table_.Acquire(key_, SessionWishes(), timeout_ms, SessionHaste::kFirstTry, &told)
        .status();
  }

  SilentServer server_;
  const SessionKey key_{server_.uri(), ""};
  std::unique_ptr<DeviceLoops> loops_ = DeviceLoops::Start(1);
  SessionTable table_{*loops_, "", 1, ""};
};

TEST_F(SessionTableTest, WhoWaitsForAnotherTryWaitsAsLongAsHeSaid) {
  std::atomic<bool> ended = false;
  std::thread first([&] {
    EXPECT_FALSE(Try(60'000).ok());
    ended = true;
  });
  server_.Accept();
  const absl::Status second = Try(50);
  EXPECT_FALSE(ended);
  EXPECT_TRUE(absl::IsUnavailable(second)) << second;
  EXPECT_NE(second.message().find(server_.uri()), absl::string_view::npos) << second;
  server_.End();
  first.join();
}

TEST_F(SessionTableTest, WhoWaitedForATryTakesItsAnswer) {
  constexpr int kOthers = 12;
  std::thread first([&] { EXPECT_FALSE(Try(1500).ok()); });
  server_.Accept();
  std::vector<std::thread> others;
  others.reserve(kOthers);
  for (int i = 0; i < kOthers; ++i) {
    others.emplace_back([&] { EXPECT_FALSE(Try(1500).ok()); });
  }
  first.join();
  for (std::thread& other : others) other.join();
  // One who comes too late for that asks by himself.
  EXPECT_LE(server_.AcceptAll(), kOthers / 2);
}

TEST_F(SessionTableTest, WhoHasMoreTimeThanATryThatTimedOutTriesAgain) {
  std::thread first([&] { EXPECT_FALSE(Try(200).ok()); });
  server_.Accept();
  EXPECT_FALSE(Try(2000).ok());
  first.join();
  EXPECT_GE(server_.AcceptAll(), 2);
}

}  // namespace
}  // namespace ibnbd::client
