// SPDX-License-Identifier: Apache-2.0
// That the decorator's faults happen, and that its text form says what is wrong with it.  That it
// keeps the clauses of fabric.h is tested by fabric_conformance_test.cc.
#include "fabric/faulty_fabric.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fabric/sim/test_pair.h"

namespace ibnbd::fabric {
namespace {
using sim::FaultPlan;
using sim::kReceiveCookie;
using sim::Pair;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

FaultSpec Spec(absl::string_view text) { return ParseFaultSpec(text).value(); }

Pair::Decorate With(FaultSpec spec) {
  return [spec](Fabric& inner) mutable {
    spec.seed += 1000;  // The two ends throw dice of their own.
    return std::make_unique<FaultyFabric>(inner, spec);
  };
}

TEST(FaultSpecTest, ReadsEveryFault) {
  const FaultSpec spec = Spec("cut-every=500ms,refuse=10%,delay=1ms..5ms,seed=7,cut-post=100ppm");
  EXPECT_EQ(spec.cut_every_ns, 500 * kNsPerMs);
  EXPECT_EQ(spec.refuse_ppm, 100'000u);
  EXPECT_EQ(spec.delay_ns_min, 1 * kNsPerMs);
  EXPECT_EQ(spec.delay_ns_max, 5 * kNsPerMs);
  EXPECT_EQ(spec.seed, 7u);
  EXPECT_EQ(spec.cut_post_ppm, 100u);
}

TEST(FaultSpecTest, OneTimeIsADelayThatNeverVaries) {
  const FaultSpec spec = Spec("delay=20us");
  EXPECT_EQ(spec.delay_ns_min, 20 * kNsPerUs);
  EXPECT_EQ(spec.delay_ns_max, 20 * kNsPerUs);
}

TEST(FaultSpecTest, ItsTextParsesToTheSame) {
  const FaultSpec spec = Spec("cut-every=1s,refuse=0.5%,delay=1ms..5ms,seed=9,cut-post=1ppm");
  EXPECT_EQ(Spec(spec.ToString()).ToString(), spec.ToString());
}

TEST(FaultSpecTest, RefusesNonsenseByName) {
  const auto message = [](absl::string_view text) {
    return std::string(ParseFaultSpec(text).status().message());
  };
  EXPECT_THAT(message("cut-evry=1s"), AllOf(HasSubstr("cut-evry"), HasSubstr("unknown fault")));
  EXPECT_THAT(message("seed=1,refuse=10"), AllOf(HasSubstr("refuse=10"), HasSubstr("probability")));
  EXPECT_THAT(message("refuse=101%"), HasSubstr("probability"));
  EXPECT_THAT(message("refuse=-1%"), HasSubstr("probability"));
  EXPECT_THAT(message("refuse=nan%"), HasSubstr("probability"));
  EXPECT_THAT(message("cut-every=500"), HasSubstr("time"));
  EXPECT_THAT(message("cut-every=0ms"), HasSubstr("time"));
  EXPECT_THAT(message("cut-every=9999999999999999s"), HasSubstr("time"));
  EXPECT_THAT(message("delay=5ms..1ms"), HasSubstr("backwards"));
  EXPECT_THAT(message("delay=1ms..2ms..3ms"), HasSubstr("range"));
  EXPECT_THAT(message("seed=x"), HasSubstr("number"));
  EXPECT_THAT(message("refuse"), HasSubstr("name=value"));
  EXPECT_THAT(message(""), HasSubstr("name=value"));
}

TEST(FaultyFabricTest, RefusedConnectIsUnreachableAndDead) {
  Pair pair(1, FaultPlan(), With(Spec("refuse=100%")));
  pair.StartConnect();
  pair.world.RunFor(kNsPerMs);
  EXPECT_THAT(pair.client->kinds, ElementsAre(CmEvent::Kind::kUnreachable));
  EXPECT_TRUE(pair.client->connection->drained());
}

TEST(FaultyFabricTest, SomeRequestsAreRefusedByTheListenersSide) {
  int rejected = 0, established = 0;
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    FaultSpec spec = Spec("refuse=50%");
    spec.seed = seed;
    Pair pair(seed, FaultPlan(), With(spec));
    pair.StartConnect();
    pair.world.RunFor(20 * kNsPerSecond);
    rejected += pair.client->Saw(CmEvent::Kind::kRejected);
    established += pair.client->Saw(CmEvent::Kind::kEstablished);
  }
  EXPECT_GT(rejected, 2);
  EXPECT_GT(established, 2);
}

TEST(FaultyFabricTest, EveryConnectionIsCutAroundItsTime) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    FaultSpec spec = Spec("cut-every=100ms");
    spec.seed = seed;
    Pair pair(seed, FaultPlan(), With(spec));
    pair.Connect();
    pair.world.RunFor(40 * kNsPerMs);
    EXPECT_FALSE(pair.client->Saw(CmEvent::Kind::kDisconnected));
    pair.world.RunFor(200 * kNsPerMs);
    EXPECT_TRUE(pair.client->Gone());
    EXPECT_TRUE(pair.server->Gone());
  }
}

TEST(FaultyFabricTest, CutAtAPostFlushesWhatWasPosted) {
  Pair pair(1, FaultPlan(), With(Spec("cut-post=100%")));
  pair.Connect();
  pair.client->Write(*pair.server, 0, 0, 1);
  pair.world.RunFor(kNsPerSecond);
  EXPECT_TRUE(pair.client->Gone());
  EXPECT_EQ(pair.client->completions.size(), 1u + sim::kSlotCount / 2);
}

TEST(FaultyFabricTest, CompletionsComeLateAndInOrder) {
  Pair pair(1, FaultPlan(), With(Spec("delay=1ms..5ms")));
  pair.Connect();
  for (std::uint32_t i = 0; i < 8; ++i) {
    pair.client->Write(*pair.server, i, i, i, Opcode::kWriteImm);
  }
  pair.world.RunFor(900 * kNsPerUs);
  EXPECT_TRUE(pair.client->completions.empty());
  EXPECT_TRUE(pair.server->completions.empty());
  pair.world.RunFor(5 * kNsPerMs);
  ASSERT_EQ(pair.client->completions.size(), 8u);
  ASSERT_EQ(pair.server->completions.size(), 8u);
  for (std::uint32_t i = 0; i < 8; ++i) {
    EXPECT_EQ(pair.client->completions[i].cookie, i);
    EXPECT_EQ(pair.server->completions[i].cookie, kReceiveCookie + i);
  }
}

TEST(FaultyFabricTest, NotDrainedWhileCompletionsAreHeldBack) {
  Pair pair(1, FaultPlan(), With(Spec("delay=50ms")));
  pair.Connect();
  pair.client->connection->Disconnect();
  pair.world.RunFor(10 * kNsPerMs);
  ASSERT_TRUE(pair.client->Saw(CmEvent::Kind::kDisconnected));
  EXPECT_FALSE(pair.client->connection->drained());
  EXPECT_TRUE(pair.client->completions.empty());
  pair.world.RunFor(50 * kNsPerMs);
  EXPECT_EQ(pair.client->completions.size(), sim::kSlotCount / 2);
  EXPECT_TRUE(pair.client->connection->drained());
}

}  // namespace
}  // namespace ibnbd::fabric
