// SPDX-License-Identifier: Apache-2.0
// The client against servers that are not ours: kernel-like ones, which it must serve well, and
// hostile ones, which may cost it the path and nothing else.
#include <cerrno>
#include <cstring>

#include "gmock/gmock.h"
#include "tests/support/client_world.h"
#include "tests/support/scripted_server.h"

namespace ibnbd::rnbd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Request = ScriptedServer::Request;

constexpr std::uint32_t kWriteOp = 1, kFlushOp = 2;

class HostileTest : public ::testing::Test {
 protected:
  void TearDown() override { EXPECT_THAT(world_.violations(), ::testing::IsEmpty()); }
  Device* StartAndOpen() {
    const absl::Status status = client_.Start(server_.address());
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return nullptr;
    const auto device = client_.Open("vol0");
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *device : nullptr;
  }
  static bool IsIo(const Request& request) {
    proto::RnbdType type{};
    return proto::DecodeType(request.rtrs.user_message(), &type) == nullptr &&
           type == proto::RnbdType::kIo;
  }
  // Runs one IO whose first attempt is dealt with by `deed`; it must break the path, and the second
  // attempt, on the next one, must succeed.
  void ExpectBreaks(IoOp op, const std::string& why, std::function<void(const Request&)> deed) {
    Device* device = StartAndOpen();
    ASSERT_NE(device, nullptr);
    bool done = false;
    server_.on_request = [&](const Request& request) {
      if (done || !IsIo(request)) return false;
      done = true;
      deed(request);
      return true;
    };
    const auto io = client_.Make(op, 0, op == IoOp::kFlush ? 0 : 4096);
    ASSERT_EQ(device->queue(0).Submit(*io), 0);
    EXPECT_TRUE(
        world_.RunUntil([&] { return device->state() == DeviceState::kHeld; }, 10 * kNsPerSecond));
    EXPECT_THAT(device->state_reason(), HasSubstr(why));
    EXPECT_TRUE(world_.RunUntil([&] { return io->done_count > 0; }, 10 * kNsPerSecond));
    EXPECT_EQ(io->result, 0);
    world_.RunFor(kNsPerSecond);
    EXPECT_EQ(io->done_count, 1);
    EXPECT_EQ(client_.client().session().stats().reconnects, 1u);
    server_.on_request = nullptr;
  }
  static std::uint32_t Response(std::uint32_t msg_id, int error = 0) {
    return proto::PackIoRsp(proto::ImmType::kIoRsp, {.msg_id = msg_id, .error = error});
  }

  sim::World world_{1, sim::FaultPlan{}};
  sim::Host& server_host_ = world_.AddHost("server");
  ScriptedServer server_{world_, server_host_};
  ClientNode client_{world_, "client"};
};

TEST_F(HostileTest, AKernelServerIsServed) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 64 << 10)), 0);
  const auto read = client_.Make(IoOp::kRead, 0, 64 << 10);
  EXPECT_EQ(client_.Run(*device, *read, 1), 0);
  for (const std::byte byte : read->data) ASSERT_EQ(byte, std::byte{0x5a});
}

TEST_F(HostileTest, AKernelServerThatIsSilentIsGivenUpAsItsOwnClientDoes) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  world_.StallHost(server_host_, 100 * kNsPerSecond);
  const std::int64_t start_ns = world_.now_ns();
  EXPECT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kHeld; }, 60 * kNsPerSecond));
  EXPECT_GE(world_.now_ns() - start_ns, 29 * kNsPerSecond);
  EXPECT_LE(world_.now_ns() - start_ns, 35 * kNsPerSecond + kNsPerMs);
  world_.HealEverything();
}

TEST_F(HostileTest, AKernelServerThatHandsOutNewRkeysIsServed) {
  server_.offer.flags = proto::le32(proto::kConnRspNewRkey);
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 64 << 10)), 0);
    EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 0, 64 << 10)), 0);
  }
  EXPECT_EQ(client_.client().session().stats().reconnects, 0u);
}

TEST_F(HostileTest, APreflushForAPeerWithoutTheFlagIsAFlushBefore) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  write->preflush = true;
  EXPECT_EQ(client_.Run(*device, *write), 0);
  ASSERT_EQ(server_.io_rws.size(), 2u);
  EXPECT_EQ(server_.io_rws[0] & proto::kIoOpMask, kFlushOp);
  EXPECT_EQ(server_.io_rws[1], kWriteOp | proto::kIoSync);
}

TEST_F(HostileTest, FuaForADeviceWithoutItIsAFlushBehind) {
  server_.open_rsp.cache_policy = proto::kCacheWriteback;
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  write->fua = true;
  EXPECT_EQ(client_.Run(*device, *write), 0);
  ASSERT_EQ(server_.io_rws.size(), 2u);
  EXPECT_EQ(server_.io_rws[0], kWriteOp | proto::kIoSync);
  EXPECT_EQ(server_.io_rws[1] & proto::kIoOpMask, kFlushOp);
}

TEST_F(HostileTest, AKernelServerCannotList) {
  ASSERT_TRUE(client_.Start(server_.address()).ok());
  absl::Status status;
  client_.client().ListExports([&](auto result) { status = result.status(); });
  world_.RunFor(kNsPerMs);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
}

TEST_F(HostileTest, ADeviceThatTheServerClosedIsOpenedAgain) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  int refused = 0;
  server_.on_request = [&](const Request& request) {
    if (!IsIo(request) || refused == 3) return false;
    ++refused;
    server_.open_rsp.device_id = proto::le32(7);
    server_.Reply(request, -ENOTCONN);
    return true;
  };
  std::vector<std::unique_ptr<TestIo>> ios;
  for (int i = 0; i < 3; ++i) {
    ios.push_back(client_.Make(IoOp::kWrite, 0, 512));
    ASSERT_EQ(device->queue(0).Submit(*ios.back()), 0);
  }
  EXPECT_TRUE(world_.RunUntil([&] { return ios.back()->done_count > 0; }, 10 * kNsPerSecond));
  for (const auto& io : ios) EXPECT_EQ(io->result, 0);
  EXPECT_EQ(client_.client().session().stats().reconnects, 0u);
  server_.on_request = nullptr;
}

TEST_F(HostileTest, AReasonOfARejectArrives) {
  server_.reject_with = -EBUSY;
  const absl::Status status = client_.Start(server_.address());
  EXPECT_THAT(std::string(status.message()), HasSubstr("the server refused"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("busy"));
}

TEST_F(HostileTest, AnotherProtocolIsRefusedForGood) {
  server_.offer.version = proto::le16(0x0300);
  const absl::Status status = client_.Start(server_.address(), true);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad major version"));
  EXPECT_TRUE(client_.client().closed());
}

TEST_F(HostileTest, AQueueThatIsTooShortIsRefused) {
  server_.offer.queue_depth = proto::le16(2);
  const absl::Status status = client_.Start(server_.address());
  EXPECT_THAT(std::string(status.message()), HasSubstr("queue depth 2 is too small"));
}

TEST_F(HostileTest, ChunksThatDoNotAddUpAreRefused) {
  server_.info[0].len = proto::le32(ScriptedServer::kChunkSize);
  const absl::Status status = client_.Start(server_.address());
  EXPECT_THAT(std::string(status.message()), HasSubstr("too few chunks"));
}

TEST_F(HostileTest, NoInfoAtAllEndsTheRoundInTime) {
  server_.on_info = [](ScriptedServer::Conn&) { return true; };
  const absl::Status status = client_.Start(server_.address());
  EXPECT_THAT(std::string(status.message()), HasSubstr("no INFO_RSP in time"));
}

TEST_F(HostileTest, AnImmediateInsteadOfInfoBreaksTheRound) {
  server_.on_info = [](ScriptedServer::Conn& conn) {
    conn.Post(fabric::Opcode::kWriteImm, Response(0), {});
    return true;
  };
  const absl::Status status = client_.Start(server_.address());
  EXPECT_THAT(std::string(status.message()), HasSubstr("instead of INFO_RSP"));
}

TEST_F(HostileTest, AMalformedAnswerToOpenResetsThePath) {
  server_.open_rsp.logical_block_size = proto::le16(1000);
  ASSERT_TRUE(client_.Start(server_.address()).ok());
  bool answered = false;
  client_.client().OpenDevice("vol0", AccessMode::kReadWrite, {},
                              [&](const auto&) { answered = true; });
  world_.RunFor(20 * kNsPerMs);
  EXPECT_FALSE(answered);
  EXPECT_FALSE(client_.client().session().up());
  server_.open_rsp.logical_block_size = proto::le16(512);
  EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 10 * kNsPerSecond));
}

TEST_F(HostileTest, AResponseForAChunkOfAnotherConnectionBreaksThePath) {
  ExpectBreaks(IoOp::kWrite, "another connection", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kWriteImm, Response(0), {});
  });
}

TEST_F(HostileTest, AResponseForNoChunkAtAllBreaksThePath) {
  ExpectBreaks(IoOp::kRead, "another connection", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kWriteImm, Response((1u << 19) - 1), {});
  });
}

TEST_F(HostileTest, ASecondResponseBreaksThePath) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  server_.on_request = [&](const Request& request) {
    if (!IsIo(request)) return false;
    server_.Reply(request, 0);
    server_.Reply(request, 0);
    return true;
  };
  const auto io = client_.Make(IoOp::kWrite, 0, 4096);
  EXPECT_EQ(client_.Run(*device, *io), 0);
  world_.RunFor(20 * kNsPerMs);
  EXPECT_EQ(io->done_count, 1);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_THAT(device->state_reason(), HasSubstr("a response without a request"));
  server_.on_request = nullptr;
}

TEST_F(HostileTest, ResponsesBySendBreakThePath) {
  ExpectBreaks(IoOp::kWrite, "a response by a send", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kSendImm, Response(request.mem_id), {});
  });
}

TEST_F(HostileTest, AMessageWithoutAnImmediateBreaksThePath) {
  ExpectBreaks(IoOp::kWrite, "without an immediate", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kSend, 0, std::array<std::byte, 8>{});
  });
}

TEST_F(HostileTest, AMessageLongerThanAReceiveBreaksThePathAndTouchesNothing) {
  ExpectBreaks(IoOp::kWrite, "connection 1", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kSend, 0, std::array<std::byte, 512>{});
  });
}

TEST_F(HostileTest, AClaimedInvalidationBreaksThePath) {
  ExpectBreaks(IoOp::kRead, "claims an invalidation", [](const Request& request) {
    request.conn->Post(
        fabric::Opcode::kWriteImm,
        proto::PackIoRsp(proto::ImmType::kIoRspInvalidated, {.msg_id = request.mem_id}), {});
  });
}

TEST_F(HostileTest, AReadThatIsShorterThanAskedBreaksThePath) {
  ExpectBreaks(IoOp::kRead, "a read of another size", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kWriteImm, Response(request.mem_id),
                       std::array<std::byte, 512>{},
                       {request.rtrs.desc_addr, request.rtrs.desc_key});
  });
}

TEST_F(HostileTest, WritingBesideTheBufferBreaksThePath) {
  ExpectBreaks(IoOp::kRead, "connection 1", [](const Request& request) {
    request.conn->Post(fabric::Opcode::kWriteImm, Response(request.mem_id),
                       std::array<std::byte, 4096>{},
                       {request.rtrs.desc_addr + (4 << 20) - 512, request.rtrs.desc_key});
  });
}

TEST_F(HostileTest, UnknownImmediatesAndHeartbeatsOnLanesAreIgnored) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  server_.on_request = [&](const Request& request) {
    for (int i = 0; i < 5; ++i) {
      request.conn->Post(fabric::Opcode::kWriteImm, 0x30000000u, {});
      request.conn->Post(fabric::Opcode::kWriteImm, proto::kImmHbMsg, {});
    }
    return false;
  };
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096)), 0);
  EXPECT_EQ(client_.client().session().stats().reconnects, 0u);
  server_.on_request = nullptr;
}

TEST_F(HostileTest, AServerThatLivesButNeverAnswersOpenIsGivenUp) {
  ASSERT_TRUE(client_.Start(server_.address()).ok());
  bool swallow = true, answered = false;
  server_.on_request = [&](const Request& request) {
    proto::RnbdType type{};
    return proto::DecodeType(request.rtrs.user_message(), &type) == nullptr &&
           type == proto::RnbdType::kOpen && std::exchange(swallow, false);
  };
  client_.client().OpenDevice("vol0", AccessMode::kReadWrite, {},
                              [&](const auto& result) { answered = result.ok(); });
  EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 60 * kNsPerSecond));
  EXPECT_EQ(client_.client().session().stats().reconnects, 1u);
  server_.on_request = nullptr;
}

TEST_F(HostileTest, ALaneThatNobodyPollsHoldsUpNeitherCloseNorTheOtherLane) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  world_.StallReactor(client_.lane_reactor(1), 20 * kNsPerSecond);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096), 0), 0);
  EXPECT_LT(client_.CloseDevice(device, 5 * kNsPerSecond), kNsPerSecond);
}

}  // namespace
}  // namespace ibnbd::rnbd
