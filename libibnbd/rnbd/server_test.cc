// SPDX-License-Identifier: Apache-2.0
// The server as a client of the protocol sees it that plays by the rules: access, devices, the
// fence, the end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "fabric/sim/marks.h"
#include "rnbd/server_fixture.h"
#include "tests/support/raw_client.h"

namespace ibnbd::rnbd {
namespace {

using proto::AccessMode;

class ServerTest : public ::testing::Test {
 protected:
  explicit ServerTest(int reactors = 2)
      : world(11, sim::FaultPlan()),
        disk(std::make_shared<FakeDisk>(FakeGeometry(1 << 20))),
        server(world, MakeOptions(), reactors) {
    vol0 = &server.exports.Add("vol0", disk);
    server.exports.Add("ro", disk, {}, true);
  }
  ~ServerTest() override {
    vol0 = nullptr;
    clients.clear();
    EXPECT_TRUE(server.Stop());
    EXPECT_THAT(world.violations(), ::testing::IsEmpty());
  }
  static ServerOptions MakeOptions() {
    ServerOptions options = SmallServer();
    options.handshake_timeout_ns = 5 * kNsPerSecond;
    options.devices_per_session_max = 8;
    return options;
  }
  RawClient& AddClient(std::uint8_t id) {
    clients.push_back(std::make_unique<RawClient>(
        world, world.AddHost("client" + std::to_string(clients.size())), server.address, id));
    return *clients.back();
  }
  static int Write(RawClient& client, std::size_t link, std::uint32_t mem_id, const proto::Io& io) {
    const std::vector<std::byte> data(io.bi_size.get(), std::byte{0x77});
    client.Write(link, mem_id, proto::AsBytes(io), data);
    return client.Await(mem_id);
  }
  // Opens vol0 and leaves a write of 512 bytes, request 3, executing there.  Returns the device's
  // id.
  std::uint32_t OpenAndWriteHeld(RawClient& client) {
    EXPECT_TRUE(client.Open(2, "a"));
    proto::OpenRsp opened;
    EXPECT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
    vol0->HoldIos();
    const proto::Io io = MakeIo(proto::IoOp::kWrite, opened.device_id.get(), 0, 512);
    client.Write(1, 3, proto::AsBytes(io), std::vector<std::byte>(512, std::byte{0x77}));
    world.RunFor(kNsPerMs);
    return opened.device_id.get();
  }

  sim::Marks marks;
  sim::World world;
  std::shared_ptr<FakeDisk> disk;
  ServerFixture server;
  FakeBackend* vol0 = nullptr;
  std::vector<std::unique_ptr<RawClient>> clients;
};

TEST_F(ServerTest, NoChunkMemoryIsTakenBeforeTheClientIntroducesItself) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.ConnectAll(3));
  EXPECT_EQ(server.server->stats().chunk_memory, 0u);
  client.SendInfo("host-a");
  ASSERT_TRUE(
      world.RunUntil([this] { return server.server->stats().sessions == 1; }, kNsPerSecond));
  EXPECT_EQ(server.server->stats().chunk_memory, 16u * (8192 + 4096));
  client.Disconnect();
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(server.server->stats().chunk_memory, 0u);
  EXPECT_EQ(server.server->stats().sessions, 0u);
}

TEST_F(ServerTest, AWriterExcludesAnotherButNotReaders) {
  RawClient& first = AddClient(1);
  RawClient& second = AddClient(2);
  ASSERT_TRUE(first.Open(2, "a"));
  ASSERT_TRUE(second.Open(2, "b"));
  proto::OpenRsp opened;
  ASSERT_EQ(first.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  EXPECT_EQ(second.OpenDevice("vol0", AccessMode::kReadWrite, &opened), -EPERM);
  EXPECT_EQ(second.OpenDevice("vol0", AccessMode::kReadOnly, &opened), 0);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 1u);
  EXPECT_EQ(server.exports.at("vol0").reader_count, 1u);
  first.Disconnect();
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  // The reader becomes a writer, under the same id.
  const std::uint32_t id = opened.device_id.get();
  EXPECT_EQ(second.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  EXPECT_EQ(opened.device_id.get(), id);
  EXPECT_EQ(server.exports.at("vol0").reader_count, 0u);
  EXPECT_EQ(Write(second, 1, 0, MakeIo(proto::IoOp::kWrite, id, 0, 512)), 0);
}

TEST_F(ServerTest, MigrationAdmitsASecondWriterAndNoThird) {
  RawClient& first = AddClient(1);
  RawClient& second = AddClient(2);
  RawClient& third = AddClient(3);
  ASSERT_TRUE(first.Open(1, "a") && second.Open(1, "b") && third.Open(1, "c"));
  proto::OpenRsp opened;
  EXPECT_EQ(first.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  EXPECT_EQ(second.OpenDevice("vol0", AccessMode::kMigration, &opened), 0);
  EXPECT_EQ(third.OpenDevice("vol0", AccessMode::kMigration, &opened), -EPERM);
}

TEST_F(ServerTest, OpeningTheSameNameAgainGivesTheSameId) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(1, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  const std::uint32_t id = opened.device_id.get();
  ASSERT_EQ(client.OpenDevice("ro", AccessMode::kReadOnly, &opened), 0);
  EXPECT_NE(opened.device_id.get(), id);
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  EXPECT_EQ(opened.device_id.get(), id);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 1u);
  EXPECT_EQ(client.CloseDevice(id), 0);
  EXPECT_EQ(client.CloseDevice(id), 0);  // Unknown by now: no error.
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  EXPECT_EQ(vol0->queue_count(), 0u);
}

TEST_F(ServerTest, OpeningAVolumeAgainThatHasGrownTellsItsSizeToEveryLane) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  const std::uint64_t sectors = opened.nsectors.get();
  disk->GrowTo(2 * sectors * kSectorSize);
  const auto last = MakeIo(proto::IoOp::kWrite, opened.device_id.get(), 2 * sectors - 8, 4096);
  EXPECT_EQ(Write(client, 1, 3, last), -EINVAL);
  EXPECT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  EXPECT_EQ(opened.nsectors.get(), 2 * sectors);
  EXPECT_EQ(Write(client, 1, 3, last), 0);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 1u);
}

TEST_F(ServerTest, AVolumeThatWasReplacedIsGivenToNobodyAndThoseWhoHaveItAreToldWhenTheyAsk) {
  RawClient& before = AddClient(1);
  ASSERT_TRUE(before.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(before.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  const std::uint32_t id = opened.device_id.get();
  vol0->place = ErrnoStatus(ESTALE, "replaced");
  EXPECT_EQ(before.OpenDevice("vol0", AccessMode::kReadWrite, &opened), -ESTALE);
  EXPECT_EQ(Write(before, 1, 3, MakeIo(proto::IoOp::kWrite, id, 0, 512)), 0);
  before.Disconnect();
  world.RunFor(kNsPerSecond);
  RawClient& after = AddClient(2);
  ASSERT_TRUE(after.Open(2, "a"));
  EXPECT_EQ(after.OpenDevice("vol0", AccessMode::kReadWrite, &opened), -ESTALE);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  vol0->place = absl::OkStatus();  // It was put back.
  EXPECT_EQ(after.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
}

TEST_F(ServerTest, WritesOnAReadOnlyDeviceAreRefusedByTheServer) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  proto::OpenRsp opened;
  EXPECT_EQ(client.OpenDevice("ro", AccessMode::kReadWrite, &opened), -EROFS);
  ASSERT_EQ(client.OpenDevice("ro", AccessMode::kReadOnly, &opened), 0);
  EXPECT_EQ(opened.max_discard_sectors.get(), 0u);
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadOnly, &opened), 0);
  EXPECT_NE(opened.max_discard_sectors.get(), 0u);  // What the volume can do, not what we may.
  const std::uint32_t id = opened.device_id.get();
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id, 0, 512)), -EPERM);
  const proto::Io discard = MakeIo(proto::IoOp::kDiscard, id, 0, 512);
  client.Write(1, 0, proto::AsBytes(discard));
  EXPECT_EQ(client.Await(0), -EPERM);
  EXPECT_EQ(disk->current()[0], std::byte{0});
  const proto::Io read = MakeIo(proto::IoOp::kRead, id, 0, 512);
  client.Read(1, 0, proto::AsBytes(read), 512);
  EXPECT_EQ(client.Await(0), 0);
}

TEST_F(ServerTest, AReadBringsItsDataAndAnErrorBringsNone) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  disk->current()[4096] = std::byte{0x99};
  const proto::Io read = MakeIo(proto::IoOp::kRead, opened.device_id.get(), 8, 4096);
  client.Read(1, 5, proto::AsBytes(read), 4096);
  EXPECT_EQ(client.Await(5), 0);
  EXPECT_EQ(client.Room(5)[0], std::byte{0x99});
  client.Room(5)[0] = std::byte{1};
  disk->FailRange(4096, 512, -EREMOTEIO);
  client.Read(1, 5, proto::AsBytes(read), 4096);
  EXPECT_EQ(client.Await(5), -EREMOTEIO);
  EXPECT_EQ(client.Room(5)[0], std::byte{1});
}

TEST_F(ServerTest, EveryIoIsCheckedAgainstTheDevice) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  const std::uint32_t id = opened.device_id.get();
  const std::uint64_t end = opened.nsectors.get();
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id, end - 1, 512)), 0);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id, end, 512)), -EINVAL);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id, end - 1, 1024)), -EINVAL);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id, ~0ull, 512)), -EINVAL);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id + 1, 0, 512)), -ENOTCONN);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, ~0u, 0, 512)), -ENOTCONN);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kRead, id, 0, 512)), -EINVAL);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(static_cast<proto::IoOp>(99), id, 0, 512)), -EINVAL);
  proto::Io io = MakeIo(proto::IoOp::kWrite, id, 0, 512);
  io.bi_size = proto::le32(1024);
  client.Write(1, 0, proto::AsBytes(io), std::vector<std::byte>(512));
  EXPECT_EQ(client.Await(0), -EINVAL);
  io = MakeIo(proto::IoOp::kSecureErase, id, 0, 512);
  client.Write(1, 0, proto::AsBytes(io));
  EXPECT_EQ(client.Await(0), -EOPNOTSUPP);
  io = MakeIo(proto::IoOp::kDiscard, id, 0, 0x80000000u);
  client.Write(1, 0, proto::AsBytes(io));
  EXPECT_EQ(client.Await(0), -EINVAL);
  EXPECT_EQ(server.server->stats().paths_broken, 0u);
  EXPECT_EQ(vol0->count(BackendOp::kWrite), 1u);
}

TEST_F(ServerTest, FuaOnADiskThatCanOnlyFlushIsAWriteAndAFlush) {
  Geometry geometry = FakeGeometry(1 << 20);
  geometry.fua = false;
  auto plain = std::make_shared<FakeDisk>(geometry);
  server.exports.Add("plain", plain);
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client.OpenDevice("plain", AccessMode::kReadWrite, &opened), 0);
  EXPECT_EQ(opened.cache_policy, proto::kCacheWriteback);
  const proto::Io io = MakeIo(proto::IoOp::kWrite, opened.device_id.get(), 0, 512, proto::kIoFua);
  ASSERT_EQ(Write(client, 1, 0, io), 0);
  EXPECT_EQ(plain->stable()[0], std::byte{0x77});
}

// What was lost is told to each queue once by a flush, whoever else the disk has told.
class LostWriteBackTest : public ServerTest {
 protected:
  std::uint32_t OpenWriter(RawClient& client) {
    EXPECT_TRUE(client.Open(3, "a"));
    proto::OpenRsp opened;
    EXPECT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
    return opened.device_id.get();
  }
  // One chunk per lane.
  int Flush(RawClient& client, std::uint32_t id, std::uint32_t cid) {
    const proto::Io flush = MakeIo(proto::IoOp::kFlush, id, 0, 0);
    client.Write(cid, cid, proto::AsBytes(flush));
    return client.Await(cid);
  }
  int WriteOne(RawClient& client, std::uint32_t id, std::uint32_t flags) {
    return Write(client, 1, 1, MakeIo(proto::IoOp::kWrite, id, 8, 512, flags));
  }
};

TEST_F(LostWriteBackTest, EachLaneIsToldOnceByItsNextFlush) {
  RawClient& client = AddClient(1);
  const std::uint32_t id = OpenWriter(client);
  EXPECT_EQ(Flush(client, id, 1), 0);
  vol0->sync_errors()->Note();
  // One that only makes itself stable begins after that: it is none of its business.
  EXPECT_EQ(WriteOne(client, id, proto::kIoFua), 0);
  for (const std::uint32_t cid : {1u, 2u}) {
    EXPECT_EQ(Flush(client, id, cid), -EIO);
    EXPECT_EQ(Flush(client, id, cid), 0);
  }
}

TEST_F(LostWriteBackTest, AWriteWithPreflushIsToldAndNotExecuted) {
  RawClient& client = AddClient(1);
  const std::uint32_t id = OpenWriter(client);
  vol0->sync_errors()->Note();
  EXPECT_EQ(WriteOne(client, id, proto::kIoPreflush), -EIO);
  EXPECT_EQ(vol0->count(BackendOp::kWrite), 0u);
  EXPECT_EQ(WriteOne(client, id, proto::kIoPreflush), 0);
  EXPECT_EQ(vol0->count(BackendOp::kWrite), 1u);
}

TEST_F(LostWriteBackTest, WhateverExecutesWhileItIsLostIsTold) {
  RawClient& client = AddClient(1);
  const std::uint32_t id = OpenWriter(client);
  vol0->HoldIos();
  const proto::Io flush = MakeIo(proto::IoOp::kFlush, id, 0, 0);
  client.Write(1, 0, proto::AsBytes(flush));
  client.Write(1, 1, proto::AsBytes(flush));
  const proto::Io fua = MakeIo(proto::IoOp::kWrite, id, 8, 512, proto::kIoFua);
  client.Write(1, 2, proto::AsBytes(fua), std::vector<std::byte>(512));
  world.RunFor(kNsPerMs);
  ASSERT_EQ(vol0->executing_count(), 3u);
  vol0->sync_errors()->Note();
  vol0->Release();
  for (const std::uint32_t chunk : {0u, 1u, 2u}) EXPECT_EQ(client.Await(chunk), -EIO);
  EXPECT_EQ(Flush(client, id, 1), 0);
}

TEST_F(LostWriteBackTest, WhoComesNextIsToldWhatNoWriterWas) {
  RawClient& client = AddClient(1);
  RawClient& reader = AddClient(2);
  OpenWriter(client);
  vol0->sync_errors()->Note();
  client.Disconnect();
  world.RunFor(kNsPerSecond);
  ASSERT_TRUE(reader.Open(2, "b"));
  proto::OpenRsp opened;
  ASSERT_EQ(reader.OpenDevice("vol0", AccessMode::kReadOnly, &opened), 0);
  EXPECT_EQ(Flush(reader, opened.device_id.get(), 1), -EIO);
  for (const int error : {-EIO, 0}) {
    RawClient& next = AddClient(1);
    const std::uint32_t id = OpenWriter(next);
    EXPECT_EQ(Flush(next, id, 1), error);
    EXPECT_EQ(Flush(next, id, 1), 0);  // Its chunk comes again: the answer has been read.
    next.Disconnect();
    world.RunFor(kNsPerSecond);
  }
}

TEST_F(ServerTest, CloseIsAnsweredWhenNothingExecutesAnyMore) {
  RawClient& client = AddClient(1);
  const std::uint32_t id = OpenAndWriteHeld(client);
  ASSERT_EQ(vol0->executing_count(), 1u);
  proto::Close close;
  close.device_id = proto::le32(id);
  client.Write(0, 0, proto::AsBytes(close));
  world.RunFor(kNsPerMs);
  EXPECT_FALSE(client.responses.contains(0));
  vol0->Release();
  EXPECT_EQ(client.Await(3), 0);
  EXPECT_EQ(client.Await(0), 0);
}

TEST_F(ServerTest, ARevokedDeviceAnswersNotConnectedAndFreesTheExport) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  const std::uint32_t id = opened.device_id.get();
  server.server->Revoke(server.exports.at("vol0"));
  world.RunFor(kNsPerMs);
  EXPECT_EQ(Write(client, 1, 0, MakeIo(proto::IoOp::kWrite, id, 0, 512)), -ENOTCONN);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  EXPECT_EQ(vol0->queue_count(), 0u);
  // The id is not given to anything else for as long as there are others.
  ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  EXPECT_NE(opened.device_id.get(), id);
  EXPECT_EQ(client.CloseDevice(id), 0);
}

TEST_F(ServerTest, RevokedDevicesDoNotPileUp) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  for (int round = 0; round < 30; ++round) {
    proto::OpenRsp opened;
    ASSERT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0) << round;
    const std::uint32_t id = opened.device_id.get();
    EXPECT_LT(id, 8u);
    // Opened anew at once, too: while the old one is still being taken away.
    if (round % 2 == 0) vol0->HoldIos();
    client.Write(1, 3, proto::AsBytes(MakeIo(proto::IoOp::kWrite, id, 0, 512)),
                 std::vector<std::byte>(512));
    world.RunFor(kNsPerMs);
    server.server->Revoke(server.exports.at("vol0"));
    if (round % 2 == 0) {
      EXPECT_EQ(client.OpenDevice("vol0", AccessMode::kReadWrite, &opened), -EPERM);
      vol0->Release();
    }
    EXPECT_EQ(client.Await(3), 0);
    world.RunFor(kNsPerMs);
  }
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
}

TEST_F(ServerTest, AReturningClientWaitsForWhatExecutesOnItsOldPath) {
  RawClient& before = AddClient(1);
  OpenAndWriteHeld(before);
  ASSERT_EQ(vol0->executing_count(), 1u);
  RawClient& after = AddClient(1);
  after.request.recon_cnt = proto::le16(2);
  after.StartConnect(0, 2);
  world.RunFor(kNsPerSecond);
  EXPECT_TRUE(before.AwaitGone(kNsPerSecond));
  EXPECT_FALSE(after.links[0]->established);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 1u);
  EXPECT_GT(server.server->stats().chunk_memory, 0u);
  vol0->Release();
  EXPECT_TRUE(world.RunUntil([&] { return after.links[0]->established; }, kNsPerSecond))
      << after.links[0]->gone << after.links[0]->rejected << marks.count("server: fence lifted")
      << " executing " << vol0->executing_count() << " memory "
      << server.server->stats().chunk_memory;
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  EXPECT_EQ(marks.count("server: fence lifted"), 1u);
}

TEST_F(ServerTest, AReturningClientIsTurnedAwayWhenTheOldPathDoesNotEnd) {
  RawClient& before = AddClient(1);
  OpenAndWriteHeld(before);
  ASSERT_EQ(vol0->executing_count(), 1u);
  RawClient& after = AddClient(1);
  after.request.recon_cnt = proto::le16(2);
  after.StartConnect(0, 2);
  world.RunFor(6 * kNsPerSecond);
  vol0->Release();
  // The simulator's network gives up earlier than the server: either way it was not let in.
  EXPECT_FALSE(after.links[0]->established);
}

// The client was killed and started again: its name may arrive before the news of its death.
TEST_F(ServerTest, ANameThatIsFreedSoonIsWaitedFor) {
  RawClient& before = AddClient(1);
  ASSERT_TRUE(before.Open(2, "a"));
  RawClient& after = AddClient(2);
  ASSERT_TRUE(after.ConnectAll(2));
  after.SendInfo("a");
  world.RunFor(kNsPerSecond / 2);
  EXPECT_FALSE(after.AnyGone());
  EXPECT_FALSE(before.AnyGone());
  before.Disconnect();
  world.RunFor(kNsPerSecond);
  EXPECT_FALSE(after.AnyGone());
  EXPECT_EQ(server.server->stats().sessions, 1u);
  EXPECT_GT(marks.count("server: waited for a name"), 0u);
}

TEST_F(ServerTest, ASessionNameIsTakenOverOnlyFromADeadSession) {
  RawClient& first = AddClient(1);
  ASSERT_TRUE(first.Open(2, "host-a"));
  RawClient& second = AddClient(2);
  EXPECT_FALSE(second.Open(2, "host-a"));
  EXPECT_TRUE(second.AwaitGone());
  EXPECT_FALSE(first.AnyGone());
  first.Disconnect();
  world.RunFor(kNsPerSecond);
  RawClient& third = AddClient(3);
  EXPECT_TRUE(third.Open(2, "host-a"));
}

// The client was killed while a write of it executes, and started again: the new process hears
// nothing before that write has ended, although the server has not noticed the death.
TEST_F(ServerTest, ARestartedClientEndsItsOldSessionAndWaitsForWhatItExecutes) {
  RawClient& before = AddClient(1);
  before.client_id = 77;
  before.incarnation = 5;
  OpenAndWriteHeld(before);
  ASSERT_EQ(vol0->executing_count(), 1u);
  RawClient& after = AddClient(2);
  after.client_id = 77;
  after.incarnation = 5;  // The same second.
  ASSERT_TRUE(after.ConnectAll(2));
  after.SendInfo("a");
  world.RunFor(3 * kNsPerSecond);
  EXPECT_TRUE(before.AnyGone());
  EXPECT_FALSE(after.AnyGone());
  EXPECT_FALSE(after.info_received());
  vol0->Release();
  EXPECT_TRUE(world.RunUntil([&] { return after.info_received(); }, kNsPerSecond));
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  EXPECT_EQ(server.server->stats().sessions, 1u);
}

TEST_F(ServerTest, AnEarlierProcessAndAnotherClientDoNotEndASession) {
  RawClient& current = AddClient(1);
  current.client_id = 77;
  current.incarnation = 5;
  ASSERT_TRUE(current.Open(2, "a"));
  RawClient& earlier = AddClient(2);
  earlier.client_id = 77;
  earlier.incarnation = 4;
  EXPECT_FALSE(earlier.Open(2, "a"));
  RawClient& another = AddClient(3);
  another.client_id = 78;
  another.incarnation = 6;
  EXPECT_FALSE(another.Open(2, "a"));
  RawClient& kernel = AddClient(4);  // Its bytes there mean nothing.
  kernel.request.version = proto::le16(proto::kRtrsVersionKernel);
  kernel.client_id = 77;
  kernel.incarnation = 6;
  EXPECT_FALSE(kernel.Open(2, "a"));
  EXPECT_FALSE(current.AnyGone());
}

// Also for clients that do not say who they are: the network broke, what executes goes on.
TEST_F(ServerTest, ANameIsFreeOnlyWhenNothingOfItsSessionExecutes) {
  RawClient& before = AddClient(1);
  OpenAndWriteHeld(before);
  ASSERT_EQ(vol0->executing_count(), 1u);
  before.Disconnect();
  world.RunFor(kNsPerMs);
  RawClient& after = AddClient(2);
  ASSERT_TRUE(after.ConnectAll(2));
  after.SendInfo("a");
  world.RunFor(3 * kNsPerSecond);
  EXPECT_FALSE(after.AnyGone());
  EXPECT_FALSE(after.info_received());
  vol0->Release();
  EXPECT_TRUE(world.RunUntil([&] { return after.info_received(); }, kNsPerSecond));
}

TEST_F(ServerTest, ASecondPathOfASessionKnowsItsDevices) {
  RawClient& first = AddClient(1);
  ASSERT_TRUE(first.Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(first.OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  RawClient& second = AddClient(1);
  second.request.sess_uuid.fill(200);
  ASSERT_TRUE(second.Open(3, "a"));
  const std::uint32_t id = opened.device_id.get();
  EXPECT_EQ(Write(second, 2, 0, MakeIo(proto::IoOp::kWrite, id, 0, 512)), 0);
  first.Disconnect();
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 1u);
  EXPECT_EQ(Write(second, 1, 0, MakeIo(proto::IoOp::kWrite, id, 0, 512)), 0);
}

TEST_F(ServerTest, HeartbeatsAreAnsweredAndASilentClientIsDropped) {
  RawClient& client = AddClient(1);
  ASSERT_TRUE(client.Open(2, "a"));
  client.WriteImm(0, 0, 0, {}, proto::kImmHbMsg);
  ASSERT_TRUE(world.RunUntil([&] { return client.heartbeat_acks == 1; }, kNsPerSecond));
  // It says nothing from now on.
  EXPECT_TRUE(client.AwaitGone(45 * kNsPerSecond));
  EXPECT_EQ(client.heartbeats, 1u);
  EXPECT_EQ(marks.count("server: heartbeat timed out"), 1u);
}

TEST_F(ServerTest, ACrashedHostCanBeDismantledWithWhatItExecutes) {
  RawClient& client = AddClient(1);
  OpenAndWriteHeld(client);
  ASSERT_EQ(vol0->executing_count(), 1u);
  world.CrashHost(server.host);
  Prng prng(1);
  vol0->Crash(prng, 0);
  const std::byte after_crash = disk->current()[0];
  world.ThawCrashed(server.host);
  vol0->Release();
  EXPECT_TRUE(server.Stop());
  EXPECT_EQ(disk->current()[0], after_crash);
  EXPECT_FALSE(client.responses.contains(3));
}

TEST_F(ServerTest, StopGivesUpAtItsDeadlineAndLeavesTheMemoryBehind) {
  auto orphan = std::make_unique<sim::World>(5, sim::FaultPlan());
  // Nothing of this world is taken down in order: what still executes has to keep its memory.
  auto* fixture = new ServerFixture(*orphan, MakeOptions());
  FakeBackend& backend = fixture->exports.Add("vol0", disk);
  auto* client = new RawClient(*orphan, orphan->AddHost("client"), fixture->address, 1);
  ASSERT_TRUE(client->Open(2, "a"));
  proto::OpenRsp opened;
  ASSERT_EQ(client->OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
  backend.HoldIos();
  const proto::Io io = MakeIo(proto::IoOp::kWrite, opened.device_id.get(), 0, 512);
  client->Write(1, 3, proto::AsBytes(io), std::vector<std::byte>(512));
  orphan->RunFor(kNsPerMs);
  const std::int64_t started_ns = orphan->now_ns();
  bool done = false;
  fixture->server->Stop(kNsPerSecond, [&done] { done = true; });
  EXPECT_TRUE(orphan->RunUntil([&done] { return done; }, 2 * kNsPerSecond));
  EXPECT_LE(orphan->now_ns() - started_ns, kNsPerSecond + kNsPerMs);
  EXPECT_TRUE(client->AnyGone());
  // The IO ends after all: nothing bad happens, and the server can go.
  backend.Release();
  orphan->RunFor(kNsPerSecond);
  fixture->server.reset();
  delete client;
  delete fixture;
}

}  // namespace
}  // namespace ibnbd::rnbd
