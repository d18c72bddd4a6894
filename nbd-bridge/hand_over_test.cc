// SPDX-License-Identifier: Apache-2.0
// From one bridge to the next, both here, over a library that is a fake: which clients go on, which
// do not, and that each is told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <atomic>
#include <thread>
#include <vector>

#include "nbd-bridge/bridge_fixture.h"

namespace ibnbd::bridge {
namespace {

using proto::NbdCmd;
using HandOverTest = BridgeTest;
constexpr int kRounds = 100;  // Of what may go wrong or not.

TEST_F(HandOverTest, AHandOverFlushesEveryQueueOfEveryVolume) {
  options_.thread_count = 3;
  AddVolume("vol1");
  StartBridge();
  TestClient client = Client();
  std::vector<HandedClient> clients;
  handed_over_ = true;
  EXPECT_TRUE(bridge_->StopFor(&clients));
  EXPECT_EQ(clients.size(), 1u);
  EXPECT_EQ(fake::switches().flushes, 6u);
}

TEST_F(HandOverTest, AClientIsNotHandedOverWhenAnyFlushOfItsVolumeFails) {
  options_.thread_count = 2;
  AddVolume("other", "tcp://other/");
  StartBridge();
  TestClient first = Client();
  TestClient second = Client();
  fake::switches().fail_flush_on_queue = 1;
  std::vector<HandedClient> clients;
  handed_over_ = true;
  EXPECT_FALSE(bridge_->StopFor(&clients));
  ASSERT_TRUE(clients.empty());
  EXPECT_TRUE(first.AtEnd());
  EXPECT_TRUE(second.AtEnd());
}

TEST_F(HandOverTest, AFlushAtAHandOverThatHangsIsGivenUp) {
  options_.stop_timeout_ms = 50;
  StartBridge();
  TestClient client = Client();
  char data[512];
  ASSERT_EQ(client.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
  fake::switches().hold = true;
  std::vector<HandedClient> clients;
  handed_over_ = true;
  EXPECT_FALSE(bridge_->StopFor(&clients));
  ASSERT_TRUE(clients.empty());
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HandOverTest, AClientGoesOnWithItsVolumeAndWithNoOther) {
  for (const std::uint64_t id_now : {4711u, 4712u, 0u}) {
    SCOPED_TRACE(id_now);
    fake::switches().volume_id = 4711;
    StartBridge();
    TestClient client = Client();
    // What a client was told of its volume is known, also when nobody answers just now.
    fake::switches().fail_info = -ETIMEDOUT;
    Inheritance next = HandOver();
    fake::switches().fail_info = 0;
    fake::switches().volume_id = id_now;
    StartBridge(std::move(next));
    char data[512];
    // A server that has no ids cannot be told from the one before.
    EXPECT_EQ(client.Do(NbdCmd::kRead, 0, 512, 0, data), id_now == 4712 ? -1 : 0);
    bridge_.reset();
  }
}

// Who comes at that very moment is served by the one or by the other: clients keep coming, and say
// all they have to say at once.
TEST_F(HandOverTest, NobodyWhoComesDuringAHandOverIsLost) {
  options_.thread_count = 3;
  StartBridge();
  for (int round = 0; round < kRounds; ++round) {
    std::vector<TestClient> clients;
    std::atomic<int> connected{0};
    std::thread coming([&] {
      for (int i = 0; i < 30; ++i, ++connected) {
        TestClient& client = clients.emplace_back(path());
        client.SendMessage(proto::NbdClientFlags{});
        client.SendOption(proto::NbdOption::kExportName, "vol0");
      }
    });
    while (connected == 0) std::this_thread::yield();
    Inheritance next = HandOver();
    StartBridge(std::move(next));
    coming.join();
    // The one excuse is that this test did not run for a second.
    const bool slow = Log().find("chose no export") != std::string::npos;
    for (TestClient& client : clients) {
      char greeting[18], data[512];
      proto::NbdExportNameReply reply;
      const bool served = client.Receive(greeting, sizeof(greeting)) &&
                          client.Receive(&reply, sizeof(reply)) &&
                          client.Do(NbdCmd::kRead, 0, 512, 0, data) == 0;
      ASSERT_TRUE(served || slow) << "round " << round;
    }
  }
}

TEST_F(HandOverTest, AClientOfWhichNothingIsUnderstoodIsClosedAndTheOthersGoOn) {
  StartBridge();
  TestClient first = Client(), second = Client(), third = Client();
  Inheritance next = HandOver();
  ASSERT_EQ(next.before.clients.size(), 3u);
  next.before.clients[1].state = "nbd client 2 of a version that is not known\n";
  StartBridge(std::move(next));
  int served = 0;
  char data[512];
  for (TestClient* client : {&first, &second, &third}) {
    served += client->Do(NbdCmd::kRead, 0, 512, 0, data) == 0 ? 1 : 0;
  }
  EXPECT_EQ(served, 2);
  EXPECT_THAT(Log(), ::testing::HasSubstr("is not understood"));
}

TEST_F(HandOverTest, AClientThatWasOnlyAcceptedIsServedAsAnyOther) {
  const UniqueFd listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(listening.get(), generic, length), 0);
  ASSERT_EQ(::listen(listening.get(), 1), 0);
  ASSERT_EQ(::getsockname(listening.get(), generic, &length), 0);
  ASSERT_EQ(::connect(client.get(), generic, length), 0);
  UniqueFd accepted(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const UniqueFd same(::fcntl(accepted.get(), F_DUPFD_CLOEXEC, 0));
  ClientState state;
  state.is_new = true;
  Inheritance next;
  next.before.clients.push_back({std::move(accepted), FormatClientState(state)});
  StartBridge(std::move(next));
  char greeting[18];
  ASSERT_EQ(::recv(client.get(), greeting, sizeof(greeting), MSG_WAITALL), 18);
  int no_delay = 0;
  length = sizeof(no_delay);
  ASSERT_EQ(::getsockopt(same.get(), IPPROTO_TCP, TCP_NODELAY, &no_delay, &length), 0);
  EXPECT_EQ(no_delay, 1);
}

TEST_F(HandOverTest, AVolumeOfWhichNothingIsKnownIsNotServed) {
  fake::switches().fail_info = -ETIMEDOUT;
  EXPECT_THAT(std::string(Bridge::Start(options_).status().message()),
              ::testing::HasSubstr("no answer"));
}

TEST_F(HandOverTest, ANewClientIsToldTheSizeThoughNobodyAnswersJustNow) {
  StartBridge();
  fake::switches().fail_info = -ETIMEDOUT;
  EXPECT_EQ(Client().export_size, 64u * kMiB);
}

}  // namespace
}  // namespace ibnbd::bridge
