// SPDX-License-Identifier: Apache-2.0
// Golden bytes and round trips of RNBD.  What decoders refuse is tested in reasons_test.cc.
#include "proto/rnbd.h"

#include <gtest/gtest.h>

#include "proto/golden.h"
#include "proto/rtrs.h"

namespace ibnbd::proto {
namespace {

// The whole request as a client encodes it.
template <typename T>
Bytes WriteOf(const T& message) {
  Bytes out(kRequestTailMax);
  out.resize(EncodeWriteRequest(out, AsBytes(message)));
  return out;
}
template <typename T>
Bytes ReadOf(const T& message, const SgDesc* desc) {
  Bytes out(kRequestTailMax);
  out.resize(EncodeReadRequest(out, AsBytes(message), desc, true));
  return out;
}
Io IoOf(std::uint32_t device_id, std::uint64_t sector, std::uint32_t rw, std::uint32_t bi_size,
        std::uint16_t prio = 0) {
  return {.device_id = le32(device_id),
          .sector = le64(sector),
          .rw = le32(rw),
          .bi_size = le32(bi_size),
          .prio = le16(prio)};
}

TEST(Rnbd, SessInfoMatchesTheExample) {
  const SgDesc desc{
      .addr = le64(0xff11000006c00000), .key = le32(0x115a4), .len = le32(sizeof(SessInfo))};
  EXPECT_EQ(ReadOf(SessInfo{}, &desc), Golden("sess_info_request"));
  SessInfo decoded;
  ASSERT_STREQ(DecodeSessInfo(Golden("sess_info_request"), &decoded), nullptr);
  EXPECT_EQ(ToBytes(AsBytes(MakeSessInfoRsp(decoded))), Golden("sess_info_rsp"));
  EXPECT_STREQ(DecodeSessInfoRsp(Golden("sess_info_rsp"), &decoded), nullptr);
}

TEST(Rnbd, TheInstanceOfTheServerStandsInTheAnswerAndIsZeroFromAKernel) {
  InstanceId id{};
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::uint8_t>(0x10 + i);
  EXPECT_EQ(ToBytes(AsBytes(MakeSessInfoRsp({}, id))), Golden("sess_info_rsp_instance"));
  SessInfo decoded;
  ASSERT_STREQ(DecodeSessInfoRsp(Golden("sess_info_rsp_instance"), &decoded), nullptr);
  EXPECT_EQ(decoded.instance_id, id);
  ASSERT_STREQ(DecodeSessInfoRsp(Golden("sess_info_rsp"), &decoded), nullptr);
  EXPECT_EQ(decoded.instance_id, InstanceId{});
}

TEST(Rnbd, TheLowerOfBothVersionsIsSpoken) {
  SessInfo request;
  request.ver = 1;
  EXPECT_EQ(MakeSessInfoRsp(request).ver, 1);
  request.ver = 200;
  EXPECT_EQ(MakeSessInfoRsp(request).ver, kRnbdMajor);
}

TEST(Rnbd, OpenMatchesTheExample) {
  Open open{.access_mode = AccessMode::kReadWrite};
  ASSERT_TRUE(SetName(&open.dev_name, "vol0"));
  const SgDesc desc{
      .addr = le64(0xff11000006c01000), .key = le32(0x115a5), .len = le32(sizeof(OpenRsp))};
  EXPECT_EQ(ReadOf(open, &desc), Golden("open_request"));
  Open decoded;
  ASSERT_STREQ(DecodeOpen(Golden("open_request"), &decoded), nullptr);
  EXPECT_EQ(NameOf(decoded.dev_name), "vol0");
  EXPECT_EQ(decoded.access_mode, AccessMode::kReadWrite);
}

TEST(Rnbd, OpenRspMatchesTheExample) {
  const OpenRsp response{.device_id = le32(0),
                         .nsectors = le64(131072),
                         .max_hw_sectors = le32(256),
                         .max_write_zeroes_sectors = le32(8192),
                         .max_discard_sectors = le32(8192),
                         .discard_granularity = le32(4096),
                         .physical_block_size = le16(4096),
                         .logical_block_size = le16(512),
                         .max_segments = le16(128),
                         .cache_policy = kCacheFua | kCacheWriteback};
  EXPECT_EQ(ToBytes(AsBytes(response)), Golden("open_rsp"));
  OpenRsp decoded;
  ASSERT_STREQ(DecodeOpenRsp(Golden("open_rsp"), &decoded), nullptr);
  EXPECT_EQ(decoded.nsectors.get(), 131072u);
  EXPECT_EQ(decoded.volume_id.get(), 0u);
}

TEST(Rnbd, VolumeIdLiesInWhatTheKernelSendsAsZeros) {
  OpenRsp response;
  response.volume_id = le64(0x1122334455667788);
  const Bytes bytes = ToBytes(AsBytes(response));
  EXPECT_EQ(bytes[46], std::byte{0x88});
  EXPECT_EQ(bytes[53], std::byte{0x11});
}

TEST(Rnbd, IoMatchesTheExample) {
  EXPECT_EQ(WriteOf(IoOf(0, 8, 0x101, 4096, 0x4004)), Golden("write_request"));
  const SgDesc desc{.addr = le64(0xff110000063a8000), .key = le32(0x115a4), .len = le32(4096)};
  EXPECT_EQ(ReadOf(IoOf(0, 8, 0x100, 4096, 0x4004), &desc), Golden("read_request"));
  EXPECT_EQ(ReadOf(IoOf(7, kFlushSector, 0x302, 0), nullptr), Golden("flush_request"));
  EXPECT_EQ(WriteOf(IoOf(7, 2048, 0x103, 4 << 20)), Golden("discard_request"));
  EXPECT_EQ(WriteOf(Close{.device_id = le32(7)}), Golden("close_request"));
}

TEST(Rnbd, IoOfTheExampleIsDecoded) {
  Io io;
  const IoCarrier write{.data_len = 4096, .is_read = false};
  ASSERT_STREQ(DecodeIo(Golden("write_request"), write, &io), nullptr);
  EXPECT_EQ(io.op(), IoOp::kWrite);
  EXPECT_EQ(io.flags(), kIoSync);
  EXPECT_EQ(io.sector.get(), 8u);
  EXPECT_EQ(io.bi_size.get(), 4096u);
  EXPECT_EQ(io.prio.get(), 0x4004);
  const IoCarrier read{.data_len = 4096, .is_read = true};
  ASSERT_STREQ(DecodeIo(Golden("read_request"), read, &io), nullptr);
  EXPECT_EQ(io.op(), IoOp::kRead);
  ASSERT_STREQ(DecodeIo(Golden("flush_request"), {.is_read = true}, &io), nullptr);
  EXPECT_EQ(io.op(), IoOp::kFlush);
  EXPECT_EQ(io.device_id.get(), 7u);
  ASSERT_STREQ(DecodeIo(Golden("discard_request"), {.is_read = false}, &io), nullptr);
  EXPECT_EQ(io.op(), IoOp::kDiscard);
  Close close;
  ASSERT_STREQ(DecodeClose(Golden("close_request"), &close), nullptr);
  EXPECT_EQ(close.device_id.get(), 7u);
}

TEST(Rnbd, AnOldClientThatStopsBeforePrioIsUnderstood) {
  Bytes old = ToBytes(AsBytes(IoOf(3, 16, 1, 512, 0x4004)));
  old.resize(kIoSizeMin);
  Io io;
  ASSERT_STREQ(DecodeIo(old, {.data_len = 512}, &io), nullptr);
  EXPECT_EQ(io.device_id.get(), 3u);
  EXPECT_EQ(io.sector.get(), 16u);
  EXPECT_EQ(io.prio.get(), 0);
}

TEST(Rnbd, EachRevisionAddsAFlagAndNoneRefusesAnother) {
  EXPECT_EQ(KnownIoFlags(0), 0x300u);
  EXPECT_EQ(KnownIoFlags(1), 0x700u);
  EXPECT_EQ(KnownIoFlags(2), 0xf00u);
  Io io;
  const Io future = IoOf(0, 0, 0xffffff00 | 5, 512);
  ASSERT_STREQ(DecodeIo(AsBytes(future), {}, &io), nullptr);
  EXPECT_EQ(io.flags(), 0xf00u);
  EXPECT_EQ(io.op(), IoOp::kWriteZeroes);
  // FLUSH of a 2.2 client.
  EXPECT_STREQ(DecodeIo(AsBytes(IoOf(0, kFlushSector, 0x702, 0)), {.is_read = true}, &io), nullptr);
}

TEST(Rnbd, DataLessOperationsGoEitherWay) {
  Io io;
  for (const bool is_read : {false, true}) {
    EXPECT_STREQ(DecodeIo(AsBytes(IoOf(0, 0, 2, 0)), {.is_read = is_read}, &io), nullptr);
    EXPECT_STREQ(DecodeIo(AsBytes(IoOf(0, 0, 5, 512)), {.is_read = is_read}, &io), nullptr);
  }
}

TEST(Rnbd, ListRspMatchesItsBytes) {
  const ListRsp head{.count = le32(1), .next_index = le32(1)};
  ListEntry entry{.nsectors = le64(131072),
                  .logical_block_size = le32(512),
                  .flags = le32(kListWriteCache | kListOpenForWriting),
                  .reader_count = le32(2),
                  .writer_count = le32(1)};
  ASSERT_TRUE(SetName(&entry.name, "vol0"));
  Bytes encoded(sizeof(ListRsp) + sizeof(ListEntry));
  EXPECT_EQ(ListEntriesThatFit(encoded.size()), 1u);
  EXPECT_EQ(ListEntriesThatFit(encoded.size() - 1), 0u);
  EXPECT_EQ(ListEntriesThatFit(3), 0u);
  ASSERT_NE(Encode(std::span(encoded), head), 0u);
  ASSERT_TRUE(EncodeListEntry(encoded, 0, entry));
  EXPECT_FALSE(EncodeListEntry(encoded, 1, entry));
  EXPECT_EQ(encoded, Golden("list_rsp"));
  ListRsp decoded;
  ASSERT_STREQ(DecodeListRsp(encoded, 0, &decoded), nullptr);
  EXPECT_EQ(decoded.count.get(), 1u);
  ListEntry first;
  ASSERT_STREQ(DecodeListEntry(encoded, 0, &first), nullptr);
  EXPECT_EQ(NameOf(first.name), "vol0");
  EXPECT_EQ(first.writer_count.get(), 1u);
}

TEST(Rnbd, ListRequestIsEightBytes) {
  const List list{.start_index = le32(3)};
  List decoded;
  ASSERT_STREQ(DecodeList(AsBytes(list), &decoded), nullptr);
  EXPECT_EQ(decoded.start_index.get(), 3u);
  RnbdType type{};
  ASSERT_STREQ(DecodeType(AsBytes(list), &type), nullptr);
  EXPECT_EQ(type, RnbdType::kList);
}

TEST(Rnbd, FencePathMatchesItsBytes) {
  FencePath fence{.recon_cnt = le16(0x0102)};
  for (std::uint8_t i = 0; i < 16; ++i) fence.sess_uuid[i] = i;
  Bytes expected{std::byte{66}, std::byte{0}, std::byte{0}, std::byte{0},
                 std::byte{2},  std::byte{1}, std::byte{0}, std::byte{0}};
  for (std::uint8_t i = 0; i < 16; ++i) expected.push_back(std::byte{i});
  EXPECT_EQ(Bytes(AsBytes(fence).begin(), AsBytes(fence).end()), expected);
  FencePath decoded;
  ASSERT_STREQ(DecodeFencePath(expected, &decoded), nullptr);
  EXPECT_EQ(decoded.recon_cnt.get(), 0x0102);
  EXPECT_EQ(decoded.sess_uuid, fence.sess_uuid);
}

}  // namespace
}  // namespace ibnbd::proto
