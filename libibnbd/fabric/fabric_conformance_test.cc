// SPDX-License-Identifier: Apache-2.0
// The contract of fabric.h, clause by clause; the tests carry the clauses' numbers.  They run on
// every fabric and every decorator for which a *_conformance_world.cc is linked in.
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
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kLocalFault);
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0xee));
}

TEST_P(ConformanceTest, F3_ASourceThatLeavesItsRegionIsALocalFault) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Sge sge = Piece(0, kAreaSize - 4096, 8192);
  Send(0, Opcode::kWrite, 1, sge, Remote(1, 0));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && BothDisconnected(); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kLocalFault);
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

// --- F7 ---

TEST_P(ConformanceTest, F7_CompletionsAreSeenInPollAloneAndNoneIsLostToASmallBuffer) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (Cookie cookie = 0; cookie < 10; ++cookie) {
    Send(0, Opcode::kWrite, cookie, Piece(0, 0, 64), Remote(1, 0));
  }
  EXPECT_TRUE(side(0).completions.empty());
  side(0).poller->Flush();
  std::vector<Cookie> seen;
  ASSERT_TRUE(Until([&] {
    side(0).poller->Flush();
    world_->Progress();
    side(1).Poll();
    Completion one;
    if (side(0).poller->PollCompletions({&one, 1}) == 1) seen.push_back(one.cookie);
    for (const Completion& c : side(0).completions) seen.push_back(c.cookie);
    side(0).completions.clear();
    return seen.size() >= 10;
  }));
  std::sort(seen.begin(), seen.end());
  for (Cookie cookie = 0; cookie < 10; ++cookie) EXPECT_EQ(seen[cookie], cookie);
}

// --- F8 ---

TEST_P(ConformanceTest, F8_AnIncomingMayBeAcceptedByAnotherPoller) {
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect());
  ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); }));
  EXPECT_EQ(Text(side(1).incoming.front()->private_data()).substr(0, 2), "hi");
  auto accepted = side(1).incoming.front()->Accept(*lanes_[1].poller, Options(300), Bytes("ok"));
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  ends_[1] = *std::move(accepted);
  side(1).incoming.clear();
  ASSERT_TRUE(Until([&] { return side(0).Count(Kind::kEstablished) == 1; }));
  Receive(1, 9, Piece(1, 0, 64));
  Send(0, Opcode::kSend, 1, Piece(0, 0, 64));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && !lanes_[1].completions.empty(); }));
  EXPECT_TRUE(side(1).completions.empty());
  EXPECT_EQ(lanes_[1].completions[0].cookie, 9u);
}

// --- F9 ---

TEST_P(ConformanceTest, F9_ALaterSignaledCompletionGivesTheSourcesBack) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (int round = 1; round <= 20; ++round) {
    Fill(0, 0, 40'000, round);
    Send(0, Opcode::kWrite, 1, Piece(0, 0, 20'000), Remote(1, 0), 0, false);
    Send(0, Opcode::kWrite, 2, Piece(0, 20'000, 20'000), Remote(1, 20'000));
    ASSERT_TRUE(Until([&] { return Done(0, 2); }));
    Fill(0, 0, 40'000, 0xaa);
    ASSERT_TRUE(AreaIs(1, 0, 40'000, round));
    side(0).completions.clear();
  }
}

TEST_P(ConformanceTest, F9_AnInlineSourceIsGivenBackAtOnceAndNeedsNoKey) {
  limits_.inline_size_max = 32;
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::uint32_t size = std::min(end(0).limits().inline_size_max, 1024u);
  if (size == 0) GTEST_SKIP() << "this fabric copies nothing";
  ASSERT_GE(size, 32u);
  std::vector<std::byte> mine(size, std::byte{4});
  Send(0, Opcode::kWrite, 1, Sge{mine.data(), size, 0}, Remote(1, 0));
  std::fill(mine.begin(), mine.end(), std::byte{5});
  ASSERT_TRUE(Until([&] { return Done(0, 1); }));
  EXPECT_EQ(side(0).StatusOf(1), WcStatus::kOk);
  EXPECT_TRUE(AreaIs(1, 0, size, 4));
}

TEST_P(ConformanceTest, F9_SendsMayGoOnForEverWithinTheLimits) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::uint32_t sends_max = end(0).limits().sends_max;
  ASSERT_GE(sends_max, kAskedLimits.sends_max);
  for (int round = 0; round < 100; ++round) {
    for (std::uint32_t i = 1; i < sends_max; ++i) {
      Send(0, Opcode::kWrite, 1, Piece(0, 0, 64), Remote(1, 0), 0, false);
    }
    Send(0, Opcode::kWrite, 2, Piece(0, 0, 64), Remote(1, 0));
    ASSERT_TRUE(Until([&] { return Done(0, 2); }));
    side(0).completions.clear();
  }
}

// --- F10 ---

TEST_P(ConformanceTest, F10_DrainedComesAfterTheEventAndTheLastCompletion) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (Cookie cookie = 1; cookie <= 10; ++cookie) Receive(1, cookie, Piece(1, 0, 64));
  end(1).Disconnect();
  for (int host = 0; host < 2; ++host) {
    ASSERT_TRUE(Until([&] {
      if (end(host).drained()) {
        EXPECT_EQ(side(host).Count(Kind::kDisconnected), 1u);
        EXPECT_EQ(side(host).completions.size(), host == 0 ? 0u : 10u);
      }
      return end(host).drained();
    }));
  }
  Settle();
  EXPECT_EQ(side(1).completions.size(), 10u);
  ends_[0].reset();
  ends_[1].reset();
  Settle();
}

TEST_P(ConformanceTest, F10_AfterDrainedNothingTouchesTheReceiversMemory) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  Receive(1, 99, Piece(1, 0, 100'000));
  Fill(0, 0, 100'000, 7);
  Send(0, Opcode::kSend, 1, Piece(0, 0, 100'000));
  for (Cookie cookie = 2; cookie <= 8; ++cookie) {
    Send(0, Opcode::kWrite, cookie, Piece(0, 0, 100'000), Remote(1, 100'000));
  }
  Pump();
  end(1).Disconnect();
  ASSERT_TRUE(Until([&] { return end(1).drained(); }));
  ends_[1].reset();
  Fill(1, 0, kAreaSize, 0x55);
  Settle();
  EXPECT_TRUE(AreaIs(1, 0, kAreaSize, 0x55));
}

// --- F11 ---

TEST_P(ConformanceTest, F11_SendInvalidateKillsTheKeyBeforeTheReceiveCompletes) {
  auto arena = Arena::Create(4096);
  ASSERT_TRUE(arena.ok());
  auto region = fabric(1).Register(arena->bytes(), Access::kRemoteInvalidate);
  ASSERT_TRUE(region.ok());
  ReceiveRequest receive;
  receive.cookie = 9;
  ASSERT_NO_FATAL_FAILURE(Connect({}, {&receive, 1}));
  const RemoteAddress remote{reinterpret_cast<std::uintptr_t>(arena->bytes().data()),
                             (*region)->rkey()};
  Fill(0, 0, 64, 6);
  Send(0, Opcode::kWrite, 1, Piece(0, 0, 64), remote);
  SendRequest request;
  request.cookie = 2;
  request.opcode = Opcode::kSendInvalidate;
  request.invalidate_rkey = remote.rkey;
  end(0).PostSend({&request, 1});
  ASSERT_TRUE(Until([&] { return Done(0, 2) && Done(1, 9); }));
  const Completion got = side(1).Of(9).front();
  EXPECT_EQ(got.status, WcStatus::kOk);
  EXPECT_TRUE(got.has_invalidate);
  EXPECT_EQ(got.invalidated_rkey, remote.rkey);
  EXPECT_EQ(arena->bytes()[0], std::byte{6});
  Fill(0, 0, 64, 8);
  Send(0, Opcode::kWrite, 3, Piece(0, 0, 64), remote);
  ASSERT_TRUE(Until([&] { return Done(0, 3) && BothDisconnected() && DrainedAll(); }));
  EXPECT_EQ(side(0).StatusOf(3), WcStatus::kRemoteAccess);
  EXPECT_EQ(arena->bytes()[0], std::byte{6});
}

TEST_P(ConformanceTest, F11_NamingARegionThatMayNotBeInvalidatedBreaksAndKillsNothing) {
  ReceiveRequest receive;
  receive.cookie = 9;
  ASSERT_NO_FATAL_FAILURE(Connect({}, {&receive, 1}));
  SendRequest request;
  request.cookie = 2;
  request.opcode = Opcode::kSendInvalidate;
  request.invalidate_rkey = regions_[1]->rkey();
  end(0).PostSend({&request, 1});
  ASSERT_TRUE(Until([&] { return Done(0, 2) && BothDisconnected() && DrainedAll(); }));
  EXPECT_EQ(side(0).StatusOf(2), WcStatus::kRemoteAccess);
  // The key still works, over a new connection.
  for (auto& e : ends_) e.reset();
  for (auto* s : {&side(0), &side(1)}) *s = Side{s->poller, {}, {}, {}};
  listener_.reset();
  ASSERT_NO_FATAL_FAILURE(Connect());
  Fill(0, 0, 64, 6);
  Send(0, Opcode::kWrite, 3, Piece(0, 0, 64), Remote(1, 0));
  ASSERT_TRUE(Until([&] { return Done(0, 3); }));
  EXPECT_TRUE(AreaIs(1, 0, 64, 6));
}

// --- F12 ---

TEST_P(ConformanceTest, F12_PrivateDataReachesBothSidesAndAddressesAgree) {
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  std::string data(56, 'x');
  data[0] = '\0';
  ASSERT_NO_FATAL_FAILURE(StartConnect({}, data));
  ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); }));
  EXPECT_EQ(side(1).Find(Kind::kIncoming)->context, 77u);
  EXPECT_EQ(Text(side(1).incoming.front()->private_data()).substr(0, 56), data);
  const std::string answer(56, 'y');  // As much as every fabric carries.
  ASSERT_NO_FATAL_FAILURE(Accept({}, answer));
  ASSERT_TRUE(Until([&] { return side(0).Count(Kind::kEstablished) == 1; }));
  EXPECT_EQ(side(0).Find(Kind::kEstablished)->private_data.substr(0, 56), answer);
  EXPECT_EQ(side(0).Find(Kind::kEstablished)->context, 100u);
  EXPECT_EQ(end(0).peer_address().ToString(), listener_->local_address().ToString());
  EXPECT_EQ(end(1).peer_address().ToString(), end(0).local_address().ToString());
}

TEST_P(ConformanceTest, F12_ReceivesOfTheOptionsAreThereBeforeThePeersFirstMessage) {
  const Sge mine = Piece(0, 0, 64);
  const Sge theirs = Piece(1, 0, 64);
  ReceiveRequest active, passive;
  active.cookie = 1;
  active.sges = {&mine, 1};
  passive.cookie = 2;
  passive.sges = {&theirs, 1};
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect({&active, 1}));
  ASSERT_NO_FATAL_FAILURE(Accept({&passive, 1}));
  // The passive side may send at once.
  Fill(1, 1000, 64, 4);
  Send(1, Opcode::kSend, 20, Piece(1, 1000, 64));
  ASSERT_TRUE(Until([&] { return side(0).Count(Kind::kEstablished) == 1; }));
  Fill(0, 1000, 64, 3);
  Send(0, Opcode::kSend, 10, Piece(0, 1000, 64));
  ASSERT_TRUE(Until([&] { return Done(0, 1) && Done(1, 2) && Done(0, 10) && Done(1, 20); }));
  EXPECT_TRUE(AreaIs(0, 0, 64, 4));
  EXPECT_TRUE(AreaIs(1, 0, 64, 3));
}

TEST_P(ConformanceTest, F12_ARejectionCarriesItsReasonAndLeavesADrainedConnection) {
  const Sge mine = Piece(0, 0, 64);
  ReceiveRequest receive;
  receive.cookie = 1;
  receive.sges = {&mine, 1};
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect({&receive, 1}));
  ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); }));
  side(1).incoming.front()->Reject(Bytes("no such session"));
  side(1).incoming.clear();
  ASSERT_TRUE(Until([&] { return side(0).Count(Kind::kRejected) == 1; }));
  EXPECT_EQ(side(0).Find(Kind::kRejected)->private_data.substr(0, 15), "no such session");
  EXPECT_TRUE(end(0).drained());
  EXPECT_TRUE(side(0).completions.empty());
}

TEST_P(ConformanceTest, F12_AnUnansweredRequestIsRejected) {
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect());
  ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); }));
  side(1).incoming.clear();
  ASSERT_TRUE(Until([&] { return side(0).Count(Kind::kRejected) == 1; }));
  EXPECT_TRUE(end(0).drained());
}

TEST_P(ConformanceTest, F12_WhereNobodyListensTheConnectionIsUnreachable) {
  auto started = side(0).poller->StartConnect(world_->dead_address(), Options(100), {});
  ASSERT_TRUE(started.ok()) << started.status();
  ends_[0] = *std::move(started);
  ASSERT_TRUE(Until([&] { return side(0).Count(Kind::kUnreachable) == 1; }));
  EXPECT_LT(side(0).Find(Kind::kUnreachable)->error, 0);
  EXPECT_TRUE(end(0).drained());
}

TEST_P(ConformanceTest, F12_DisconnectWhileConnectingEndsTheAttempt) {
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect());
  end(0).Disconnect();
  ASSERT_TRUE(Until([&] { return end(0).drained(); }));
  EXPECT_EQ(side(0).Count(Kind::kDisconnected), 1u);
  Settle();
  side(1).incoming.clear();
}

}  // namespace ibnbd::fabric
