// SPDX-License-Identifier: Apache-2.0
// A session of the kernel's client with the kernel's server, recorded from the wire (see the head
// of testdata/recorded_kernel_*.txt), read by our codecs from both sides: every message is
// understood, means what it must at that point, and is written again to the same bytes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "proto/golden.h"
#include "proto/rnbd.h"
#include "proto/rnbd_codec.h"
#include "proto/rtrs.h"
#include "proto/rtrs_control.h"
#include "proto/rtrs_imm.h"
#include "proto/rtrs_io.h"

namespace ibnbd::proto {
namespace {

struct Message {
  bool to_server = false;
  std::uint32_t cid = 0;
  std::string what;
  std::uint64_t addr = 0;
  std::uint32_t rkey = 0, imm = 0, invalidate = 0;
  Bytes bytes;
};

Message Parse(const std::string& line) {
  Message message;
  std::istringstream words(line);
  std::string word;
  words >> word >> message.cid >> message.what;
  message.to_server = word == ">";
  while (words >> word) {
    const std::size_t equals = word.find('=');
    if (equals != std::string::npos) {
      const std::uint64_t value = std::strtoull(word.c_str() + equals + 1, nullptr, 16);
      const std::string key = word.substr(0, equals);
      if (key == "addr") message.addr = value;
      if (key == "rkey") message.rkey = static_cast<std::uint32_t>(value);
      if (key == "imm") message.imm = static_cast<std::uint32_t>(value);
      if (key == "invalidate") message.invalidate = static_cast<std::uint32_t>(value);
      continue;
    }
    const std::size_t star = word.find('*');
    const std::size_t times =
        star == std::string::npos ? 1 : std::strtoull(word.c_str() + star + 1, nullptr, 10);
    const std::string hex = word.substr(0, star);
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
      const auto byte = static_cast<std::byte>(std::strtoul(hex.substr(i, 2).c_str(), nullptr, 16));
      message.bytes.insert(message.bytes.end(), times, byte);
    }
  }
  return message;
}

// What both ends know at one point of the recording.
class Replay {
 public:
  void Take(const Message& message) {
    if (message.what == "conn_req") return OnConnReq(message);
    if (message.what == "conn_rsp") return OnConnRsp(message);
    if (message.what == "send") return message.to_server ? OnInfoReq(message) : OnInfoRsp(message);
    if (message.to_server) return OnRequest(message);
    if (message.what == "write") return OnData(message);
    if (message.what == "send_inv") return OnInvalidation(message);
    return OnAnswer(message);
  }

  std::set<IoOp> ops;
  std::uint32_t opened = 0, refused = 0, closed = 0, infos = 0, heartbeats = 0, acks = 0;
  std::uint32_t new_keys = 0, flushes_with_fua = 0;
  std::map<std::uint32_t, IoRequest> pending;  // By chunk.

 private:
  template <class T>
  void ExpectSameBytes(const T& value, const Message& message) {
    EXPECT_EQ(ToBytes(AsBytes(value)), message.bytes);
  }
  void OnConnReq(const Message& message) {
    ConnReq request;
    ASSERT_STREQ(DecodeConnReq(message.bytes, &request), nullptr);
    EXPECT_EQ(request.cid.get(), message.cid);
    EXPECT_EQ(request.cid_num.get(), 2);
    EXPECT_EQ(request.minor(), kRtrsMinorKernel);
    EXPECT_TRUE(request.first_conn());
    ExpectSameBytes(request, message);
  }
  void OnConnRsp(const Message& message) {
    ASSERT_STREQ(DecodeConnRsp(message.bytes, &offer_), nullptr);
    EXPECT_EQ(ConnRspError(offer_), 0);
    ExpectSameBytes(offer_, message);
  }
  void OnInfoReq(const Message& message) {
    InfoReq request;
    ASSERT_STREQ(DecodeInfoReq(message.bytes, &request), nullptr);
    EXPECT_EQ(NameOf(request.name), "one");
    ExpectSameBytes(request, message);
  }
  void OnInfoRsp(const Message& message) {
    chunks_.resize(offer_.queue_depth.get());
    ASSERT_STREQ(DecodeInfoRsp(message.bytes, offer_.chunk_size(), chunks_), nullptr);
    EXPECT_EQ(message.bytes.size() == InfoRspSizeMax(offer_.queue_depth.get()), offer_.new_rkey());
  }

  void OnRequest(const Message& message) {
    ASSERT_EQ(message.what, "write_imm");
    if (message.imm == kImmHbMsg) return void(++heartbeats);
    if (message.imm == kImmHbAck) return void(++acks);
    ASSERT_EQ(ImmTypeOf(message.imm), ImmType::kIoReq);
    const IoReqImmLayout layout(offer_.queue_depth.get());
    const IoReqImm fields = layout.Unpack(message.imm);
    EXPECT_EQ(layout.Pack(fields), message.imm);
    ASSERT_LT(fields.mem_id, chunks_.size());
    const ChunkAddress& chunk = chunks_[fields.mem_id];
    EXPECT_EQ(message.rkey, chunk.rkey) << "the key of the last answer";
    const std::size_t at = message.addr - chunk.addr;
    ASSERT_LE(at + message.bytes.size(), offer_.chunk_size());
    Bytes memory(offer_.chunk_size());
    std::copy(message.bytes.begin(), message.bytes.end(),
              memory.begin() + static_cast<std::ptrdiff_t>(at));
    IoRequest request;
    ASSERT_STREQ(DecodeIoRequest(memory, fields.off, {offer_.max_io_size.get()}, &request),
                 nullptr);
    ASSERT_TRUE(pending.emplace(fields.mem_id, request).second) << "the chunk is in use";
    const SgDesc desc{.addr = le64(request.desc_addr),
                      .key = le32(request.desc_key),
                      .len = le32(request.data_len)};
    Bytes tail(512);
    tail.resize(request.is_read
                    ? EncodeReadRequest(tail, request.user_message(),
                                        request.has_desc ? &desc : nullptr, request.need_inval)
                    : EncodeWriteRequest(tail, request.user_message()));
    const std::size_t data = request.is_read ? 0 : request.data_len;
    EXPECT_EQ(tail, Bytes(message.bytes.begin() + static_cast<std::ptrdiff_t>(data),
                          message.bytes.end()));
    EXPECT_EQ(at, request.is_read ? request.data_len : 0u);
    OnUserMessage(request, message.cid);
  }

  void OnUserMessage(const IoRequest& request, std::uint32_t cid) {
    RnbdType type{};
    ASSERT_STREQ(DecodeType(request.user_message(), &type), nullptr);
    EXPECT_EQ(cid == 0, type != RnbdType::kIo);
    if (type == RnbdType::kSessInfo) {
      SessInfo info;
      ASSERT_STREQ(DecodeSessInfo(request.user_message(), &info), nullptr);
      ++infos;
    } else if (type == RnbdType::kOpen) {
      Open open;
      ASSERT_STREQ(DecodeOpen(request.user_message(), &open), nullptr);
      EXPECT_EQ(NameOf(open.dev_name).substr(0, 5), "/dev/");
    } else if (type == RnbdType::kClose) {
      Close close;
      ASSERT_STREQ(DecodeClose(request.user_message(), &close), nullptr);
      ++closed;
    } else {
      Io io;
      ASSERT_STREQ(DecodeIo(request.user_message(), {request.data_len, request.is_read}, &io),
                   nullptr);
      const auto op = static_cast<IoOp>(io.rw.get() & kIoOpMask);
      ops.insert(op);
      if (op == IoOp::kFlush) {
        EXPECT_TRUE(request.is_read);
        EXPECT_EQ(io.sector.get(), kFlushSector);
        flushes_with_fua += (io.rw.get() & kIoFua) != 0 ? 1 : 0;
      }
    }
  }

  IoRequest* PendingAt(std::uint64_t addr) {
    for (auto& [id, request] : pending) {
      if (request.has_desc && request.desc_addr == addr) return &request;
    }
    return nullptr;
  }
  void OnData(const Message& message) {
    IoRequest* request = PendingAt(message.addr);
    ASSERT_NE(request, nullptr);
    EXPECT_EQ(message.rkey, request->desc_key);
    ASSERT_EQ(message.bytes.size(), request->data_len);
    RnbdType type{};
    ASSERT_STREQ(DecodeType(request->user_message(), &type), nullptr);
    if (type == RnbdType::kSessInfo) {
      SessInfo asked, answer;
      ASSERT_STREQ(DecodeSessInfo(request->user_message(), &asked), nullptr);
      ASSERT_STREQ(DecodeSessInfoRsp(message.bytes, &answer), nullptr);
      ExpectSameBytes(MakeSessInfoRsp(asked), message);
    } else if (type == RnbdType::kOpen) {
      OpenRsp response;
      ASSERT_STREQ(DecodeOpenRsp(message.bytes, &response), nullptr);
      EXPECT_EQ(response.nsectors.get(), 32768u);
      EXPECT_EQ(response.cache_policy & kCacheWriteback, kCacheWriteback);
      ExpectSameBytes(response, message);
      ++opened;
    }
  }
  void OnInvalidation(const Message& message) {
    EXPECT_TRUE(message.bytes.empty());
    bool asked = false;
    for (const auto& [id, request] : pending) {
      asked = asked || (request.need_inval && request.desc_key == message.invalidate);
    }
    EXPECT_TRUE(asked);
    invalidated_.insert(message.invalidate);
  }
  void OnAnswer(const Message& message) {
    if (message.imm == kImmHbMsg) return void(++heartbeats);
    if (message.imm == kImmHbAck) return void(++acks);
    const IoRspImm response = UnpackIoRsp(message.imm);
    const auto request = pending.find(response.msg_id);
    ASSERT_NE(request, pending.end()) << "an answer to nothing";
    EXPECT_EQ(PackIoRsp(ImmTypeOf(message.imm), response), message.imm);
    const bool invalidated = ImmTypeOf(message.imm) == ImmType::kIoRspInvalidated;
    EXPECT_EQ(invalidated, request->second.need_inval);
    if (invalidated) {
      EXPECT_EQ(invalidated_.erase(request->second.desc_key), 1u);
    }
    if (response.error != 0) {
      EXPECT_EQ(response.error, -ENOENT);
      ++refused;
    }
    EXPECT_EQ(message.what, offer_.new_rkey() ? "send_imm" : "write_imm");
    if (offer_.new_rkey()) {
      RkeyRsp rkey;
      ASSERT_STREQ(DecodeRkeyRsp(message.bytes, response.msg_id, &rkey), nullptr);
      ExpectSameBytes(rkey, message);
      new_keys += chunks_[response.msg_id].rkey != rkey.rkey.get() ? 1 : 0;
      chunks_[response.msg_id].rkey = rkey.rkey.get();
    } else {
      EXPECT_TRUE(message.bytes.empty());
    }
    pending.erase(request);
  }

  ConnRsp offer_;
  std::vector<ChunkAddress> chunks_;
  std::set<std::uint32_t> invalidated_;
};

void ReplayAll(const std::string& name, bool keys_per_io) {
  std::ifstream file(std::string(IBNBD_PROTO_DIR) + "/testdata/" + name);
  ASSERT_TRUE(file) << name;
  Replay replay;
  std::size_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.empty() || line[0] == '#') continue;
    SCOPED_TRACE(name + ":" + std::to_string(number) + ": " + line.substr(0, 60));
    replay.Take(Parse(line));
    if (::testing::Test::HasFatalFailure()) return;
  }
  EXPECT_TRUE(replay.pending.empty());
  EXPECT_EQ(replay.ops, (std::set<IoOp>{IoOp::kRead, IoOp::kWrite, IoOp::kFlush, IoOp::kDiscard,
                                        IoOp::kWriteZeroes}));
  EXPECT_EQ(replay.infos, 1u);
  EXPECT_EQ(replay.opened, 1u);
  EXPECT_EQ(replay.refused, 1u);
  EXPECT_EQ(replay.closed, 1u);
  EXPECT_GT(replay.heartbeats, 0u);
  EXPECT_GT(replay.acks, 0u);
  EXPECT_GT(replay.flushes_with_fua, 0u);
  EXPECT_EQ(replay.new_keys > 20, keys_per_io);
}

TEST(Recorded, TheKernelsClientAndServerWithKeysPerIo) {
  ReplayAll("recorded_kernel_invalidate_y.txt", true);
}

TEST(Recorded, TheKernelsClientAndServerWithAKeyPerPath) {
  ReplayAll("recorded_kernel_invalidate_n.txt", false);
}

}  // namespace
}  // namespace ibnbd::proto
