// SPDX-License-Identifier: Apache-2.0
// The second half of the contract, F7 to F12: progress, threads, lifetimes, keys, and setting up.
// See fabric_conformance_test.cc.
#include <gtest/gtest.h>

#include "fabric/conformance_fixture.h"

namespace ibnbd::fabric {

using Kind = CmEvent::Kind;

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
  if (absl::IsUnimplemented(region.status())) GTEST_SKIP() << "SKIP " << region.status().message();
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
  if (world_->names_every_fault()) {
    EXPECT_EQ(side(0).StatusOf(2), WcStatus::kRemoteAccess);
  }
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
  const std::string peer = side(1).incoming.front()->peer_address().ToString();
  side(1).incoming.front()->Reject(Bytes("no such session"));
  EXPECT_EQ(side(1).incoming.front()->peer_address().ToString(), peer)
      << "who logs it asks afterwards";
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

TEST_P(ConformanceTest, F12_AcceptingWhoHasGoneAwayFailsOrIsAConnectionThatEnds) {
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect());
  ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); }));
  end(0).Disconnect();
  ASSERT_TRUE(Until([&] { return end(0).drained(); }));
  ends_[0].reset();
  Settle();
  const Sge piece = Piece(1, 0, 64);
  ReceiveRequest receive;
  receive.cookie = 1;
  receive.sges = {&piece, 1};
  auto accepted = side(1).incoming.front()->Accept(
      *side(1).poller, Options(kPassiveContext, {&receive, 1}), Bytes("yes"));
  side(1).incoming.clear();
  if (!accepted.ok()) return;
  ends_[1] = *std::move(accepted);
  EXPECT_TRUE(Until([&] { return side(1).Count(Kind::kDisconnected) == 1; }));
}

}  // namespace ibnbd::fabric
