// SPDX-License-Identifier: Apache-2.0
// The whole bridge, threads and sockets, over a library that is a fake: commands and their errors,
// flow control, hostile clients, clients that leave, the end, and that the data path does not
// allocate.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "nbd-bridge/bridge_fixture.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<std::uint64_t> allocations{0};
}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size) {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  std::abort();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace ibnbd::bridge {
namespace {

using proto::NbdCmd;
TEST_F(BridgeTest, WhatWasWrittenIsReadBackInEverySize) {
  StartBridge();
  TestClient client = Client();
  EXPECT_EQ(client.export_size, 64u * kMiB);
  for (const std::uint32_t size : {512u, 4096u, 65536u, 100u * 512, kMiB, kMiB + 512, 32u * kMiB}) {
    SCOPED_TRACE(size);
    std::vector<char> data(size), back(size);
    for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<char>(i * 31 + size + i / 4096);
    ASSERT_EQ(client.Do(NbdCmd::kWrite, 512, size, 0, data.data()), 0);
    ASSERT_EQ(client.Do(NbdCmd::kRead, 512, size, 0, back.data()), 0);
    EXPECT_TRUE(data == back);
  }
  EXPECT_LE(fake::switches().longest_io, kMiB);
}

TEST_F(BridgeTest, StructuredReadsCarryTheirOffsetAndTheirErrors) {
  StartBridge();
  TestClient client = Client(true);
  std::vector<char> data(4096, 'x'), back(4096);
  ASSERT_EQ(client.Do(NbdCmd::kWrite, 4096, 4096, 0, data.data()), 0);
  client.SendRequest(0, 77, 4096, 4096, proto::kNbdCmdDf);
  proto::NbdOffsetData chunk;
  ASSERT_TRUE(client.Receive(&chunk, sizeof(chunk)));
  EXPECT_EQ(chunk.header.cookie.get(), 77u);
  EXPECT_EQ(chunk.header.flags.get(), proto::kNbdReplyDone);
  EXPECT_EQ(chunk.header.type.get(), static_cast<std::uint16_t>(proto::NbdReplyType::kOffsetData));
  EXPECT_EQ(chunk.header.length.get(), 4096u + 8);
  EXPECT_EQ(chunk.offset.get(), 4096u);
  ASSERT_TRUE(client.Receive(back.data(), back.size()));
  EXPECT_EQ(data, back);

  fake::switches().fail_with = -EIO;
  client.SendRequest(0, 78, 4096, 3 * kMiB);
  proto::NbdErrorChunk error;
  ASSERT_TRUE(client.Receive(&error, sizeof(error)));
  EXPECT_EQ(error.header.cookie.get(), 78u);
  EXPECT_EQ(error.header.type.get(), static_cast<std::uint16_t>(proto::NbdReplyType::kError));
  EXPECT_EQ(error.error.get(), proto::kNbdEio);
}

TEST_F(BridgeTest, ErrorsOfTheServerArriveAsThemselves) {
  StartBridge();
  TestClient client = Client();
  std::vector<char> data(4096);
  for (const auto& [host, wire] : {std::pair{-EIO, proto::kNbdEio},
                                   {-ENOSPC, proto::kNbdEnospc},
                                   {-EPERM, proto::kNbdEperm},
                                   {-ETIMEDOUT, proto::kNbdEio},
                                   {-EOPNOTSUPP, proto::kNbdEnotsup}}) {
    fake::switches().fail_with = host;
    EXPECT_EQ(client.Do(NbdCmd::kWrite, 0, 4096, 0, data.data()), wire);
    EXPECT_EQ(client.Do(NbdCmd::kRead, 0, 4096, 0, data.data()), wire);
    EXPECT_EQ(client.Do(NbdCmd::kFlush, 0, 0), wire);
  }
}

TEST_F(BridgeTest, RefusedRequestsLeaveTheStreamInStep) {
  StartBridge();
  TestClient client = Client();
  std::vector<char> data(33 * kMiB);
  const std::uint64_t end = 64 * kMiB;
  EXPECT_EQ(client.Do(NbdCmd::kWrite, end, 4096, 0, data.data()), proto::kNbdEnospc);
  EXPECT_EQ(client.Do(NbdCmd::kRead, end - 512, 1024), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kWrite, 100, 512, 0, data.data()), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kRead, 0, 0), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kWrite, 0, 33 * kMiB, 0, data.data()), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kRead, ~std::uint64_t{511}, 1024), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kRead, 0, 512, proto::kNbdCmdNoHole), proto::kNbdEinval);
  EXPECT_EQ(client.Do(static_cast<NbdCmd>(7), 0, 512), proto::kNbdEinval);
  EXPECT_EQ(client.Do(static_cast<NbdCmd>(0xffff), 0, 512), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kRead, 0, 512, 0, data.data()), 0);
  EXPECT_EQ(fake::switches().ios_done, 1u);
}

TEST_F(BridgeTest, BlocksOfFourKibRefuseSectors) {
  fake::switches().logical_block_size = 4096;
  StartBridge();
  TestClient client = Client();
  char data[4096];
  EXPECT_EQ(client.Do(NbdCmd::kRead, 512, 512, 0, data), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kRead, 4096, 4096, 0, data), 0);
}

TEST_F(BridgeTest, AReadOnlyVolumeSaysSoAndRefusesWrites) {
  AddVolume("readonly");
  StartBridge();
  TestClient client = Client(false, "readonly");
  char data[512] = {};
  EXPECT_NE(client.export_flags & proto::kNbdReadOnly, 0);
  EXPECT_EQ(client.export_flags & (proto::kNbdSendTrim | proto::kNbdSendWriteZeroes), 0);
  EXPECT_EQ(client.Do(NbdCmd::kWrite, 0, 512, 0, data), proto::kNbdEperm);
  EXPECT_EQ(client.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
}

TEST_F(BridgeTest, FlagsOfCommandsReachTheDevice) {
  StartBridge();
  TestClient client = Client();
  char data[512] = {};
  auto& seen = fake::switches();
  EXPECT_EQ(client.Do(NbdCmd::kWrite, 0, 512, proto::kNbdCmdFua, data), 0);
  EXPECT_EQ(seen.fua_writes, 1u);
  EXPECT_EQ(client.Do(NbdCmd::kFlush, 0, 0), 0);
  EXPECT_EQ(seen.flushes, 1u);
  EXPECT_EQ(client.Do(NbdCmd::kWriteZeroes, 0, 48 * kMiB, proto::kNbdCmdNoHole), 0);
  EXPECT_EQ(seen.zeroes_without_unmap, 1u);
  EXPECT_EQ(client.Do(NbdCmd::kWriteZeroes, 0, kMiB, proto::kNbdCmdFastZero), 0);
  EXPECT_EQ(client.Do(NbdCmd::kTrim, 0, kMiB), 0);
  EXPECT_EQ(seen.flushes, 1u);
  EXPECT_EQ(client.Do(NbdCmd::kTrim, 0, kMiB, proto::kNbdCmdFua), 0);
  EXPECT_EQ(seen.flushes, 2u);
}

TEST_F(BridgeTest, NothingIsAnnouncedThatTheDeviceCannotDo) {
  fake::switches().can_discard = false;
  StartBridge();
  TestClient client = Client();
  EXPECT_EQ(client.export_flags & proto::kNbdSendTrim, 0);
  EXPECT_EQ(client.Do(NbdCmd::kTrim, 0, 4096), proto::kNbdEinval);
  EXPECT_EQ(client.Do(NbdCmd::kWriteZeroes, 0, 4096, proto::kNbdCmdFastZero), proto::kNbdEnotsup);
  EXPECT_EQ(client.Do(NbdCmd::kWriteZeroes, 0, 4096), 0);
}

TEST_F(BridgeTest, AClientThatDoesNotReadBlocksOnlyItself) {
  options_.connection_memory = kMiB;
  StartBridge();
  TestClient silent = Client(), other = Client();
  constexpr std::uint64_t kRequests = 500;
  std::thread sender([&] {
    for (std::uint64_t i = 0; i < kRequests; ++i) silent.SendRequest(0, i, i * 65536, 65536);
  });
  std::vector<char> data(65536);
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(other.Do(NbdCmd::kRead, 0, 65536, 0, data.data()), 0);
  }
  EXPECT_LT(fake::switches().ios_done, kRequests);
  // When it reads at last, everything is there once.
  std::vector<bool> answered(kRequests);
  for (std::uint64_t i = 0; i < kRequests; ++i) {
    std::uint64_t cookie = kRequests;
    ASSERT_EQ(silent.ReceiveError(&cookie), 0);
    ASSERT_LT(cookie, kRequests);
    EXPECT_FALSE(answered[cookie]);
    answered[cookie] = true;
    ASSERT_TRUE(silent.Receive(data.data(), data.size()));
  }
  sender.join();
}

TEST_F(BridgeTest, AFullQueueIsWaitedFor) {
  fake::switches().io_depth_max = 3;
  StartBridge();
  TestClient client = Client();
  std::vector<char> data(3 * kMiB, 'q');
  for (std::uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(client.SendRequest(1, i, 0, 3 * kMiB));
    ASSERT_TRUE(client.Send(data.data(), data.size()));
    ASSERT_TRUE(client.SendRequest(3, i, 0, 0));
  }
  for (int i = 0; i < 40; ++i) EXPECT_EQ(client.ReceiveError(), 0);
}

TEST_F(BridgeTest, DisconnectAnswersWhatWasAskedBefore) {
  StartBridge();
  TestClient client = Client();
  for (std::uint64_t i = 0; i < 10; ++i) client.SendRequest(3, i, 0, 0);
  client.SendRequest(2, 0, 0, 0);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(client.ReceiveError(), 0);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(BridgeTest, HostileStreamsAreClosedAndOthersDoNotNotice) {
  StartBridge();
  TestClient good = Client();
  char data[512] = {};
  {
    TestClient garbage(path());
    garbage.Send(std::string(1000, 'G').data(), 1000);
    EXPECT_TRUE(garbage.AtEnd());
  }
  {
    TestClient garbage = Client();
    garbage.Send(std::string(28, 'G').data(), 28);
    EXPECT_TRUE(garbage.AtEnd());
  }
  {
    TestClient huge = Client();
    huge.SendRequest(1, 0, 0, 65 * kMiB);
    EXPECT_TRUE(huge.AtEnd());
  }
  {
    TestClient half = Client();  // Leaves in the middle of a payload.
    half.SendRequest(1, 0, 0, 2 * kMiB);
    half.Send(std::vector<char>(kMiB + 4096).data(), kMiB + 4096);
  }
  EXPECT_EQ(good.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
  TestClient next = Client();
  EXPECT_EQ(next.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
}

TEST_F(BridgeTest, AClientThatTricklesTheHandshakeIsDropped) {
  options_.handshake_timeout_ms = 100;
  StartBridge();
  TestClient slow(path());
  EXPECT_TRUE(slow.AtEnd());
}

TEST_F(BridgeTest, ConnectionsAreLimited) {
  options_.connections_max = 1;
  StartBridge();
  TestClient first = Client();
  TestClient second(path());
  EXPECT_TRUE(second.AtEnd());
  char data[512];
  EXPECT_EQ(first.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
}

TEST_F(BridgeTest, ClientsMayLeaveWhileTheServerIsLost) {
  StartBridge();
  char data[512] = {};
  fake::switches().hold = true;
  {
    TestClient client = Client();
    client.SendRequest(0, 1, 0, 4 * kMiB);
    client.SendRequest(1, 2, 0, 512);
    client.Send(data, sizeof(data));
    client.SendRequest(3, 3, 0, 0);
  }
  TestClient waits = Client();
  waits.SendRequest(0, 4, 0, 512);
  fake::switches().hold = false;
  EXPECT_EQ(waits.ReceiveError(), 0);
  EXPECT_TRUE(waits.Receive(data, sizeof(data)));
  EXPECT_TRUE(bridge_->Stop());
}

TEST_F(BridgeTest, StopFinishesWhatExecutesAndClosesTheRest) {
  options_.thread_count = 3;
  StartBridge();
  std::vector<TestClient> clients;
  for (int i = 0; i < 6; ++i) clients.push_back(Client());
  TestClient handshaking(path());
  char data[512];
  for (TestClient& client : clients) ASSERT_EQ(client.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
  EXPECT_TRUE(bridge_->Stop());
  for (TestClient& client : clients) EXPECT_TRUE(client.AtEnd());
  EXPECT_TRUE(handshaking.AtEnd());
}

TEST_F(BridgeTest, StopGivesUpOnHeldIoAtItsDeadline) {
  options_.stop_timeout_ms = 50;
  StartBridge();
  TestClient client = Client();
  char data[512];
  ASSERT_EQ(client.Do(NbdCmd::kRead, 0, 512, 0, data), 0);
  fake::switches().hold = true;
  client.SendRequest(0, 1, 0, 4096);
  // A request is known to be there when one behind it was refused.
  client.SendRequest(7, 2, 0, 4096);
  ASSERT_EQ(client.ReceiveError(), proto::kNbdEinval);
  gave_up_ = true;
  EXPECT_FALSE(bridge_->Stop());
}

TEST_F(BridgeTest, VolumesOfOneServerShareASession) {
  AddVolume("vol1");
  AddVolume("vol2", "tcp://other/");
  StartBridge();
  EXPECT_EQ(fake::switches().sessions, 2);
  TestClient client(path());
  EXPECT_FALSE(client.Open("vol3"));
}

TEST_F(BridgeTest, WhatIsWrongAtTheStartIsSaidByName) {
  AddVolume("missing");
  EXPECT_EQ(std::string(Bridge::Start(options_).status().message()),
            "open missing on tcp://server: No such file or directory");
  options_.volumes.volumes.clear();
  AddVolume("vol0", "tcp://nobody/");
  EXPECT_EQ(std::string(Bridge::Start(options_).status().message()),
            "connect to tcp://nobody: Connection refused");
  options_.volumes.volumes.clear();
  AddVolume("vol0");
  AddVolume("vol0", "tcp://other/");
  EXPECT_THAT(std::string(Bridge::Start(options_).status().message()),
              ::testing::HasSubstr("two volumes are called \"vol0\""));
}

TEST_F(BridgeTest, TheDataPathDoesNotAllocate) {
  StartBridge();
  TestClient client = Client();
  std::vector<char> data(256 * 1024);
  const auto round = [&] {
    bool good = true;
    for (const std::uint32_t size : {512u, 4096u, 65536u, 256u * 1024}) {
      good &= client.Do(NbdCmd::kWrite, 0, size, 0, data.data()) == 0;
      good &= client.Do(NbdCmd::kRead, 0, size, 0, data.data()) == 0;
    }
    return good && client.Do(NbdCmd::kFlush, 0, 0) == 0 &&
           client.Do(NbdCmd::kWriteZeroes, 0, 4096) == 0 && client.Do(NbdCmd::kTrim, 0, 4096) == 0;
  };
  ASSERT_TRUE(round());
  counting = true;
  bool good = true;
  for (int i = 0; i < 200; ++i) good &= round();
  counting = false;
  EXPECT_TRUE(good);
  EXPECT_EQ(allocations, 0u);
}

}  // namespace
}  // namespace ibnbd::bridge
