// SPDX-License-Identifier: Apache-2.0
// Work requests and completions, without a device.
#include "fabric/verbs/verbs_translate.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <array>

namespace ibnbd::verbs {
namespace {

using fabric::Opcode;
using fabric::SendRequest;
using fabric::Sge;
using fabric::WcStatus;

TEST(VerbsTranslate, ANameComesBackAsItWasPacked) {
  for (const bool is_receive : {false, true}) {
    const WrName name{0xfedc, 0x1234, is_receive, 0x7fffffff};
    const WrName back = UnpackWrName(PackWrName(name));
    EXPECT_EQ(back.index, name.index);
    EXPECT_EQ(back.generation, name.generation);
    EXPECT_EQ(back.is_receive, is_receive);
    EXPECT_EQ(back.sequence, name.sequence);
  }
  // A sequence that wraps does not spill into the other fields.
  EXPECT_EQ(PackWrName({1, 2, false, 0x80000005}), PackWrName({1, 2, false, 5}));
}

class TranslateSendTest : public testing::Test {
 protected:
  const ibv_send_wr& Translate(const SendRequest& request, std::uint32_t inline_size = 0) {
    TranslateSend(request, 77, inline_size, sges_.data(), &wr_);
    return wr_;
  }
  std::array<std::byte, 64> memory_{};
  std::array<Sge, 2> pieces_ = {Sge{memory_.data(), 16, 5}, Sge{memory_.data() + 32, 8, 6}};
  std::array<ibv_sge, 4> sges_{};
  ibv_send_wr wr_{};
};

TEST_F(TranslateSendTest, AWriteWithImmediateCarriesTargetKeyAndBigEndianImmediate) {
  SendRequest request;
  request.opcode = Opcode::kWriteImm;
  request.imm = 0x00181020;
  request.remote = {0x7f3ed9925000, 0x195a0};
  request.sges = pieces_;
  const ibv_send_wr& wr = Translate(request);
  EXPECT_EQ(wr.opcode, IBV_WR_RDMA_WRITE_WITH_IMM);
  EXPECT_EQ(wr.wr_id, 77u);
  EXPECT_EQ(ntohl(wr.imm_data), 0x00181020u);
  EXPECT_EQ(wr.wr.rdma.remote_addr, 0x7f3ed9925000u);
  EXPECT_EQ(wr.wr.rdma.rkey, 0x195a0u);
  EXPECT_EQ(wr.num_sge, 2);
  EXPECT_EQ(wr.sg_list[1].addr, reinterpret_cast<std::uintptr_t>(memory_.data() + 32));
  EXPECT_EQ(wr.sg_list[1].length, 8u);
  EXPECT_EQ(wr.sg_list[1].lkey, 6u);
  EXPECT_EQ(wr.send_flags, static_cast<unsigned>(IBV_SEND_SIGNALED));
}

TEST_F(TranslateSendTest, AZeroLengthWriteNamesNoTarget) {
  SendRequest request;
  request.opcode = Opcode::kWriteImm;
  request.remote = {0x1000, 0xdead};
  const ibv_send_wr& wr = Translate(request, 512);
  EXPECT_EQ(wr.wr.rdma.remote_addr, 0u);
  EXPECT_EQ(wr.wr.rdma.rkey, 0u);
  EXPECT_EQ(wr.num_sge, 0);
  EXPECT_EQ(wr.send_flags & IBV_SEND_INLINE, 0u);
}

TEST_F(TranslateSendTest, WhatFitsIsSentInlineAndWhatDoesNotIsNot) {
  SendRequest request;
  request.signaled = false;
  request.sges = pieces_;  // 24 bytes.
  EXPECT_EQ(Translate(request, 24).send_flags, static_cast<unsigned>(IBV_SEND_INLINE));
  EXPECT_EQ(Translate(request, 23).send_flags, 0u);
}

TEST_F(TranslateSendTest, AnInvalidationNamesTheKey) {
  SendRequest request;
  request.opcode = Opcode::kSendInvalidate;
  request.invalidate_rkey = 4711;
  const ibv_send_wr& wr = Translate(request);
  EXPECT_EQ(wr.opcode, IBV_WR_SEND_WITH_INV);
  EXPECT_EQ(wr.invalidate_rkey, 4711u);
}

TEST(VerbsTranslate, EveryStatusHasAMeaning) {
  EXPECT_EQ(TranslateStatus(IBV_WC_SUCCESS), WcStatus::kOk);
  EXPECT_EQ(TranslateStatus(IBV_WC_WR_FLUSH_ERR), WcStatus::kFlushed);
  EXPECT_EQ(TranslateStatus(IBV_WC_RETRY_EXC_ERR), WcStatus::kPeerGone);
  EXPECT_EQ(TranslateStatus(IBV_WC_RNR_RETRY_EXC_ERR), WcStatus::kNoReceive);
  EXPECT_EQ(TranslateStatus(IBV_WC_REM_ACCESS_ERR), WcStatus::kRemoteAccess);
  EXPECT_EQ(TranslateStatus(IBV_WC_REM_INV_REQ_ERR), WcStatus::kRemoteAccess);
  EXPECT_EQ(TranslateStatus(IBV_WC_LOC_PROT_ERR), WcStatus::kLocalFault);
  EXPECT_EQ(TranslateStatus(IBV_WC_LOC_LEN_ERR), WcStatus::kLocalFault);
}

TEST(VerbsTranslate, AReceivedImmediateIsReadInHostOrder) {
  ibv_wc wc{};
  wc.opcode = IBV_WC_RECV_RDMA_WITH_IMM;
  wc.wc_flags = IBV_WC_WITH_IMM;
  wc.imm_data = htonl(0x10000003);
  wc.byte_len = 4096;
  const fabric::Completion completion = TranslateSuccess(wc);
  EXPECT_EQ(completion.opcode, Opcode::kReceiveWriteImm);
  EXPECT_TRUE(completion.has_imm);
  EXPECT_EQ(completion.imm, 0x10000003u);
  EXPECT_EQ(completion.byte_count, 4096u);
}

TEST(VerbsTranslate, AnInvalidationIsSeenWithTheFlagOfTheLibraryAndWithThatOfRxe) {
  for (const unsigned flag : {static_cast<unsigned>(IBV_WC_WITH_INV), 4u}) {
    ibv_wc wc{};
    wc.opcode = IBV_WC_RECV;
    wc.wc_flags = flag;
    wc.invalidated_rkey = 99;
    const fabric::Completion completion = TranslateSuccess(wc);
    EXPECT_EQ(completion.opcode, Opcode::kReceive);
    EXPECT_TRUE(completion.has_invalidate);
    EXPECT_EQ(completion.invalidated_rkey, 99u);
  }
}

}  // namespace
}  // namespace ibnbd::verbs
