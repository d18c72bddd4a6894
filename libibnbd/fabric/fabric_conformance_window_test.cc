// SPDX-License-Identifier: Apache-2.0
// The contract's part about windows, F14: keys that change with each IO.  Host 1 lends a window to
// host 0.  See fabric_conformance_test.cc.
#include <gtest/gtest.h>

#include <cstring>

#include "fabric/conformance_fixture.h"

namespace ibnbd::fabric {

TEST_P(ConformanceTest, F14_EachOpeningGivesAnotherKeyAndTheOldOneIsDead) {
  if (!MakeWindow()) GTEST_SKIP() << "SKIP this fabric has no memory windows";
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::uint32_t first = OpenWindow(1);
  EXPECT_TRUE(WriteThrough(2, 4096, first, 6));
  EXPECT_TRUE(AreaIs(1, 4096, 64, 6));
  const std::uint32_t second = OpenWindow(3);
  EXPECT_NE(second, first);
  EXPECT_TRUE(WriteThrough(4, 8192 - 64, second, 7));
  EXPECT_TRUE(AreaIs(1, 8192 - 64, 64, 7));
  EXPECT_FALSE(WriteThrough(5, 4096, first, 8));
  EXPECT_EQ(side(0).StatusOf(5), WcStatus::kRemoteAccess);
  ASSERT_TRUE(Until([&] { return BothDisconnected(); }));
  EXPECT_TRUE(AreaIs(1, 4096, 64, 6));
}

TEST_P(ConformanceTest, F14_AClosedWindowTakesNothing) {
  if (!MakeWindow()) GTEST_SKIP() << "SKIP this fabric has no memory windows";
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::uint32_t rkey = OpenWindow(1);
  const SendRequest close = WindowRequest(Opcode::kCloseWindow, 2);
  end(1).PostSend({&close, 1});
  ASSERT_TRUE(Until([&] { return Done(1, 2); }));
  EXPECT_EQ(side(1).StatusOf(2), WcStatus::kOk);
  EXPECT_FALSE(WriteThrough(3, 4096, rkey, 8));
  EXPECT_TRUE(AreaIs(1, 4096, 64, 0xee));
}

TEST_P(ConformanceTest, F14_AWindowEndsWhereItsRegionEnds) {
  if (!MakeWindow()) GTEST_SKIP() << "SKIP this fabric has no memory windows";
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::uint32_t rkey = OpenWindow(1);
  EXPECT_FALSE(WriteThrough(2, 8192 - 32, rkey, 8));
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

// As RTRS does: the key is told before it holds, and holds when it is heard of.
TEST_P(ConformanceTest, F14_AKeyThatIsSentBehindItsOpeningHoldsWhenItArrives) {
  if (!MakeWindow()) GTEST_SKIP() << "SKIP this fabric has no memory windows";
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (Cookie round = 0; round < 300; ++round) {  // A key byte wraps.
    const Cookie cookie = 10 + round * 10;
    Receive(0, cookie, Piece(0, 1024, 4));
    const std::uint32_t rkey = window_->next_rkey();
    std::memcpy(area(1).data(), &rkey, sizeof rkey);
    const Sge source = Piece(1, 0, sizeof rkey);
    SendRequest requests[] = {WindowRequest(Opcode::kOpenWindow, 0), {}};
    requests[0].signaled = false;
    requests[1].cookie = cookie + 1;
    requests[1].sges = {&source, 1};
    end(1).PostSend(requests);
    ASSERT_TRUE(Until([&] { return Done(0, cookie) && Done(1, cookie + 1); }));
    std::uint32_t heard = 0;
    std::memcpy(&heard, area(0).data() + 1024, sizeof heard);
    ASSERT_TRUE(WriteThrough(cookie + 2, 4096, heard, static_cast<int>(round & 0xff))) << round;
    ASSERT_TRUE(AreaIs(1, 4096, 64, static_cast<int>(round & 0xff)));
    for (int host = 0; host < 2; ++host) side(host).completions.clear();
  }
}

}  // namespace ibnbd::fabric
