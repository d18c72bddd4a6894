// SPDX-License-Identifier: Apache-2.0
// Several who want the session with one server at once, which takes connections and says nothing.
#include "ibnbd-client/mapping/session_table.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace ibnbd::client {
namespace {

class SilentServer {
 public:
  SilentServer() : listening_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(listening_.get(), generic, size), 0);
    EXPECT_EQ(::listen(listening_.get(), 128), 0);
    EXPECT_EQ(::getsockname(listening_.get(), generic, &size), 0);
    key_.server = absl::StrCat("tcp://127.0.0.1:", ::ntohs(address.sin_port));
  }
  // Waits for one.
  void Accept() {
    pollfd one{.fd = listening_.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&one, 1, 60'000), 1);
    AcceptAll();
  }
  int AcceptAll() {  // How many there were, ever.
    while (true) {
      UniqueFd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client.valid()) return static_cast<int>(clients_.size());
      clients_.push_back(std::move(client));
    }
  }
  [[nodiscard]] const SessionKey& key() const { return key_; }

 private:
  UniqueFd listening_;
  std::vector<UniqueFd> clients_;
  SessionKey key_;
};

class SessionTableTest : public ::testing::Test {
 protected:
  absl::Status Try(std::uint32_t timeout_ms) {
    SessionTable::Told told;
    return table_
        .Acquire(server_.key(), SessionWishes(), timeout_ms, SessionHaste::kFirstTry, &told)
        .status();
  }

  SilentServer server_;
  std::unique_ptr<DeviceLoops> loops_ = DeviceLoops::Start(1);
  SessionTable table_{*loops_, "", 1, ""};
};

TEST_F(SessionTableTest, WhoWaitsForAnotherTryWaitsAsLongAsHeSaid) {
  std::atomic<bool> ended = false;
  std::thread first([&] {
    EXPECT_FALSE(Try(3000).ok());
    ended = true;
  });
  server_.Accept();
  const absl::Status second = Try(50);
  EXPECT_FALSE(ended);
  EXPECT_TRUE(absl::IsUnavailable(second)) << second;
  EXPECT_NE(second.message().find(server_.key().server), absl::string_view::npos) << second;
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
