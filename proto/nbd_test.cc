// SPDX-License-Identifier: Apache-2.0
// Golden bytes and round trips of NBD.  What decoders refuse is tested in reasons_test.cc.
#include "proto/nbd.h"

#include <gtest/gtest.h>

#include "proto/golden.h"

namespace ibnbd::proto {
namespace {

constexpr std::uint16_t kAllFlags = kNbdHasFlags | kNbdSendFlush | kNbdSendFua | kNbdSendTrim |
                                    kNbdSendWriteZeroes | kNbdSendDf | kNbdSendCache |
                                    kNbdSendFastZero;
constexpr NbdExportLimits kLimits{
    .size = 1 << 20, .block_size_min = 512, .payload_size_max = 65536, .flags = kAllFlags};

NbdRequest RequestOf(NbdCmd cmd, std::uint16_t flags, std::uint64_t offset, std::uint32_t length) {
  return {.flags = be16(flags),
          .type = be16(static_cast<std::uint16_t>(cmd)),
          .offset = be64(offset),
          .length = be32(length)};
}

TEST(Nbd, GreetingReadsAsText) {
  const Bytes bytes = ToBytes(AsBytes(NbdServerGreeting{}));
  EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(bytes.data()), 16), "NBDMAGICIHAVEOPT");
  EXPECT_EQ(bytes[17], std::byte{3});
}

TEST(Nbd, OptionsHaveTheNumbersOfTheirDocument) {
  // Early drafts gave the metadata options other numbers; peers of today use these.
  EXPECT_EQ(static_cast<std::uint32_t>(NbdOption::kStructuredReply), 8u);
  EXPECT_EQ(static_cast<std::uint32_t>(NbdOption::kListMetaContext), 9u);
  EXPECT_EQ(static_cast<std::uint32_t>(NbdOption::kSetMetaContext), 10u);
  EXPECT_EQ(static_cast<std::uint32_t>(NbdOption::kExtendedHeaders), 11u);
}

TEST(Nbd, GoMatchesItsBytes) {
  const Bytes golden = Golden("nbd_go");
  NbdOptionHeader header;
  ASSERT_STREQ(DecodeNbdOptionHeader(golden, &header), nullptr);
  EXPECT_EQ(header.option.get(), static_cast<std::uint32_t>(NbdOption::kGo));
  ASSERT_EQ(header.length.get(), golden.size() - sizeof(header));
  NbdGo go;
  ASSERT_STREQ(DecodeNbdGo(std::span(golden).subspan(sizeof(header)), &go), nullptr);
  EXPECT_EQ(go.name, "vol0");
  EXPECT_TRUE(go.wants_block_size);
  EXPECT_FALSE(go.wants_name);
  EXPECT_FALSE(go.wants_description);
}

TEST(Nbd, AnEmptyNameIsTheDefaultExport) {
  const Bytes payload(6);
  NbdGo go;
  EXPECT_STREQ(DecodeNbdGo(payload, &go), nullptr);
  EXPECT_EQ(go.name, "");
  std::string_view name = "x";
  EXPECT_STREQ(DecodeNbdExportName({}, &name), nullptr);
  EXPECT_EQ(name, "");
}

TEST(Nbd, RequestMatchesItsBytes) {
  NbdRequest request;
  ASSERT_STREQ(DecodeNbdRequest(Golden("nbd_request"), &request), nullptr);
  EXPECT_EQ(request.cmd(), NbdCmd::kWrite);
  EXPECT_EQ(request.flags.get(), kNbdCmdFua);
  EXPECT_EQ(request.cookie.get(), 0x0102030405060708u);
  EXPECT_EQ(request.offset.get(), 65536u);
  EXPECT_EQ(request.length.get(), 4096u);
  EXPECT_EQ(ToBytes(AsBytes(request)), Golden("nbd_request"));
  EXPECT_STREQ(CheckNbdRequest(request, kLimits).reason, nullptr);
}

TEST(Nbd, RepliesMatchTheirBytes) {
  const be64 cookie(0x0102030405060708);
  EXPECT_EQ(ToBytes(AsBytes(MakeNbdSimpleReply(cookie, -ENOSPC))), Golden("nbd_simple_reply"));
  EXPECT_EQ(ToBytes(AsBytes(MakeNbdOffsetData(cookie, 65536, 4096))), Golden("nbd_offset_data"));
  const NbdErrorChunk error = MakeNbdError(cookie, -EROFS);
  EXPECT_EQ(error.error.get(), kNbdEperm);
  EXPECT_EQ(error.header.length.get(), 6u);
  EXPECT_EQ(error.header.flags.get(), kNbdReplyDone);
  const NbdOptionReply reply = MakeNbdOptionReply(7, NbdRep::kErrUnknown, 5);
  EXPECT_EQ(reply.type.get(), 0x80000006u);
  EXPECT_EQ(reply.length.get(), 5u);
}

TEST(Nbd, EveryCommandIsAcceptedUpToTheLastByte) {
  const std::uint64_t last = kLimits.size - 512;
  for (const NbdRequest& request :
       {RequestOf(NbdCmd::kRead, kNbdCmdDf, last, 512), RequestOf(NbdCmd::kWrite, 0, last, 512),
        RequestOf(NbdCmd::kDisc, 0, 0, 0), RequestOf(NbdCmd::kFlush, 0, 0, 0),
        RequestOf(NbdCmd::kTrim, kNbdCmdFua, 0, 1 << 20), RequestOf(NbdCmd::kCache, 0, last, 512),
        RequestOf(NbdCmd::kWriteZeroes, kNbdCmdNoHole | kNbdCmdFastZero, 0, 1 << 20)}) {
    EXPECT_STREQ(CheckNbdRequest(request, kLimits).reason, nullptr) << request.type.get();
  }
}

TEST(Nbd, RefusalsCarryTheErrorThatTheProtocolNames) {
  NbdExportLimits read_only = kLimits;
  read_only.flags |= kNbdReadOnly;
  EXPECT_EQ(CheckNbdRequest(RequestOf(NbdCmd::kWrite, 0, 0, 512), read_only).error, kNbdEperm);
  EXPECT_EQ(CheckNbdRequest(RequestOf(NbdCmd::kTrim, 0, 0, 512), read_only).error, kNbdEperm);
  read_only.flags = kNbdReadOnly;  // What cannot be written announces neither trim nor zeroes.
  for (const NbdCmd cmd : {NbdCmd::kWrite, NbdCmd::kTrim, NbdCmd::kWriteZeroes}) {
    EXPECT_EQ(CheckNbdRequest(RequestOf(cmd, 0, 0, 512), read_only).error, kNbdEperm);
  }
  EXPECT_EQ(CheckNbdRequest(RequestOf(NbdCmd::kRead, 0, 0, 512), read_only).error, 0u);
  EXPECT_EQ(CheckNbdRequest(RequestOf(NbdCmd::kWrite, 0, 1 << 20, 512), kLimits).error, kNbdEnospc);
  EXPECT_EQ(CheckNbdRequest(RequestOf(NbdCmd::kRead, 0, 1 << 20, 512), kLimits).error, kNbdEinval);
  EXPECT_EQ(CheckNbdRequest(RequestOf(NbdCmd::kRead, 0, ~0ull - 511, 512), kLimits).error,
            kNbdEinval);
}

}  // namespace
}  // namespace ibnbd::proto
