// SPDX-License-Identifier: Apache-2.0
// The simulated world itself: determinism, and that each fault it promises really happens.  The
// clauses of fabric.h are tested by fabric_conformance_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mark.h"
#include "fabric/sim/marks.h"
#include "fabric/sim/sim_world.h"
#include "fabric/sim/test_pair.h"

namespace ibnbd::sim {
namespace {
using fabric::CmEvent;
using fabric::Opcode;
using fabric::WcStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A storm on one connection after another; what it looked like.
std::uint64_t StormHash(std::uint64_t seed, FaultCounts* counts = nullptr) {
  Prng prng(seed);
  FaultPlan plan = DrawSwarmPlan(prng);
  plan.connect_refused_ppm = plan.connect_rejected_ppm = 0;
  plan.connect_silent_ppm = plan.accept_lost_ppm = 0;
  plan.cut_ppm = 20'000;
  Pair pair(seed, plan);
  pair.StartConnect();
  pair.world.RunFor(30 * kNsPerSecond);
  if (pair.client->Saw(CmEvent::Kind::kEstablished)) {
    for (std::uint32_t i = 0; i < kSlotCount / 2 && !pair.client->Gone(); ++i) {
      pair.client->Fill(i, static_cast<int>(i + 1));
      pair.client->Write(*pair.server, i, i, i, Opcode::kWriteImm);
      pair.world.RunFor(20 * kNsPerUs);
    }
  }
  pair.world.RunFor(60 * kNsPerSecond);
  if (counts != nullptr) *counts = pair.world.counts();
  pair.Close();
  EXPECT_THAT(pair.world.violations(), ElementsAre());
  return pair.world.trace_hash();
}

TEST(SimWorldTest, EqualSeedsGiveEqualHistories) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    EXPECT_EQ(StormHash(seed), StormHash(seed)) << "seed " << seed;
  }
}

TEST(SimWorldTest, DifferentSeedsGiveDifferentHistories) {
  std::map<std::uint64_t, std::uint64_t> seed_of;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    EXPECT_TRUE(seed_of.emplace(StormHash(seed), seed).second) << "seed " << seed;
  }
}

TEST(SimWorldTest, StormsOfManySeedsReachEveryFaultOfBreaking) {
  FaultCounts sum;
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    FaultCounts counts;
    StormHash(seed, &counts);
    sum.cuts += counts.cuts;
    sum.landed += counts.landed;
    sum.landed_late += counts.landed_late;
    sum.one_sided_breaks += counts.one_sided_breaks;
    sum.slow_completions += counts.slow_completions;
  }
  EXPECT_GT(sum.cuts, 20u);
  EXPECT_GT(sum.landed, 1000u);
  EXPECT_GT(sum.landed_late, 0u);
  EXPECT_GT(sum.one_sided_breaks, 0u);
  EXPECT_GT(sum.slow_completions, 0u);
}

TEST(SimWorldTest, VirtualTimeJumpsToEventsInOrder) {
  World world(1, FaultPlan());
  const std::int64_t start_ns = world.now_ns();
  std::vector<std::int64_t> at;
  world.Schedule(30, [&] { at.push_back(world.now_ns() - start_ns); });
  world.Schedule(10, [&] {
    at.push_back(world.now_ns() - start_ns);
    world.Schedule(5, [&] { at.push_back(world.now_ns() - start_ns); });
  });
  world.RunFor(20);
  EXPECT_THAT(at, ElementsAre(10, 15));
  EXPECT_EQ(world.now_ns(), start_ns + 20);
  world.RunFor(20);
  EXPECT_THAT(at, ElementsAre(10, 15, 30));
}

TEST(SimWorldTest, TimersOfReactorsFireAtTheirInstant) {
  World world(1, FaultPlan());
  Reactor& reactor = world.AddHost("a").AddReactor();
  std::int64_t fired_ns = 0;
  Timer timer(reactor.timers(), [&] { fired_ns = world.now_ns(); });
  timer.ArmAt(world.now_ns() + kNsPerMs);
  const std::int64_t due_ns = world.now_ns() + kNsPerMs;
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(fired_ns, due_ns);
}

TEST(SimWorldTest, StalledReactorTakesNoTurnsUntilItsStallEnds) {
  World world(1, FaultPlan());
  Host& host = world.AddHost("a");
  Reactor& reactor = host.AddReactor();
  const std::int64_t start_ns = world.now_ns();
  std::int64_t ran_ns = 0;
  world.StallReactor(reactor, kNsPerMs);
  reactor.Post([&] { ran_ns = world.now_ns(); });
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(ran_ns, start_ns + kNsPerMs);
}

TEST(SimWorldTest, AClockThatLeapsAheadFiresTheTimersOfItsHostAlone) {
  World world(1, FaultPlan());
  Host& jumper = world.AddHost("jumper");
  Host& other = world.AddHost("other");
  Reactor& jumps = jumper.AddReactor();
  Reactor& stays = other.AddReactor();
  const std::int64_t start_ns = world.now_ns();
  std::int64_t jumper_ns = -1, other_ns = -1;
  Timer jumper_timer(jumps.timers(), [&] { jumper_ns = world.now_ns() - start_ns; });
  Timer other_timer(stays.timers(), [&] { other_ns = world.now_ns() - start_ns; });
  jumper_timer.ArmAfter(10 * kNsPerSecond);
  other_timer.ArmAfter(10 * kNsPerSecond);
  world.RunFor(kNsPerSecond);
  world.JumpClock(jumper, 6 * kNsPerSecond);
  EXPECT_EQ(world.counts().clock_jumps, 1u);
  world.RunFor(20 * kNsPerSecond);
  EXPECT_EQ(jumper_ns, 4 * kNsPerSecond);
  EXPECT_EQ(other_ns, 10 * kNsPerSecond);
  jumper_ns = -1;
  jumper_timer.ArmAfter(kNsPerSecond);
  world.JumpClock(jumper, kNsPerSecond * 100);  // Long due: at once.
  const std::int64_t jump_ns = world.now_ns() - start_ns;
  world.RunFor(kNsPerSecond / 2);
  EXPECT_LE(jumper_ns, jump_ns + 1);
  EXPECT_GE(jumper_ns, jump_ns);
}

TEST(SimWorldTest, TurnsThatNeverEndAreReported) {
  class Busy final : public ReactorSource {
   public:
    bool Poll() override { return true; }
  };
  World world(1, FaultPlan());
  Reactor& reactor = world.AddHost("a").AddReactor();
  Busy busy;
  reactor.AddSource(busy);
  world.RunFor(1);
  EXPECT_THAT(world.violations(), ElementsAre(HasSubstr("livelock")));
  reactor.RemoveSource(busy);
}

TEST(SimFabricTest, WriteLandsAndReceiveCarriesTheImmediate) {
  Pair pair(1);
  pair.Connect();
  pair.client->Fill(0, 42);
  pair.client->Write(*pair.server, 0, 3, 17, Opcode::kWriteImm);
  pair.world.RunFor(kNsPerMs);
  EXPECT_EQ(pair.server->At(3), 42);
  ASSERT_EQ(pair.server->completions.size(), 1u);
  EXPECT_EQ(pair.server->completions[0].imm, 17u);
  EXPECT_EQ(pair.server->completions[0].opcode, Opcode::kReceiveWriteImm);
  ASSERT_EQ(pair.client->completions.size(), 1u);
  EXPECT_EQ(pair.client->completions[0].status, WcStatus::kOk);
}

TEST(SimFabricTest, SourceIsReadWhenItLandsAndEarlyReuseIsReported) {
  Pair pair(1);
  pair.Connect();
  pair.client->Fill(0, 42);
  pair.client->Write(*pair.server, 0, 3, 17);
  pair.client->Fill(0, 99);  // F9 broken on purpose.
  pair.world.RunFor(kNsPerMs);
  EXPECT_EQ(pair.server->At(3), 99);
  EXPECT_THAT(pair.world.violations(), ElementsAre(HasSubstr("F9")));
}

TEST(SimFabricTest, CutAtAPostBreaksBothEndsAndFlushesEverything) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    Pair pair(seed);
    pair.Connect();
    pair.world.CutAfterPosts(3);
    for (std::uint32_t i = 0; i < 5; ++i) pair.client->Write(*pair.server, i, i, i);
    EXPECT_TRUE(pair.world.RunUntil([&] { return pair.client->Gone() && pair.server->Gone(); },
                                    10 * kNsPerSecond));
    // Five sends and all receives; the server's receives likewise.
    EXPECT_EQ(pair.client->completions.size(), 5u + kSlotCount / 2) << "seed " << seed;
    EXPECT_EQ(pair.server->completions.size(), 0u + kSlotCount / 2) << "seed " << seed;
  }
}

// What the fence before fail-over exists for: the sender has long been told that its write failed.
TEST(SimFabricTest, WriteOnACutConnectionMayLandLongAfterTheSenderSawTheBreak) {
  int landed_late = 0, landed_partly = 0, never_landed = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    FaultPlan plan;
    plan.late_landing_ppm = 1'000'000;
    plan.one_sided_ppm = 500'000;
    Pair pair(seed, plan);
    pair.Connect();
    pair.client->Fill(0, 42);
    pair.client->Write(*pair.server, 0, 0, 1, Opcode::kWriteImm);
    pair.world.RunFor(0);
    pair.world.CutConnections(pair.client->host, pair.server->host);
    pair.world.RunUntil([&] { return pair.client->Gone(); }, 60 * kNsPerSecond);
    EXPECT_NE(pair.client->completions[0].status, WcStatus::kOk);
    const bool before = pair.server->At(0) == 42;
    pair.world.RunUntil([&] { return pair.server->Gone(); }, 60 * kNsPerSecond);
    const bool whole = std::to_integer<int>(pair.server->memory[kSlotSize - 1]) == 42;
    const bool after = pair.server->At(0) == 42;
    landed_late += !before && after;
    landed_partly += after && !whole;
    never_landed += !after;
    // F10: from here on nothing changes any more, whether or not the connection still exists.
    pair.server->Fill(0, 7);
    if (seed % 2 == 0) pair.server->connection.reset();
    pair.world.RunFor(60 * kNsPerSecond);
    EXPECT_EQ(pair.server->At(0), 7) << "seed " << seed;
  }
  EXPECT_GT(landed_late, 5);
  EXPECT_GT(landed_partly, 5);
  EXPECT_GT(never_landed, 5);
}

TEST(SimFabricTest, LateWriteStillDeliversItsImmediateToAPeerThatKnowsOfNothing) {
  int delivered = 0;
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    FaultPlan plan;
    plan.late_landing_ppm = plan.one_sided_ppm = 1'000'000;
    Pair pair(seed, plan);
    pair.Connect();
    pair.client->Write(*pair.server, 0, 0, 1, Opcode::kWriteImm);
    pair.world.RunFor(0);
    pair.world.CutConnections(pair.client->host, pair.server->host);
    pair.world.RunUntil([&] { return pair.client->Gone(); }, 60 * kNsPerSecond);
    pair.world.RunUntil([&] { return pair.server->Gone(); }, 60 * kNsPerSecond);
    for (const fabric::Completion& completion : pair.server->completions) {
      delivered += completion.status == WcStatus::kOk;
    }
  }
  EXPECT_GT(delivered, 5);
}

TEST(SimFabricTest, PartitionHoldsMessagesAndEndsInPeerGoneWhenItLasts) {
  Pair pair(1);
  pair.Connect();
  pair.world.Partition(pair.client->host, pair.server->host);
  pair.client->Fill(0, 42);
  pair.client->Write(*pair.server, 0, 0, 1);
  pair.world.RunFor(100 * kNsPerMs);
  EXPECT_EQ(pair.server->At(0), 0);
  EXPECT_FALSE(pair.client->Saw(CmEvent::Kind::kDisconnected));
  pair.world.HealPartition(pair.client->host, pair.server->host);
  pair.world.RunFor(kNsPerMs);
  EXPECT_EQ(pair.server->At(0), 42);
  ASSERT_EQ(pair.client->completions.size(), 1u);
  EXPECT_EQ(pair.client->completions[0].status, WcStatus::kOk);

  pair.world.Partition(pair.client->host, pair.server->host);
  pair.client->Write(*pair.server, 0, 0, 2);
  pair.world.RunFor(10 * kNsPerSecond);
  EXPECT_TRUE(pair.client->Saw(CmEvent::Kind::kDisconnected));
  EXPECT_FALSE(pair.server->Saw(CmEvent::Kind::kDisconnected));  // Nobody could tell it.
  EXPECT_EQ(pair.client->completions[1].status, WcStatus::kPeerGone);
  pair.world.HealEverything();
  EXPECT_TRUE(pair.world.RunUntil([&] { return pair.server->Gone(); }, 60 * kNsPerSecond));
}

TEST(SimFabricTest, ConnectFaultsComeToTheCallerAsTheirKind) {
  FaultPlan plan;
  plan.connect_refused_ppm = 1'000'000;
  Pair refused(1, plan);
  refused.StartConnect();
  refused.world.RunFor(20 * kNsPerSecond);
  EXPECT_THAT(refused.client->kinds, ElementsAre(CmEvent::Kind::kUnreachable));
  EXPECT_TRUE(refused.client->connection->drained());

  plan = FaultPlan();
  plan.connect_rejected_ppm = 1'000'000;
  Pair rejected(1, plan);
  rejected.StartConnect();
  rejected.world.RunFor(20 * kNsPerSecond);
  EXPECT_THAT(rejected.client->kinds, ElementsAre(CmEvent::Kind::kRejected));

  plan = FaultPlan();
  plan.accept_lost_ppm = 1'000'000;
  Pair lost(1, plan);
  lost.StartConnect();
  lost.world.RunFor(60 * kNsPerSecond);
  EXPECT_THAT(lost.client->kinds, ElementsAre(CmEvent::Kind::kUnreachable));
  EXPECT_THAT(lost.server->kinds,
              ElementsAre(CmEvent::Kind::kIncoming, CmEvent::Kind::kDisconnected));
}

TEST(SimFabricTest, CrashedHostVanishesAndItsGhostsMayDieInAnyState) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Pair pair(seed);
    pair.Connect();
    Host& host = pair.server->host;
    pair.world.CrashHost(host);
    pair.server.reset();  // Undrained.
    pair.client->Fill(0, 1);
    ASSERT_NO_FATAL_FAILURE();
    EXPECT_TRUE(pair.world.RunUntil([&] { return pair.client->Gone(); }, 60 * kNsPerSecond));
    pair.world.RestartHost(host);
    pair.server = std::make_unique<Peer>(host);
    pair.server->listener = pair.server->poller->Listen(host.Address(0), 7).value();
    pair.client->kinds.clear();
    pair.StartConnect();
    pair.world.RunFor(kNsPerSecond);
    EXPECT_THAT(pair.client->kinds, ElementsAre(CmEvent::Kind::kEstablished)) << "seed " << seed;
  }
}

TEST(SimFabricTest, ThawedGhostsSeeTheirConnectionsBrokenAndReachNobody) {
  Pair pair(3);
  pair.Connect();
  pair.world.CrashHost(pair.server->host);
  pair.world.RunFor(kNsPerSecond);
  EXPECT_FALSE(pair.server->Saw(CmEvent::Kind::kDisconnected));
  pair.world.ThawCrashed(pair.server->host);
  pair.world.RunFor(kNsPerSecond);
  EXPECT_TRUE(pair.server->Gone());
}

TEST(SimFabricDeathTest, DestroyingAnUndrainedConnectionIsABug) {
  Pair pair(1);
  pair.Connect();
  EXPECT_DEATH(pair.client->connection.reset(), "drained");
}

TEST(SimFabricDeathTest, PostingBeyondTheLimitIsABug) {
  Pair pair(1);
  pair.Connect();
  for (std::uint32_t i = 0; i < kLimits.sends_max; ++i) {
    pair.client->Write(*pair.server, 0, 0, i);
  }
  EXPECT_DEATH(pair.client->Write(*pair.server, 0, 0, 99), "sends_max");
}

TEST(SimMarksTest, OnlyWhatHappensWhileTheyLiveIsCounted) {
  SIM_MARK("test: before");
  {
    Marks marks;
    SIM_MARK("test: twice");
    SIM_MARK("test: twice");
    EXPECT_EQ(marks.count("test: twice"), 2u);
    EXPECT_EQ(marks.count("test: before"), 0u);
    EXPECT_EQ(marks.counts().size(), 1u);
  }
  SIM_MARK("test: after");
  EXPECT_EQ(Marks().count("test: after"), 0u);
}

}  // namespace
}  // namespace ibnbd::sim
