// SPDX-License-Identifier: Apache-2.0
// A key per IO: each answer brings the chunk's next key, the one before is dead, and nobody writes
// into a chunk whose write executes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <vector>

#include "fabric/sim/marks.h"
#include "rnbd/server_fixture.h"
#include "tests/support/raw_client.h"

namespace ibnbd::rnbd {
namespace {

using proto::AccessMode;

class ServerKeysTest : public ::testing::Test {
 protected:
  ServerKeysTest()
      : world(21, Plan()),
        disk(std::make_shared<FakeDisk>(FakeGeometry(1 << 20))),
        server(world, MakeOptions(), 3) {
    vol0 = &server.exports.Add("vol0", disk);
    client = std::make_unique<RawClient>(world, world.AddHost("client"), server.address, 1);
    EXPECT_TRUE(client->Open(4, "host-a"));
    proto::OpenRsp opened;
    EXPECT_EQ(client->OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
    device = opened.device_id.get();
  }
  ~ServerKeysTest() override {
    client.reset();
    EXPECT_TRUE(server.Stop());
    EXPECT_THAT(world.violations(), ::testing::IsEmpty());
  }
  static sim::FaultPlan Plan() {
    sim::FaultPlan plan;
    plan.slow_completion_ppm = 300'000;  // So that a client is faster than our completions.
    plan.slow_completion_ns = {50 * kNsPerUs, 500 * kNsPerUs};
    return plan;
  }
  static ServerOptions MakeOptions() {
    ServerOptions options = SmallServer();
    options.queue_depth = 8;
    options.keys_per_io = true;
    return options;
  }
  proto::Io Message(proto::IoOp op) { return MakeIo(op, device, 0, 512); }
  void Write(std::size_t link, std::uint32_t mem_id, std::uint8_t value) {
    client->Write(link, mem_id, proto::AsBytes(Message(proto::IoOp::kWrite)),
                  std::vector<std::byte>(512, std::byte{value}));
  }
  // Bytes alone, by no request.
  void Poke(std::uint32_t mem_id, std::uint32_t rkey) {
    const std::vector<std::byte> bytes(512, std::byte{0xbb});
    const fabric::Sge sge = client->Stage(bytes);
    fabric::SendRequest send;
    send.opcode = fabric::Opcode::kWrite;
    send.sges = {&sge, 1};
    send.remote = {client->chunk(mem_id).addr, rkey};
    client->links[1]->connection->PostSend({&send, 1});
  }
  void ExpectLost() {
    EXPECT_TRUE(client->AwaitGone(kNsPerSecond));
    world.RunFor(kNsPerSecond);
    EXPECT_EQ(server.server->stats().chunk_memory, 0u);
  }

  sim::Marks marks;
  sim::World world;
  std::shared_ptr<FakeDisk> disk;
  ServerFixture server;
  FakeBackend* vol0 = nullptr;
  std::unique_ptr<RawClient> client;
  std::uint32_t device = 0;
};

TEST_F(ServerKeysTest, EachChunkHasAKeyOfItsOwnAndEachAnswerBringsTheNext) {
  EXPECT_TRUE(client->links[0]->response.new_rkey());
  std::set<std::uint32_t> keys;
  for (std::uint32_t id = 1; id < 8; ++id) keys.insert(client->chunk(id).rkey);
  EXPECT_EQ(keys.size(), 7u);
  for (std::uint8_t round = 0; round < 100; ++round) {
    const std::uint32_t count = client->rkey_count;
    Write(1, 3, round);
    ASSERT_EQ(client->Await(3), 0);
    EXPECT_EQ(client->rkey_count, count + 1);
    EXPECT_TRUE(keys.insert(client->chunk(3).rkey).second) << "a key came twice";
    client->Read(1, 3, proto::AsBytes(Message(proto::IoOp::kRead)), 512);
    ASSERT_EQ(client->Await(3), 0);
    EXPECT_EQ(client->Room(3)[0], std::byte{round});
    EXPECT_TRUE(keys.insert(client->chunk(3).rkey).second) << "a key came twice";
  }
}

TEST_F(ServerKeysTest, AnErrorBringsAKeyToo) {
  proto::Io io = Message(proto::IoOp::kWrite);
  io.sector = proto::le64(1 << 20);  // Beyond the end.
  const std::uint32_t before = client->chunk(3).rkey;
  client->Write(1, 3, proto::AsBytes(io), std::vector<std::byte>(512));
  EXPECT_LT(client->Await(3), 0);
  EXPECT_NE(client->chunk(3).rkey, before);
  Write(1, 3, 5);
  EXPECT_EQ(client->Await(3), 0);
}

TEST_F(ServerKeysTest, TheKeyOfAnEarlierIoIsDead) {
  const std::uint32_t old = client->chunk(3).rkey;
  Write(1, 3, 5);
  ASSERT_EQ(client->Await(3), 0);
  Poke(3, old);
  ExpectLost();
  EXPECT_EQ(disk->current()[0], std::byte{5});
}

TEST_F(ServerKeysTest, TheKeyOfAnotherChunkReachesThatChunkAlone) {
  Poke(3, client->chunk(4).rkey);
  ExpectLost();
}

TEST_F(ServerKeysTest, NobodyWritesIntoAChunkWhoseWriteExecutes) {
  vol0->HoldIos();
  const std::uint32_t key = client->chunk(3).rkey;
  Write(1, 3, 5);
  world.RunFor(5 * kNsPerMs);
  ASSERT_EQ(vol0->executing_count(), 1u);
  Poke(3, key);
  EXPECT_TRUE(client->AwaitGone(kNsPerSecond));
  vol0->Release();
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(disk->current()[0], std::byte{5});
  EXPECT_EQ(server.server->stats().chunk_memory, 0u);
}

TEST_F(ServerKeysTest, AClientMayUseAChunkOnAnotherConnectionAtOnce) {
  for (std::uint8_t round = 0; round < 200; ++round) {
    Write(1 + round % 3, 3, round);
    ASSERT_EQ(client->Await(3), 0) << int{round};
    ASSERT_EQ(disk->current()[0], std::byte{round});
  }
  EXPECT_GT(
      marks.count("server: a chunk was used on another connection before its answer had landed"),
      0u);
}

TEST_F(ServerKeysTest, AChunkThatExecutesIsNotWanted) {
  vol0->HoldIos();
  Write(1, 3, 5);
  world.RunFor(5 * kNsPerMs);
  client->WriteImm(2, 3, 0, {}, client->RequestImm(3, 36));
  EXPECT_TRUE(client->AwaitGone(kNsPerSecond));
  vol0->Release();
  ExpectLost();
}

TEST_F(ServerKeysTest, NothingIsKeptForAClientThatGoesAtAnyMoment) {
  for (std::int64_t delay_us = 0; delay_us < 400; delay_us += 7) {
    Write(1, 3, 1);
    ASSERT_EQ(client->Await(3), 0);
    Write(2, 3, 2);
    Write(1, 4, 3);
    world.RunFor(delay_us * kNsPerUs);
    client->Disconnect();
    world.RunFor(kNsPerSecond);
    EXPECT_EQ(server.server->stats().chunk_memory, 0u) << delay_us;
    EXPECT_EQ(server.server->stats().sessions, 0u) << delay_us;
    client = std::make_unique<RawClient>(world, world.AddHost("client" + std::to_string(delay_us)),
                                         server.address, 2);
    ASSERT_TRUE(client->Open(4, "host-a"));
    proto::OpenRsp opened;
    ASSERT_EQ(client->OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
    device = opened.device_id.get();
  }
}

}  // namespace
}  // namespace ibnbd::rnbd
