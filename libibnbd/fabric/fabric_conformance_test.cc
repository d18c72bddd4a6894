// SPDX-License-Identifier: Apache-2.0
// The contract of fabric.h, clause by clause; the tests carry the clauses' numbers, F1 to F6 here
// and the others in fabric_conformance_lifetime_test.cc.  They run on every fabric and every
// decorator for which a *_conformance_world.cc is linked in.
#include <gtest/gtest.h>

#include "fabric/conformance_fixture.h"

namespace ibnbd::fabric {

using Kind = CmEvent::Kind;

// --- F1 ---

TEST_P(ConformanceTest, F1_EverySignaledRequestYieldsExactlyOneCompletion) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (Cookie cookie = 1; cookie <= 20; ++cookie) {
    Send(0, Opcode::kWrite, cookie, Piece(0, 0, 64), Remote(1, 64 * cookie));
  }
  ASSERT_TRUE(Until([&] { return side(0).completions.size() == 20; }));
  Settle();
  EXPECT_EQ(side(0).completions.size(), 20u);
  for (Cookie cookie = 1; cookie <= 20; ++cookie)
    EXPECT_EQ(side(0).StatusOf(cookie), WcStatus::kOk);
}

TEST_P(ConformanceTest, F1_AnUnsignaledRequestThatSucceedsIsSilent) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Fill(0, 0, 64, 1);
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 64), Remote(1, 0), 0, false);
  Send(0, Opcode::kWrite, 2, Piece(0, 0, 64), Remote(1, 64));
  ASSERT_TRUE(Until([&] { return Done(0, 2); }));
  Settle();
  EXPECT_TRUE(side(0).Of(1).empty());
  EXPECT_TRUE(AreaIs(1, 0, 128, 1));
}

TEST_P(ConformanceTest, F1_OkMeansThatTheWriteHasLanded) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (int i = 1; i <= 50; ++i) {
    Fill(0, 0, 100'000, i);
    Send(0, Opcode::kWrite, static_cast<Cookie>(i), Piece(0, 0, 100'000), Remote(1, 1000));
    ASSERT_TRUE(Until([&] { return Done(0, static_cast<Cookie>(i)); }));
    ASSERT_TRUE(AreaIs(1, 1000, 100'000, i)) << "write " << i;
  }
}

// --- F2 ---

TEST_P(ConformanceTest, F2_RequestsTakeEffectInPostingOrder) {
  const Sge none;
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (int i = 0; i < 30; ++i) Receive(1, static_cast<Cookie>(1000 + i), none);
  for (int i = 0; i < 30; ++i) {
    Fill(0, static_cast<std::size_t>(i) * 64, 64, i + 1);
    // All to the same place: the last one stays.
    Send(0, Opcode::kWrite, 1, Piece(0, static_cast<std::size_t>(i) * 64, 64), Remote(1, 0), 0,
         false);
    Send(0, Opcode::kWriteImm, 2, none, {}, static_cast<std::uint32_t>(i));
  }
  ASSERT_TRUE(Until([&] { return side(1).completions.size() == 30; }));
  for (std::size_t i = 0; i < 30; ++i) {
    EXPECT_EQ(side(1).completions[i].cookie, 1000 + i);
    EXPECT_EQ(side(1).completions[i].imm, i);
  }
  EXPECT_TRUE(AreaIs(1, 0, 64, 30));
}

TEST_P(ConformanceTest, F2_AWriteIsThereWhenTheImmediateBehindItIsSeen) {
  const Sge none;
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (int i = 1; i <= 50; ++i) {
    Receive(1, static_cast<Cookie>(i), none);
    Fill(0, 0, 50'000, i);
    Send(0, Opcode::kWriteImm, static_cast<Cookie>(i), Piece(0, 0, 50'000), Remote(1, 7), 5);
    ASSERT_TRUE(Until([&] { return Done(1, static_cast<Cookie>(i)); }));
    ASSERT_TRUE(AreaIs(1, 7, 50'000, i));
    ASSERT_TRUE(Until([&] { return Done(0, static_cast<Cookie>(i)); }));
  }
  EXPECT_TRUE(AreaIs(1, 0, 7, 0xee));
}

// --- F3 ---

TEST_P(ConformanceTest, F3_TheFirstFailureFlushesEverythingElseSignaledOrNot) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (Cookie cookie = 50; cookie < 54; ++cookie) Receive(0, cookie, Piece(0, 4096, 64));
  RemoteAddress wrong = Remote(1, 0);
  wrong.rkey ^= 0x00400000;
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 1000), wrong);
  Send(0, Opcode::kWrite, 2, Piece(0, 0, 1000), Remote(1, 0));
  Send(0, Opcode::kWrite, 3, Piece(0, 0, 1000), Remote(1, 0), 0, false);
  ASSERT_TRUE(Until([&] { return Done(0, 1) && Done(0, 2) && Done(0, 3) && Done(0, 53); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
  EXPECT_EQ(side(0).StatusOf(2), WcStatus::kFlushed);
  EXPECT_EQ(side(0).StatusOf(3), WcStatus::kFlushed);
  for (Cookie cookie = 50; cookie < 54; ++cookie) {
    EXPECT_EQ(side(0).StatusOf(cookie), WcStatus::kFlushed);
  }
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F3_PostingOnABrokenConnectionCompletesAsFlushed) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  end(0).Disconnect();
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 1000), Remote(1, 0), 0, false);
  Receive(0, 2, Piece(0, 0, 64));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && Done(0, 2); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kFlushed);
  EXPECT_EQ(side(0).StatusOf(2), WcStatus::kFlushed);
}

TEST_P(ConformanceTest, F3_EachSideHearsOfTheEndExactlyOnce) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  end(0).Disconnect();
  end(0).Disconnect();
  ASSERT_TRUE(Until([&] { return BothDisconnected(); }));
  end(1).Disconnect();
  Settle();
  for (int host = 0; host < 2; ++host) {
    EXPECT_EQ(side(host).Count(Kind::kDisconnected), 1u);
    EXPECT_EQ(side(host).Find(Kind::kDisconnected)->context, host == 0 ? 100u : 200u);
    EXPECT_EQ(side(host).Find(Kind::kDisconnected)->connection, &end(host));
  }
}

TEST_P(ConformanceTest, F3_ABadLkeyIsALocalFaultAndBreaks) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Sge sge = Piece(0, 0, 8192);
  sge.lkey ^= 0x00400000;
  Send(0, Opcode::kWrite, 1, sge, Remote(1, 0));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  ExpectFault(side(0).StatusOf(1), WcStatus::kLocalFault);
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F3_ASourceThatLeavesItsRegionIsALocalFault) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Sge sge = Piece(0, kAreaSize - 4096, 8192);
  Send(0, Opcode::kWrite, 1, sge, Remote(1, 0));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  ExpectFault(side(0).StatusOf(1), WcStatus::kLocalFault);
}

// --- F4 ---

TEST_P(ConformanceTest, F4_AFlushedWriteLandsWhollyInPartOrNotAtAllAndNothingElseChanges) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Fill(0, 0, 100'000, 7);
  for (Cookie cookie = 1; cookie <= 8; ++cookie) {
    Send(0, Opcode::kWrite, cookie, Piece(0, 0, 100'000), Remote(1, 64));
  }
  Pump();
  end(0).Disconnect();
  ASSERT_TRUE(Until([&] { return BothDisconnected() && end(1).drained() && Done(0, 8); }));
  const std::vector<std::byte> snapshot(area(1).begin(), area(1).end());
  for (const std::byte byte : snapshot) {
    ASSERT_TRUE(byte == std::byte{7} || byte == std::byte{0xee});
  }
  Settle();
  EXPECT_TRUE(std::equal(snapshot.begin(), snapshot.end(), area(1).begin())) << "it landed later";
  EXPECT_TRUE(AreaIs(1, 0, 64, 0xee));
  EXPECT_TRUE(AreaIs(1, 100'064, kAreaSize - 100'064, 0xee));
}

// --- F5 ---

TEST_P(ConformanceTest, F5_WhatEachOpcodeTellsTheReceiver) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (Cookie cookie = 1; cookie <= 3; ++cookie) Receive(1, cookie, Piece(1, cookie * 1000, 500));
  Fill(0, 0, 300, 9);
  Send(0, Opcode::kSend, 11, Piece(0, 0, 300));
  Send(0, Opcode::kSendImm, 12, Piece(0, 0, 200), {}, 0xdeadbeef);
  Send(0, Opcode::kWriteImm, 13, Piece(0, 0, 100), Remote(1, 9000), 0x01020304);
  Send(0, Opcode::kWrite, 14, Piece(0, 0, 50), Remote(1, 9500));
  ASSERT_TRUE(Until([&] { return Done(0, 14) && side(1).completions.size() == 3; }));
  const Completion send = side(1).completions[0];
  EXPECT_EQ(send.opcode, Opcode::kReceive);
  EXPECT_EQ(send.byte_count, 300u);
  EXPECT_FALSE(send.has_imm);
  const Completion send_imm = side(1).completions[1];
  EXPECT_EQ(send_imm.opcode, Opcode::kReceive);
  EXPECT_EQ(send_imm.byte_count, 200u);
  EXPECT_TRUE(send_imm.has_imm);
  EXPECT_EQ(send_imm.imm, 0xdeadbeefu);
  const Completion write_imm = side(1).completions[2];
  EXPECT_EQ(write_imm.opcode, Opcode::kReceiveWriteImm);
  EXPECT_EQ(write_imm.byte_count, 100u);
  EXPECT_TRUE(write_imm.has_imm);
  EXPECT_EQ(write_imm.imm, 0x01020304u);
  EXPECT_TRUE(AreaIs(1, 1000, 300, 9));
  EXPECT_TRUE(AreaIs(1, 2000, 200, 9));
  EXPECT_TRUE(AreaIs(1, 3000, 100, 0xee)) << "a write with immediate leaves the receive's memory";
  EXPECT_TRUE(AreaIs(1, 9000, 100, 9));
  EXPECT_TRUE(AreaIs(1, 9500, 50, 9));
}

TEST_P(ConformanceTest, F5_APlainWriteConsumesNoReceive) {
  const Sge none;
  ASSERT_NO_FATAL_FAILURE(Connect());
  Receive(1, 1, none);
  for (Cookie cookie = 10; cookie < 20; ++cookie) {
    Send(0, Opcode::kWrite, cookie, Piece(0, 0, 64), Remote(1, 0));
  }
  ASSERT_TRUE(Until([&] { return Done(0, 19); }));
  EXPECT_TRUE(side(1).completions.empty());
  Send(0, Opcode::kWriteImm, 30, none, {}, 4);
  ASSERT_TRUE(Until([&] { return Done(1, 1) && Done(0, 30); }));
}

TEST_P(ConformanceTest, F5_WithoutAReceiveTheSenderWaitsOrIsToldSo) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Fill(0, 0, 64, 3);
  Send(0, Opcode::kSend, 1, Piece(0, 0, 64));
  Settle();
  if (!Done(0, 1)) {
    Receive(1, 2, Piece(1, 0, 64));
    ASSERT_TRUE(Until([&] { return Done(0, 1); }));
  }
  const WcStatus status = side(0).StatusOf(1);
  if (status == WcStatus::kOk) {
    ASSERT_TRUE(Until([&] { return Done(1, 2); }));
    EXPECT_TRUE(AreaIs(1, 0, 64, 3));
  } else {
    EXPECT_EQ(status, WcStatus::kNoReceive);
    ASSERT_TRUE(Until([&] { return BothDisconnected(); }));
  }
}

TEST_P(ConformanceTest, F5_ASenderThatWaitsForAReceiveCanStillDisconnect) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Send(0, Opcode::kSend, 1, Piece(0, 0, 64));
  Settle();
  end(0).Disconnect();
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  EXPECT_NE(side(0).StatusOf(1), WcStatus::kOk);
}

// --- F6 ---

TEST_P(ConformanceTest, F6_AWriteAcrossTheEndOfARegionTouchesNoByteAndBreaks) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Fill(0, 0, 8192, 5);
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 8192), Remote(1, kAreaSize - 8191));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F6_AWriteBeforeARegionOrFarAwayTouchesNoByteAndBreaks) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  RemoteAddress before = Remote(1, 0);
  before.addr -= 1;
  Send(0, Opcode::kWriteImm, 1, Piece(0, 0, 64), before, 1);
  Receive(1, 9, Sge{});
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F6_AnAddressThatWouldOverflowIsRefused) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  RemoteAddress huge = Remote(1, 0);
  huge.addr = ~std::uint64_t{0} - 10;
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 4096), huge);
  ASSERT_TRUE(Until([&] { return Done(0, 1); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
}

TEST_P(ConformanceTest, F6_ALocalRegionCannotBeWrittenByThePeer) {
  auto arena = Arena::Create(4096);
  ASSERT_TRUE(arena.ok());
  auto local = fabric(1).Register(arena->bytes(), Access::kLocal);
  ASSERT_TRUE(local.ok());
  EXPECT_EQ((*local)->rkey(), 0u);
  ASSERT_NO_FATAL_FAILURE(Connect());
  const RemoteAddress remote{reinterpret_cast<std::uintptr_t>(arena->bytes().data()),
                             (*local)->lkey()};
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 64), remote);
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected() && DrainedAll(); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
  EXPECT_EQ(arena->bytes()[0], std::byte{0});
}

TEST_P(ConformanceTest, F6_AStaleKeyIsRefusedEvenWhenTheMemoryIsRegisteredAgain) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const RemoteAddress stale = Remote(1, 0);
  regions_[1].reset();
  regions_[1] = *fabric(1).Register(area(1), Access::kRemoteWrite);
  EXPECT_NE(regions_[1]->rkey(), stale.rkey);
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 64), stale);
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F13_AKeyOfAnotherDomainIsForeignToThePeer) {
  own_domain_ = true;
  ASSERT_NO_FATAL_FAILURE(Connect());
  extra_regions_.push_back(*domain_->Register(area(1).subspan(4096, 4096), Access::kRemoteWrite));
  RemoteAddress lent = Remote(1, 4096);
  lent.rkey = extra_regions_[0]->rkey();
  Fill(0, 0, 64, 7);
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 64), lent);
  ASSERT_TRUE(Until([&] { return Done(0, 1); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kOk);
  EXPECT_TRUE(AreaIs(1, 4096, 64, 7));
  Send(0, Opcode::kWrite, 2, Piece(0, 0, 64),
       Remote(1, 0));  // A living key, but not for this peer.
  ASSERT_TRUE(Until([&] { return Done(0, 2) && BothDisconnected(); }));
  EXPECT_EQ(side(0).StatusOf(2), WcStatus::kRemoteAccess);
  EXPECT_TRUE(AreaIs(1, 0, 4096, 0xee));
}

TEST_P(ConformanceTest, F13_AKeyOfAnotherDomainIsNoSourceForASend) {
  own_domain_ = true;
  ASSERT_NO_FATAL_FAILURE(Connect());
  Send(1, Opcode::kWrite, 1, Piece(1, 0, 8192), Remote(0, 0));  // Of the common domain.
  ASSERT_TRUE(Until([&] { return Done(1, 1) && BothDisconnected(); }));
  ExpectFault(side(1).StatusOf(1), WcStatus::kLocalFault);
  EXPECT_TRUE(AreaIs(0, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F13_AKeyOfAnotherDomainIsNoPlaceForAReceive) {
  own_domain_ = true;
  ASSERT_NO_FATAL_FAILURE(Connect());
  Receive(1, 9, Piece(1, 0, 4096));  // Of the common domain.
  Fill(0, 0, 64, 7);
  Send(0, Opcode::kSend, 1, Piece(0, 0, 64));
  ASSERT_TRUE(Until([&] { return Done(1, 9) && BothDisconnected(); }));
  EXPECT_NE(side(1).StatusOf(9), WcStatus::kOk);
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F6_AMessageLongerThanTheReceiveTouchesNoByteBeyondItAndBreaks) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Receive(1, 9, Piece(1, 1000, 99));
  Fill(0, 0, 100, 5);
  Send(0, Opcode::kSend, 1, Piece(0, 0, 100));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && Done(1, 9) && BothDisconnected(); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kRemoteAccess);
  EXPECT_NE(side(1).StatusOf(9), WcStatus::kOk);
  EXPECT_TRUE(AreaIs(1, 0, 1000, 0xee));
  EXPECT_TRUE(AreaIs(1, 1099, 1000, 0xee));
}

TEST_P(ConformanceTest, F6_AMessageThatFitsExactlyIsReceivedAcrossSeveralSges) {
  const std::array<Sge, 3> pieces = {Piece(1, 0, 10), Piece(1, 100, 20), Piece(1, 200, 70)};
  ReceiveRequest receive;
  receive.cookie = 9;
  receive.sges = pieces;
  ASSERT_NO_FATAL_FAILURE(Connect({}, {&receive, 1}));
  const std::array<Sge, 2> sources = {Piece(0, 0, 60), Piece(0, 500, 40)};
  Fill(0, 0, 60, 1);
  Fill(0, 500, 40, 2);
  SendRequest request;
  request.cookie = 1;
  request.sges = sources;
  end(0).PostSend({&request, 1});
  ASSERT_TRUE(Until([&] { return Done(0, 1) && Done(1, 9); }));
  EXPECT_EQ(side(1).Of(9).front().byte_count, 100u);
  EXPECT_TRUE(AreaIs(1, 0, 10, 1) && AreaIs(1, 100, 20, 1) && AreaIs(1, 200, 30, 1));
  EXPECT_TRUE(AreaIs(1, 230, 40, 2));
  EXPECT_TRUE(AreaIs(1, 10, 90, 0xee) && AreaIs(1, 120, 80, 0xee) && AreaIs(1, 270, 100, 0xee));
}

TEST_P(ConformanceTest, F6_AZeroLengthWriteIgnoresItsTarget) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Receive(1, 9, Sge{});
  Send(0, Opcode::kWriteImm, 1, Sge{}, RemoteAddress{12345, 678}, 42);
  ASSERT_TRUE(Until([&] { return Done(0, 1) && Done(1, 9); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kOk);
  EXPECT_EQ(side(1).Of(9).front().imm, 42u);
  EXPECT_EQ(side(1).Of(9).front().byte_count, 0u);
}

}  // namespace ibnbd::fabric
