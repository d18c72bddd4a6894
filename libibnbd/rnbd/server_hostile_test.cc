// SPDX-License-Identifier: Apache-2.0
// The server against clients that break the rules: each loses its own session, nobody else notices,
// and nothing is kept for them beyond the limits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "rnbd/server_fixture.h"
#include "tests/support/raw_client.h"

namespace ibnbd::rnbd {
namespace {

using proto::AccessMode;

class HostileClient : public ::testing::Test {
 protected:
  HostileClient()
      : world(13, sim::FaultPlan()),
        disk(std::make_shared<FakeDisk>(FakeGeometry(1 << 20))),
        server(world, MakeOptions()) {
    SetLogSink([this](LogLevel, const std::string& line) { lines.push_back(line); },
               LogLevel::kWarn);
    vol0 = &server.exports.Add("vol0", disk);
    bystander = &AddClient(200);
    EXPECT_TRUE(bystander->Open(2, "bystander"));
    EXPECT_EQ(bystander->OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  }
  ~HostileClient() override {
    EXPECT_EQ(BystanderRead(), 0) << "somebody else's session was hurt";
    EXPECT_FALSE(bystander->AnyGone());
    clients.clear();
    EXPECT_TRUE(server.Stop());
    EXPECT_THAT(world.violations(), ::testing::IsEmpty());
    SetLogSink([](LogLevel, const std::string&) {}, LogLevel::kError);
  }
  static ServerOptions MakeOptions() {
    ServerOptions options = SmallServer();
    options.handshake_timeout_ns = 5 * kNsPerSecond;
    options.handshakes_max = 4;
    options.handshake_connections_max = 20;
    options.connections_per_session_max = 8;
    options.chunk_memory_max = 3 * 16 * (8192 + 4096);
    return options;
  }
  RawClient& AddClient(std::uint8_t id) {
    clients.push_back(std::make_unique<RawClient>(
        world, world.AddHost("client" + std::to_string(clients.size())), server.address, id));
    return *clients.back();
  }
  int BystanderRead() {
    const proto::Io io = MakeIo(proto::IoOp::kRead, opened.device_id.get(), 0, 512);
    bystander->Read(1, 1, proto::AsBytes(io), 512);
    return bystander->Await(1);
  }
  RawClient& OpenHostile() {
    RawClient& client = AddClient(1);
    EXPECT_TRUE(client.Open(2, "hostile"));
    return client;
  }
  bool Logged(const std::string& text) const {
    return std::any_of(lines.begin(), lines.end(), [&text](const std::string& line) {
      return line.find(text) != std::string::npos;
    });
  }
  // The hostile client lost its path, for this reason.
  void ExpectLost(RawClient& client, const std::string& why) {
    EXPECT_TRUE(client.AwaitGone(kNsPerSecond));
    EXPECT_TRUE(Logged(why)) << ::testing::PrintToString(lines);
    world.RunFor(2 * kNsPerSecond);
    EXPECT_EQ(server.server->stats().sessions, 1u);
    EXPECT_EQ(server.server->stats().chunk_memory, 16u * (8192 + 4096));
  }

  sim::World world;
  std::shared_ptr<FakeDisk> disk;
  ServerFixture server;
  FakeBackend* vol0 = nullptr;
  std::vector<std::unique_ptr<RawClient>> clients;
  RawClient* bystander = nullptr;
  proto::OpenRsp opened;
  std::vector<std::string> lines;
};

TEST_F(HostileClient, GarbageInTheConnectRequestIsRejected) {
  RawClient& client = AddClient(1);
  const auto reject_of = [&](std::span<const std::byte> data) {
    client.StartConnectRaw(0, data);
    auto& link = *client.links.back();
    world.RunUntil([&link] { return link.rejected || link.established; }, kNsPerSecond);
    EXPECT_TRUE(link.rejected);
    return client.reject_error();
  };
  EXPECT_EQ(reject_of({}), -ECONNRESET);
  EXPECT_EQ(reject_of(std::vector<std::byte>(56, std::byte{0xff})), -ECONNRESET);
  client.request.magic = proto::le16(1);
  client.request.cid_num = proto::le16(1);
  EXPECT_EQ(reject_of(proto::AsBytes(client.request)), -ECONNRESET);
  client.request.magic = proto::le16(proto::kRtrsMagic);
  client.request.version = proto::le16(0x0300);
  EXPECT_EQ(reject_of(proto::AsBytes(client.request)), -ECONNRESET);
  client.request.version = proto::le16(proto::kRtrsVersion);
  client.request.cid = proto::le16(1);
  EXPECT_EQ(reject_of(proto::AsBytes(client.request)), -ECONNRESET);
  client.request.cid = proto::le16(0);
  client.request.flags = 0;
  EXPECT_EQ(reject_of(proto::AsBytes(client.request)), -ENXIO);
  client.request.flags = proto::kConnReqFirstConn;
  client.request.cid_num = proto::le16(9);
  EXPECT_EQ(reject_of(proto::AsBytes(client.request)), -E2BIG);
}

TEST_F(HostileClient, ConnectionsOutOfOrderOrTwiceAreRejected) {
  RawClient& client = AddClient(1);
  EXPECT_FALSE(client.Connect(1, 3));
  EXPECT_EQ(client.reject_error(), -ECONNRESET);
  client.links.clear();
  EXPECT_TRUE(client.Connect(0, 3));
  EXPECT_TRUE(client.Connect(2, 3));
  EXPECT_FALSE(client.Connect(2, 3));
  EXPECT_FALSE(client.Connect(0, 3));
  EXPECT_FALSE(client.Connect(1, 4));
  client.request.recon_cnt = proto::le16(2);
  EXPECT_FALSE(client.Connect(1, 3));
}

TEST_F(HostileClient, AnInfoRequestBeforeAllConnectionsBreaksThePath) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Connect(0, 2));
  client.SendInfo("hostile");
  ExpectLost(client, "connections are missing");
}

TEST_F(HostileClient, ABadSessionNameBreaksThePath) {
  RawClient& client = AddClient(1);
  EXPECT_FALSE(client.Open(2, "../etc"));
  ExpectLost(client, "info_req: name has a");
}

TEST_F(HostileClient, ARequestBeforeInfoBreaksThePath) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.ConnectAll(2));
  client.WriteImm(1, 0, 0, {}, 0);
  ExpectLost(client, "request before INFO_RSP");
}

TEST_F(HostileClient, AnythingButInfoFirstBreaksThePath) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.ConnectAll(2));
  client.WriteImm(0, 0, 0, {}, proto::kImmHbMsg);
  ExpectLost(client, "message before INFO_REQ");
}

TEST_F(HostileClient, ASendWhereAWriteIsExpectedBreaksThePath) {
  RawClient& client = OpenHostile();
  client.Send(1, {});
  ExpectLost(client, "neither a request nor a heartbeat");
}

TEST_F(HostileClient, ASilentHandshakeIsEnded) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Connect(0, 2));
  EXPECT_TRUE(client.AwaitGone(6 * kNsPerSecond));
  EXPECT_TRUE(Logged("handshake took too long"));
}

TEST_F(HostileClient, HandshakesInProgressAreLimited) {
  for (std::uint8_t id = 1; id <= 4; ++id) ASSERT_TRUE(AddClient(id).Connect(0, 2));
  RawClient& fifth = AddClient(5);
  EXPECT_FALSE(fifth.Connect(0, 2));
  EXPECT_EQ(fifth.reject_error(), -EBUSY);
  world.RunFor(6 * kNsPerSecond);
  EXPECT_TRUE(AddClient(6).Connect(0, 2));
}

TEST_F(HostileClient, ConnectionsOfHandshakesInProgressAreLimited) {
  ASSERT_TRUE(AddClient(1).Connect(0, 8));
  ASSERT_TRUE(AddClient(2).Connect(0, 8));
  RawClient& third = AddClient(3);
  EXPECT_FALSE(third.Connect(0, 8));
  EXPECT_EQ(third.reject_error(), -EBUSY);
  EXPECT_TRUE(AddClient(4).Connect(0, 4));
}

TEST_F(HostileClient, ASlowHandshakeMakesRoomForOthers) {
  RawClient& oldest = AddClient(1);
  ASSERT_TRUE(oldest.Connect(0, 8));
  world.RunFor(kNsPerSecond / 2);
  RawClient& younger = AddClient(2);
  ASSERT_TRUE(younger.Connect(0, 8));
  world.RunFor(kNsPerSecond * 7 / 10);
  EXPECT_TRUE(AddClient(3).Open(8, "three"));
  EXPECT_TRUE(oldest.AwaitGone(kNsPerSecond));
  EXPECT_TRUE(Logged("others need the place"));
  EXPECT_FALSE(younger.AnyGone());
}

TEST_F(HostileClient, ChunkMemoryIsLimited) {
  ASSERT_TRUE(AddClient(1).Open(1, "one"));
  ASSERT_TRUE(AddClient(2).Open(1, "two"));
  RawClient& third = AddClient(3);
  EXPECT_FALSE(third.Open(1, "three"));
  EXPECT_EQ(third.reject_error(), -ENOMEM);
}

TEST_F(HostileClient, AnImmediateBeyondTheChunksBreaksThePath) {
  RawClient& client = OpenHostile();
  // 16 chunks of 12 KiB: 4 bits of mem_id, 24 of offset.
  client.WriteImm(1, 0, 0, {}, 0x00ffffff);
  ExpectLost(client, "request: off is beyond the chunk");
}

TEST_F(HostileClient, AHeaderThatCrossesTheChunksEndBreaksThePath) {
  RawClient& client = OpenHostile();
  client.WriteImm(1, 0, 0, {}, client.RequestImm(0, 8192 + 4096 - 2));
  ExpectLost(client, "header crosses the end");
}

TEST_F(HostileClient, AUserMessageLongerThanItsOffsetBreaksThePath) {
  RawClient& client = OpenHostile();
  const proto::WriteHeader header{.usr_len = proto::le16(100)};
  client.WriteImm(1, 0, 8, proto::AsBytes(header), client.RequestImm(0, 8));
  ExpectLost(client, "usr_len > off");
}

TEST_F(HostileClient, AReadOfMoreThanWasGrantedBreaksThePath) {
  RawClient& client = OpenHostile();
  struct {
    proto::ReadHeader header{.usr_len = proto::le16(0), .sg_cnt = proto::le16(1)};
    proto::SgDesc desc{.key = proto::le32(1), .len = proto::le32(200'000)};
  } message;
  client.WriteImm(1, 0, 512, std::as_bytes(std::span(&message, 1)), client.RequestImm(0, 512));
  ExpectLost(client, "desc len");
}

TEST_F(HostileClient, ReusingAChunkThatExecutesBreaksThePathAndNotTheIo) {
  RawClient& client = OpenHostile();
  proto::OpenRsp mine;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadOnly, &mine), 0);
  vol0->HoldIos();
  const proto::Io io = MakeIo(proto::IoOp::kRead, mine.device_id.get(), 0, 512);
  client.Read(1, 3, proto::AsBytes(io), 512);
  world.RunFor(kNsPerMs);
  ASSERT_EQ(vol0->executing_count(), 1u);
  client.Read(0, 3, proto::AsBytes(io), 512);  // On the other connection.
  EXPECT_TRUE(client.AwaitGone(kNsPerSecond));
  EXPECT_TRUE(Logged("its chunk is still executing"));
  // The backend may still write into the chunk: it stays.
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(server.server->stats().chunk_memory, 2u * 16 * (8192 + 4096));
  vol0->Release();
  ExpectLost(client, "its chunk is still executing");
}

TEST_F(HostileClient, AnotherSessionsChunksAreOutOfReachEvenWithTheirKey) {
  RawClient& client = OpenHostile();
  client.set_chunk(5, bystander->chunk(5));
  auto* chunk = reinterpret_cast<std::byte*>(bystander->chunk(5).addr);
  const std::vector<std::byte> bytes(512, std::byte{0x5a});
  client.WriteImm(1, 5, 0, bytes, proto::kImmHbMsg);
  EXPECT_TRUE(client.AwaitGone(kNsPerSecond));
  EXPECT_NE(chunk[0], std::byte{0x5a});
  RawClient& early = AddClient(2);  // Nor before anything was granted.
  ASSERT_TRUE(early.ConnectAll(2));
  fabric::SendRequest send;
  send.opcode = fabric::Opcode::kWrite;
  const fabric::Sge sge = early.Stage(bytes);
  send.sges = {&sge, 1};
  send.remote = {bystander->chunk(5).addr, bystander->chunk(5).rkey};
  early.links[1]->connection->PostSend({&send, 1});
  EXPECT_TRUE(early.AwaitGone(kNsPerSecond));
  EXPECT_NE(chunk[0], std::byte{0x5a});
}

TEST_F(HostileClient, AnAnswerToNowhereBreaksThePathOnly) {
  RawClient& client = OpenHostile();
  proto::OpenRsp mine;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadOnly, &mine), 0);
  const proto::Io io = MakeIo(proto::IoOp::kRead, mine.device_id.get(), 0, 512);
  std::vector<std::byte> bytes(512);
  const proto::SgDesc desc{
      .addr = proto::le64(4096), .key = proto::le32(0xdead), .len = proto::le32(512)};
  bytes.resize(proto::EncodeReadRequest(bytes, proto::AsBytes(io), &desc));
  client.WriteImm(1, 2, 512, bytes, client.RequestImm(2, 512 + sizeof(io)));
  EXPECT_TRUE(client.AwaitGone(kNsPerSecond));
}

TEST_F(HostileClient, MalformedControlMessagesAreAnsweredWithEinval) {
  RawClient& client = OpenHostile();
  proto::Open open;
  open.dev_name.fill('x');
  client.Read(0, 0, proto::AsBytes(open), sizeof(proto::OpenRsp));
  EXPECT_EQ(client.Await(0), -EINVAL);
  (void)proto::SetName(&open.dev_name, "vol0");  // It fits.
  client.Read(0, 0, proto::AsBytes(open), 8);    // No room for the answer.
  EXPECT_EQ(client.Await(0), -EINVAL);
  client.Write(0, 0, proto::AsBytes(open), std::vector<std::byte>(512));  // As a write.
  EXPECT_EQ(client.Await(0), -EINVAL);
  client.Read(1, 0, proto::AsBytes(open), sizeof(proto::OpenRsp));  // Not on connection 0.
  EXPECT_EQ(client.Await(0), -EINVAL);
  const std::array<std::byte, 2> stub{};
  client.Write(0, 0, stub);
  EXPECT_EQ(client.Await(0), -EINVAL);
  client.Write(0, 0, std::array<std::byte, 4>{std::byte{0x63}});
  EXPECT_EQ(client.Await(0), -EINVAL);
  proto::List list;
  list.start_index = proto::le32(~0u);
  client.Read(0, 0, proto::AsBytes(list), 4096);
  EXPECT_EQ(client.Await(0), 0);
  EXPECT_EQ(server.exports.at("vol0").reader_count + server.exports.at("vol0").writer_count, 1u);
  EXPECT_FALSE(client.AnyGone());
}

// Who lets fences wait for a slow IO of its own takes no room from others.
TEST_F(HostileClient, AFewFencesWaitPerPathAndAllOthersAreToComeAgain) {
  FakeBackend& slow = server.exports.Add("slow", std::make_shared<FakeDisk>(FakeGeometry(1 << 20)));
  slow.HoldIos();
  RawClient& lost = OpenHostile();
  proto::OpenRsp device;
  ASSERT_EQ(lost.OpenDevice("slow", AccessMode::kReadWrite, &device), 0);
  RawClient& carrier = AddClient(2);
  carrier.request.paths_uuid = lost.request.paths_uuid;
  ASSERT_TRUE(carrier.Open(2, "hostile"));
  const proto::Io io = MakeIo(proto::IoOp::kWrite, device.device_id.get(), 0, 512);
  lost.Write(1, 15, proto::AsBytes(io), std::vector<std::byte>(512));
  world.RunFor(kNsPerMs);
  proto::FencePath fence;
  fence.recon_cnt = lost.request.recon_cnt;
  fence.sess_uuid = lost.request.sess_uuid;
  for (std::uint32_t i = 0; i < 12; ++i) carrier.Write(0, i, proto::AsBytes(fence));
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(carrier.responses.size(), 8u);
  for (const auto& [mem_id, error] : carrier.responses) EXPECT_EQ(error, -EBUSY);
  slow.Release();
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(carrier.responses.size(), 12u);
  const auto fenced = [](const auto& response) { return response.second == 0; };
  EXPECT_EQ(std::count_if(carrier.responses.begin(), carrier.responses.end(), fenced), 4);
}

TEST_F(HostileClient, AFloodOfHeartbeatsIsNotMirrored) {
  RawClient& client = OpenHostile();
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 16; ++i) client.WriteImm(0, 0, 0, {}, proto::kImmHbMsg);
    world.RunFor(kNsPerMs);
  }
  EXPECT_FALSE(client.AnyGone());
  EXPECT_GT(client.heartbeat_acks, 0u);
}

TEST_F(HostileClient, RefusalsDoNotFloodTheLog) {
  RawClient& client = AddClient(1);
  for (int i = 0; i < 100; ++i) client.StartConnectRaw(0, {});
  EXPECT_TRUE(client.AwaitGone(kNsPerSecond));
  EXPECT_EQ(server.server->stats().connects_refused, 100u);
  EXPECT_LE(lines.size(), 25u);
}

}  // namespace
}  // namespace ibnbd::rnbd
