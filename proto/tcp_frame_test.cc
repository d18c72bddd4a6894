// SPDX-License-Identifier: Apache-2.0
#include "proto/tcp_frame.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "proto/golden.h"

namespace ibnbd::proto::tcp {
namespace {

FrameHeader GoodHeader() {
  FrameHeader header;
  header.opcode = FrameOpcode::kWriteImm;
  header.flags = kAckWanted | kAckNow;
  header.magic = le16(kFrameMagic);
  header.length = le32(4096);
  header.imm = le32(0x01020304);
  header.rkey = le32(0x8badf00d);
  header.addr = le64(0x7fccbbaa1000);
  header.ack_count = le32(7);
  header.sequence = le32(42);
  return header;
}

TEST(TcpFrame, AGreetingHasTheGoldenBytes) {
  const Greeting greeting = MakeGreeting(GreetingKind::kConnect, 3);
  EXPECT_EQ(Concat(ToBytes(AsBytes(greeting)), std::as_bytes(std::span("abc", 3))),
            Golden("tcp_greeting_connect"));
  EXPECT_EQ(WhyInvalid(greeting), nullptr);
}

TEST(TcpFrame, AHeaderHasTheGoldenBytes) {
  const FrameHeader header = GoodHeader();
  EXPECT_EQ(ToBytes(AsBytes(header)), Golden("tcp_frame_write_imm"));
  EXPECT_EQ(WhyInvalid(header, 42), nullptr);
}

TEST(TcpFrame, EveryMalformedGreetingHasItsReason) {
  const struct {
    std::function<void(Greeting&)> spoil;
    const char* reason;
  } cases[] = {
      {[](Greeting& g) { g.magic[7] = 'P'; }, "greeting: not the magic of ibnbd's tcp fabric"},
      {[](Greeting& g) { g.version = le16(2); }, "greeting: unknown version"},
      {[](Greeting& g) { g.kind = GreetingKind{0}; }, "greeting: unknown kind"},
      {[](Greeting& g) { g.kind = GreetingKind{4}; }, "greeting: unknown kind"},
      {[](Greeting& g) { g.private_data_size = le16(257); },
       "greeting: more than 256 bytes of private data"},
  };
  for (const auto& test : cases) {
    Greeting greeting = MakeGreeting(GreetingKind::kAccept, 256);
    ASSERT_EQ(WhyInvalid(greeting), nullptr);
    test.spoil(greeting);
    EXPECT_STREQ(WhyInvalid(greeting), test.reason);
  }
}

TEST(TcpFrame, EveryMalformedHeaderHasItsReason) {
  const struct {
    std::function<void(FrameHeader&)> spoil;
    const char* reason;
  } cases[] = {
      {[](FrameHeader& h) { h.magic = le16(0); }, "frame: bad magic, the stream lost its place"},
      {[](FrameHeader& h) { h.opcode = FrameOpcode{0}; }, "frame: unknown opcode"},
      {[](FrameHeader& h) { h.opcode = FrameOpcode{6}; }, "frame: unknown opcode"},
      {[](FrameHeader& h) { h.flags = 4; }, "frame: unknown flags"},
      {[](FrameHeader& h) { h.sequence = le32(41); }, "frame: wrong sequence number"},
      {[](FrameHeader& h) { h.opcode = FrameOpcode::kAck; },
       "frame: a control frame with a payload or flags"},
      {[](FrameHeader& h) { h.opcode = FrameOpcode::kWrite; },
       "frame: an immediate where none belongs"},
      {[](FrameHeader& h) { h.opcode = FrameOpcode::kSendImm; },
       "frame: an rkey where none belongs"},
      {[](FrameHeader& h) {
         h.opcode = FrameOpcode::kSendImm;
         h.rkey = le32(0);
       },
       "frame: an address where none belongs"},
  };
  for (const auto& test : cases) {
    FrameHeader header = GoodHeader();
    test.spoil(header);
    EXPECT_STREQ(WhyInvalid(header, 42), test.reason);
  }
}

TEST(TcpFrame, OpcodesKnowWhatTheyCarry) {
  EXPECT_FALSE(ConsumesReceive(FrameOpcode::kWrite));
  EXPECT_FALSE(ConsumesReceive(FrameOpcode::kAck));
  for (const FrameOpcode opcode : {FrameOpcode::kSend, FrameOpcode::kSendImm,
                                   FrameOpcode::kSendInvalidate, FrameOpcode::kWriteImm}) {
    EXPECT_TRUE(ConsumesReceive(opcode));
    EXPECT_TRUE(IsData(opcode));
  }
  EXPECT_FALSE(IsData(FrameOpcode::kRefuse));
}

}  // namespace
}  // namespace ibnbd::proto::tcp
