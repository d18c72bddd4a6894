// SPDX-License-Identifier: Apache-2.0
#include "proto/rtrs_imm.h"

#include <gtest/gtest.h>

#include "proto/rtrs.h"

namespace ibnbd::proto {
namespace {

TEST(RtrsImm, CeilLog2CountsTheBitsThatNumberNThings) {
  EXPECT_EQ(CeilLog2(1), 0u);
  EXPECT_EQ(CeilLog2(2), 1u);
  EXPECT_EQ(CeilLog2(3), 2u);
  EXPECT_EQ(CeilLog2(512), 9u);
  EXPECT_EQ(CeilLog2(513), 10u);
  EXPECT_EQ(CeilLog2(65535), 16u);
  EXPECT_EQ(CeilLog2(135168), 18u);
  EXPECT_EQ(CeilLog2(0xffffffff), 32u);
}

TEST(RtrsImm, QueueDepthDecidesHowManyBitsAreLeftForTheOffset) {
  EXPECT_EQ(IoReqImmLayout(1).off_bits(), 28u);
  EXPECT_EQ(IoReqImmLayout(128).off_bits(), 21u);
  EXPECT_EQ(IoReqImmLayout(256).off_bits(), 20u);
  EXPECT_EQ(IoReqImmLayout(512).off_bits(), 19u);
  EXPECT_EQ(IoReqImmLayout(65535).off_bits(), 12u);
}

TEST(RtrsImm, BudgetIsTwentyEightBits) {
  EXPECT_TRUE(ImmBudgetFits(512, 524288));
  EXPECT_FALSE(ImmBudgetFits(512, 524289));
  EXPECT_FALSE(ImmBudgetFits(513, 524288));
  EXPECT_TRUE(ImmBudgetFits(65535, 4096));
  EXPECT_FALSE(ImmBudgetFits(65535, 8192));
  EXPECT_TRUE(ImmBudgetFits(kDefaultQueueDepth, kDefaultIoSizeMax + kDefaultHdrSizeMax));
  EXPECT_FALSE(ImmBudgetFits(1, 0xffffffff));
}

TEST(RtrsImm, EveryPairThatFitsTheBudgetSurvivesTheRoundTrip) {
  for (std::uint32_t queue_depth = 1; queue_depth <= kQueueDepthMax; queue_depth += 97) {
    const IoReqImmLayout layout(queue_depth);
    const std::uint32_t off_max = (1u << layout.off_bits()) - 1;
    for (const std::uint32_t mem_id : {0u, queue_depth / 2, queue_depth - 1}) {
      for (const std::uint32_t off : {0u, 1u, off_max / 3, off_max}) {
        const IoReqImm fields{.mem_id = mem_id, .off = off};
        const std::uint32_t imm = layout.Pack(fields);
        ASSERT_EQ(ImmTypeOf(imm), ImmType::kIoReq);
        ASSERT_EQ(layout.Unpack(imm), fields) << queue_depth;
      }
    }
  }
}

TEST(RtrsImm, ResponsesCarryEveryIndexAndEveryError) {
  for (const ImmType type : {ImmType::kIoRsp, ImmType::kIoRspInvalidated}) {
    for (const std::uint32_t msg_id : {0u, 1u, 511u, 65534u, (1u << kImmMsgIdBits) - 1}) {
      for (const internal::ErrnoRow& row : internal::kErrnoTable) {
        const IoRspImm fields{.msg_id = msg_id, .error = -row.host};
        const std::uint32_t imm = PackIoRsp(type, fields);
        ASSERT_EQ(ImmTypeOf(imm), type);
        ASSERT_EQ(UnpackIoRsp(imm), fields);
      }
    }
  }
}

TEST(RtrsImm, AnErrorOfTheFuturePeerIsEioAndNeverSuccess) {
  for (std::uint32_t wire = 1; wire <= kWireErrnoMax; ++wire) {
    const std::uint32_t imm = 0x10000007u | wire << kImmMsgIdBits;
    EXPECT_LT(UnpackIoRsp(imm).error, 0);
    EXPECT_EQ(UnpackIoRsp(imm).msg_id, 7u);
  }
}

TEST(RtrsImm, WorkedExample) {
  const IoReqImmLayout layout(512);
  EXPECT_EQ(layout.Pack({.mem_id = 0, .off = 72}), 0x00000048u);
  EXPECT_EQ(layout.Pack({.mem_id = 1, .off = 320}), 0x00080140u);
  EXPECT_EQ(layout.Pack({.mem_id = 3, .off = 0x1020}), 0x00181020u);
  EXPECT_EQ(layout.Pack({.mem_id = 5, .off = 0x1020}), 0x00281020u);
  EXPECT_EQ(layout.Pack({.mem_id = 8, .off = 32}), 0x00400020u);
  EXPECT_EQ(layout.Pack({.mem_id = 9, .off = 32}), 0x00480020u);
  EXPECT_EQ(layout.Pack({.mem_id = 2, .off = 8}), 0x00100008u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRsp, {.msg_id = 1}), 0x10000001u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRspInvalidated, {.msg_id = 1}), 0x20000001u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRsp, {.msg_id = 3}), 0x10000003u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRsp, {.msg_id = 3, .error = -EIO}), 0x10280003u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRsp, {.msg_id = 5}), 0x10000005u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRspInvalidated, {.msg_id = 5}), 0x20000005u);
  EXPECT_EQ(PackIoRsp(ImmType::kIoRspInvalidated, {.msg_id = 5, .error = -EREMOTEIO}), 0x23c80005u);
  EXPECT_EQ(ImmTypeOf(kImmHbMsg), ImmType::kHbMsg);
  EXPECT_EQ(ImmTypeOf(kImmHbAck), ImmType::kHbAck);
}

}  // namespace
}  // namespace ibnbd::proto
