// SPDX-License-Identifier: Apache-2.0
// Golden bytes and round trips of RTRS.  What decoders refuse is tested in reasons_test.cc.
#include "proto/rtrs.h"

#include <gtest/gtest.h>

#include <string_view>

#include "proto/golden.h"

namespace ibnbd::proto {
namespace {

Uuid UuidOf(std::uint8_t byte) {
  Uuid uuid;
  uuid.fill(byte);
  uuid[6] = byte == 0x11 ? 0x41 : 0x42;
  uuid[8] = byte == 0x11 ? 0x81 : 0x82;
  return uuid;
}

TEST(Rtrs, ConnReqMatchesTheCapture) {
  const ConnReq request{.version = le16(kRtrsVersionKernel),
                        .cid = le16(0),
                        .cid_num = le16(5),
                        .recon_cnt = le16(1),
                        .sess_uuid = UuidOf(0x11),
                        .paths_uuid = UuidOf(0x22),
                        .flags = kConnReqFirstConn};
  EXPECT_EQ(ToBytes(AsBytes(request)), Golden("conn_req_cid0"));
  ConnReq decoded;
  ASSERT_STREQ(DecodeConnReq(Golden("conn_req_cid0"), &decoded), nullptr);
  EXPECT_EQ(decoded.cid_num.get(), 5);
  EXPECT_EQ(decoded.recon_cnt.get(), 1);
  EXPECT_EQ(decoded.sess_uuid, UuidOf(0x11));
  EXPECT_EQ(decoded.paths_uuid, UuidOf(0x22));
  EXPECT_TRUE(decoded.first_conn());
  EXPECT_EQ(decoded.minor(), kRtrsMinorKernel);
}

TEST(Rtrs, OurMinorVersionChangesOneByteOfTheConnReq) {
  ConnReq request{.cid_num = le16(5), .recon_cnt = le16(1)};
  request.sess_uuid = UuidOf(0x11);
  request.paths_uuid = UuidOf(0x22);
  request.flags = kConnReqFirstConn;
  Bytes expected = Golden("conn_req_cid0");
  expected[4] = std::byte{kRtrsMinor};
  EXPECT_EQ(ToBytes(AsBytes(request)), expected);
  ConnReq decoded;
  ASSERT_STREQ(DecodeConnReq(expected, &decoded), nullptr);
  EXPECT_EQ(decoded.minor(), kRtrsMinor);
}

TEST(Rtrs, PaddedPrivateDataIsAccepted) {
  // InfiniBand hands 196 bytes to the active side, whatever was sent.
  Bytes padded = Golden("conn_rsp_kernel");
  padded.resize(196);
  ConnRsp decoded;
  EXPECT_STREQ(DecodeConnRsp(padded, &decoded), nullptr);
}

TEST(Rtrs, AcceptOfTheKernelServerMatchesTheCapture) {
  const ConnRsp accept{.version = le16(kRtrsVersionKernel),
                       .queue_depth = le16(512),
                       .max_io_size = le32(126976),
                       .max_hdr_size = le32(4096),
                       .flags = le32(kConnRspNewRkey)};
  EXPECT_EQ(ToBytes(AsBytes(accept)), Golden("conn_rsp_kernel"));
  ConnRsp decoded;
  ASSERT_STREQ(DecodeConnRsp(Golden("conn_rsp_kernel"), &decoded), nullptr);
  EXPECT_EQ(ConnRspError(decoded), 0);
  EXPECT_EQ(decoded.queue_depth.get(), 512);
  EXPECT_EQ(decoded.chunk_size(), 131072u);
  EXPECT_TRUE(decoded.new_rkey());
}

TEST(Rtrs, AcceptOfAUserSpaceServerGrantsTrue128KiB) {
  const ConnRsp accept{.version = le16(kRtrsVersionKernel),
                       .queue_depth = le16(kDefaultQueueDepth),
                       .max_io_size = le32(kDefaultIoSizeMax),
                       .max_hdr_size = le32(kDefaultHdrSizeMax)};
  EXPECT_EQ(ToBytes(AsBytes(accept)), Golden("conn_rsp_user"));
  ConnRsp decoded;
  ASSERT_STREQ(DecodeConnRsp(Golden("conn_rsp_user"), &decoded), nullptr);
  EXPECT_EQ(decoded.chunk_size(), 135168u);
  EXPECT_FALSE(decoded.new_rkey());
}

TEST(Rtrs, RejectsMatchTheCaptureAndSayWhy) {
  for (const auto& [name, error] : {std::pair("conn_rsp_reject_enxio", -ENXIO),
                                    std::pair("conn_rsp_reject_econnreset", -ECONNRESET)}) {
    ConnRsp reject = MakeConnReject(error);
    reject.version = le16(kRtrsVersionKernel);
    EXPECT_EQ(ToBytes(AsBytes(reject)), Golden(name));
    ConnRsp decoded;
    ASSERT_STREQ(DecodeConnRsp(Golden(name), &decoded), nullptr);
    EXPECT_EQ(ConnRspError(decoded), error);
  }
}

TEST(Rtrs, ARejectWithAnUnknownErrorIsStillAReject) {
  const ConnRsp reject{.error = le16(0x8000)};
  EXPECT_EQ(ConnRspError(reject), -EIO);
}

TEST(Rtrs, InfoReqMatchesTheCapture) {
  InfoReq request;
  ASSERT_TRUE(SetName(&request.name, "host-a"));
  EXPECT_EQ(ToBytes(AsBytes(request)), Golden("info_req"));
  InfoReq decoded;
  ASSERT_STREQ(DecodeInfoReq(Golden("info_req"), &decoded), nullptr);
  EXPECT_EQ(NameOf(decoded.name), "host-a");
}

TEST(Rtrs, ASessionNameMayFillItsField) {
  InfoReq request;
  ASSERT_TRUE(SetName(&request.name, std::string(kSessionNameMax, 'n')));
  InfoReq decoded;
  EXPECT_STREQ(DecodeInfoReq(AsBytes(request), &decoded), nullptr);
  EXPECT_EQ(NameOf(decoded.name).size(), kSessionNameMax);
}

TEST(Rtrs, InfoRspWithOneDescriptorPlacesAllChunks) {
  const SgDesc desc{.addr = le64(0x7f3ed98c2000), .key = le32(0x195a0), .len = le32(69206016)};
  Bytes encoded(100);
  encoded.resize(EncodeInfoRsp(encoded, {&desc, 1}));
  EXPECT_EQ(encoded, Golden("info_rsp"));
  std::vector<ChunkAddress> chunks(512);
  ASSERT_STREQ(DecodeInfoRsp(Golden("info_rsp"), 0x21000, chunks), nullptr);
  EXPECT_EQ(chunks[0].addr, 0x7f3ed98c2000u);
  EXPECT_EQ(chunks[3].addr, 0x7f3ed9925000u);
  EXPECT_EQ(chunks[5].addr + 4096, 0x7f3ed9968000u);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    ASSERT_EQ(chunks[i].addr, 0x7f3ed98c2000u + i * 0x21000);
    ASSERT_EQ(chunks[i].rkey, 0x195a0u);
  }
}

TEST(Rtrs, InfoRspWithADescriptorForEachChunkKeepsTheirOrder) {
  std::vector<SgDesc> descs(512);
  for (std::uint32_t i = 0; i < descs.size(); ++i) {
    descs[i] = {.addr = le64(0x10000000ull - i * 0x40000), .key = le32(i), .len = le32(0x20000)};
  }
  Bytes encoded(InfoRspSizeMax(512));
  ASSERT_EQ(EncodeInfoRsp(encoded, descs), 8200u);
  std::vector<ChunkAddress> chunks(512);
  ASSERT_STREQ(DecodeInfoRsp(encoded, 0x20000, chunks), nullptr);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    ASSERT_EQ(chunks[i].addr, descs[i].addr.get());
    ASSERT_EQ(chunks[i].rkey, i);
  }
}

TEST(Rtrs, InfoRspThatDoesNotFitIsNotEncoded) {
  const SgDesc desc{.addr = le64(0), .key = le32(1), .len = le32(8192)};
  Bytes encoded(23);
  EXPECT_EQ(EncodeInfoRsp(encoded, {&desc, 1}), 0u);
  EXPECT_EQ(EncodeInfoRsp(encoded, {}), 0u);
}

// A chunk as the capture's client would have filled it.
Bytes ChunkWith(std::size_t offset, const Bytes& request) {
  Bytes chunk(0x21000, std::byte{0xdd});
  std::copy(request.begin(), request.end(), chunk.begin() + static_cast<std::ptrdiff_t>(offset));
  return chunk;
}

constexpr IoRequestLimits kLimits{.max_io_size = 131072};

TEST(Rtrs, WriteRequestMatchesTheExample) {
  const Bytes golden = Golden("write_request");
  const Bytes user(golden.begin(), golden.begin() + 32);
  Bytes encoded(64);
  encoded.resize(EncodeWriteRequest(encoded, user));
  EXPECT_EQ(encoded, golden);
  IoRequest request;
  ASSERT_STREQ(DecodeIoRequest(ChunkWith(4096, golden), 0x1020, kLimits, &request), nullptr);
  EXPECT_FALSE(request.is_read);
  EXPECT_EQ(request.data_len, 4096u);
  EXPECT_EQ(ToBytes(request.user_message()), user);
  EXPECT_FALSE(request.has_desc);
  EXPECT_FALSE(request.need_inval);
}

TEST(Rtrs, ReadRequestMatchesTheExample) {
  const Bytes golden = Golden("read_request");
  const Bytes user(golden.begin(), golden.begin() + 32);
  const SgDesc desc{.addr = le64(0xff110000063a8000), .key = le32(0x115a4), .len = le32(4096)};
  Bytes encoded(64);
  encoded.resize(EncodeReadRequest(encoded, user, &desc, true));
  EXPECT_EQ(encoded, golden);
  IoRequest request;
  ASSERT_STREQ(DecodeIoRequest(ChunkWith(4096, golden), 0x1020, kLimits, &request), nullptr);
  EXPECT_TRUE(request.is_read);
  EXPECT_EQ(request.data_len, 4096u);
  EXPECT_EQ(ToBytes(request.user_message()), user);
  EXPECT_TRUE(request.has_desc);
  EXPECT_TRUE(request.need_inval);
  EXPECT_EQ(request.desc_addr, 0xff110000063a8000u);
  EXPECT_EQ(request.desc_key, 0x115a4u);
}

TEST(Rtrs, RequestsWithoutDataStartAtTheChunk) {
  IoRequest request;
  ASSERT_STREQ(DecodeIoRequest(ChunkWith(0, Golden("flush_request")), 32, kLimits, &request),
               nullptr);
  EXPECT_TRUE(request.is_read);
  EXPECT_FALSE(request.has_desc);
  EXPECT_EQ(request.data_len, 0u);
  const Bytes flush = Golden("flush_request");
  Bytes encoded(64);
  encoded.resize(EncodeReadRequest(encoded, std::span(flush).first(32), nullptr, true));
  EXPECT_EQ(encoded, flush);
  ASSERT_STREQ(DecodeIoRequest(ChunkWith(0, Golden("discard_request")), 32, kLimits, &request),
               nullptr);
  EXPECT_FALSE(request.is_read);
  EXPECT_EQ(request.usr_len, 32);
}

TEST(Rtrs, TheLongestUserMessageFits) {
  const Bytes golden = Golden("open_request");
  ASSERT_EQ(golden.size(), kRequestTailMax);
  IoRequest request;
  ASSERT_STREQ(DecodeIoRequest(ChunkWith(56, golden), 320, kLimits, &request), nullptr);
  EXPECT_EQ(request.usr_len, kUserMessageMax);
  EXPECT_EQ(request.data_len, 56u);
  EXPECT_EQ(ToBytes(request.user_message()), Bytes(golden.begin(), golden.begin() + 264));
}

TEST(Rtrs, AHeaderMayEndWhereTheChunkEnds) {
  Bytes chunk(4096 + 32 + 4);
  const Bytes golden = Golden("write_request");
  std::copy(golden.begin(), golden.end(), chunk.end() - 36);
  IoRequest request;
  EXPECT_STREQ(DecodeIoRequest(chunk, 4096 + 32, kLimits, &request), nullptr);
}

TEST(Rtrs, NothingOfARequestIsReadFromTheChunkAfterwards) {
  Bytes chunk = ChunkWith(4096, Golden("read_request"));
  IoRequest request;
  ASSERT_STREQ(DecodeIoRequest(chunk, 0x1020, kLimits, &request), nullptr);
  const Bytes before = ToBytes(request.user_message());
  std::fill(chunk.begin(), chunk.end(), std::byte{0xff});
  EXPECT_EQ(ToBytes(request.user_message()), before);
  EXPECT_EQ(request.desc_key, 0x115a4u);
}

TEST(Rtrs, RequestsThatDoNotFitAreNotEncoded) {
  const Bytes user(265);
  Bytes out(400);
  const SgDesc desc;
  EXPECT_EQ(EncodeWriteRequest(out, user), 0u);
  EXPECT_EQ(EncodeReadRequest(out, user, &desc), 0u);
  out.resize(55);
  EXPECT_EQ(EncodeReadRequest(out, std::span(user).first(32), &desc), 0u);
  EXPECT_NE(EncodeReadRequest(out, std::span(user).first(32), nullptr), 0u);
  out.resize(35);
  EXPECT_EQ(EncodeWriteRequest(out, std::span(user).first(32)), 0u);
}

TEST(Rtrs, RkeyRspMatchesTheExample) {
  const RkeyRsp response{.buf_id = le16(3), .rkey = le32(0x96e)};
  EXPECT_EQ(ToBytes(AsBytes(response)), Golden("rkey_rsp"));
  RkeyRsp decoded;
  ASSERT_STREQ(DecodeRkeyRsp(Golden("rkey_rsp"), 3, &decoded), nullptr);
  EXPECT_EQ(decoded.rkey.get(), 0x96eu);
}

}  // namespace
}  // namespace ibnbd::proto
