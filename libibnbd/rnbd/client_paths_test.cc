// SPDX-License-Identifier: Apache-2.0
// A session with two paths, each on a network of its own: what is in flight on one that is lost
// goes on over the other, once, and never before the server has let go of the old one.
#include <cerrno>
#include <cstring>

#include "fabric/sim/marks.h"
#include "gmock/gmock.h"
#include "tests/support/client_world.h"

namespace ibnbd::rnbd {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kDiskSize = 8 << 20;
constexpr std::size_t kIoSize = 4096;

class ClientPathsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    disk_ = std::make_shared<FakeDisk>(FakeGeometry(kDiskSize));
    backend_ = &node_.exports().Add("vol0", disk_, {kNsPerUs, 50 * kNsPerUs});
    StartServer();
    client_.options().session.more_paths = {{Address(1)}};
  }
  void TearDown() override { EXPECT_THAT(world_.violations(), ::testing::IsEmpty()); }
  void StartServer() {
    node_.Start();
    ASSERT_TRUE(node_.server().Listen(Address(1)).ok());
    ASSERT_TRUE(node_.server().Listen(Address(2)).ok());
  }
  SocketAddress Address(std::uint32_t rail) { return node_.host().Address(1234, rail); }
  rtrs::ClientSession& session() { return client_.client().session(); }
  std::size_t UpCount() {
    std::size_t count = 0;
    for (const rtrs::PathInfo& path : session().paths()) {
      count += path.state == rtrs::PathState::kUp ? 1 : 0;
    }
    return count;
  }
  bool AwaitUp(std::size_t count) {
    return world_.RunUntil([&] { return UpCount() >= count; }, 30 * kNsPerSecond);
  }
  Device* StartAndOpen(rtrs::PathPolicyKind policy = rtrs::PathPolicyKind::kRoundRobin) {
    client_.options().session.policy = policy;
    const absl::Status status = client_.Start(node_.address());
    EXPECT_TRUE(status.ok()) << status;
    const auto device = client_.Open("vol0");
    EXPECT_TRUE(device.ok()) << device.status();
    EXPECT_TRUE(AwaitUp(2));
    return device.ok() ? *device : nullptr;
  }
  void Cut(std::uint32_t rail) { world_.CutConnections(client_.host(), node_.host(), rail); }

  // Not the network either, as TCP does not for a quarter of an hour.
  void NobodyElseNotices() {
    sim::FaultPlan plan = world_.plan();
    plan.retry_timeout_ns = {1000 * kNsPerSecond, 1000 * kNsPerSecond};
    world_.set_plan(plan);
  }

  // `count` IOs of one kind, each on its own block, on alternating lanes.
  void SubmitMany(Device& device, IoOp op, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      ios_.push_back(client_.Make(op, i * kIoSize, kIoSize, i * kIoSize));
      ASSERT_EQ(device.queue(i % ClientNode::kLanes).Submit(*ios_.back()), 0);
    }
  }
  // One after the other, faster than they are answered.
  void SubmitFor(Device& device, std::int64_t ns) {
    for (; ns > 0; ns -= 2 * kNsPerMs) {
      SubmitMany(device, IoOp::kRead, ClientNode::kLanes);
      world_.RunFor(2 * kNsPerMs);
    }
  }
  void StallLanes(std::int64_t ns) {
    for (std::size_t i = 0; i < ClientNode::kLanes; ++i) {
      world_.StallReactor(client_.lane_reactor(i), ns);
    }
  }
  bool AwaitAll(std::int64_t ns = 30 * kNsPerSecond) {
    return world_.RunUntil(
        [&] {
          return std::all_of(ios_.begin(), ios_.end(),
                             [](const auto& io) { return io->done_count > 0; });
        },
        ns);
  }
  void ExpectAllOnceAndWell() {
    for (const auto& io : ios_) {
      EXPECT_EQ(io->done_count, 1);
      EXPECT_EQ(io->result, 0);
    }
  }
  bool DiskHasMemory(std::size_t size) {
    return std::memcmp(disk_->current().data(), client_.memory().data(), size) == 0;
  }
  // Each path's, in order.
  std::uint64_t IosOf(std::size_t path) {
    const rtrs::PathInfo info = session().paths()[path];
    return info.reads + info.writes;
  }

  sim::Marks marks_;
  sim::World world_{5, sim::FaultPlan{}};
  ServerNode node_{world_};
  ClientNode client_{world_, "client"};
  std::shared_ptr<FakeDisk> disk_;
  FakeBackend* backend_ = nullptr;
  std::vector<std::unique_ptr<TestIo>> ios_;
};

TEST_F(ClientPathsTest, BothPathsCarryIos) {
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(100 * kIoSize), 1);
  SubmitMany(*device, IoOp::kWrite, 100);
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_TRUE(DiskHasMemory(100 * kIoSize));
  EXPECT_GE(IosOf(0), 40u);
  EXPECT_GE(IosOf(1), 40u);
}

TEST_F(ClientPathsTest, APathThatIsCutUnderLoadLosesNothingAndTheSessionStaysUp) {
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(200 * kIoSize), 2);
  for (std::uint32_t rail = 0; rail < 2; ++rail) {
    ios_.clear();
    SubmitMany(*device, IoOp::kWrite, 200);
    world_.RunFor(20 * kNsPerUs);  // Some are on their way.
    Cut(rail);
    const std::int64_t cut_ns = world_.now_ns();
    ASSERT_TRUE(AwaitAll());
    EXPECT_LT(world_.now_ns() - cut_ns, kNsPerSecond);
    ExpectAllOnceAndWell();
    EXPECT_TRUE(DiskHasMemory(200 * kIoSize));
    EXPECT_EQ(device->state(), DeviceState::kOpen);
    ASSERT_TRUE(AwaitUp(2));
  }
  EXPECT_EQ(session().stats().failovers, 2u);
  EXPECT_GE(marks_.count("client: request repeated on another path"), 2u);
  EXPECT_GE(marks_.count("client: path fenced") + marks_.count("client: reconnected"), 2u);
  EXPECT_EQ(device->queue(0).stats().reissued + device->queue(1).stats().reissued, 0u);  // By rnbd.
}

TEST_F(ClientPathsTest, AWriteIsNotSentAgainWhileTheOldOneExecutes) {
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(8 * kIoSize), 3);
  backend_->HoldIos();
  SubmitMany(*device, IoOp::kWrite, 8);
  world_.RunFor(10 * kNsPerMs);
  ASSERT_EQ(backend_->executing_count(), 8u);
  Cut(0);
  world_.RunFor(2 * kNsPerSecond);
  EXPECT_EQ(backend_->count(BackendOp::kWrite), 8u);  // None came twice.
  EXPECT_EQ(marks_.count("client: path fenced"), 0u);
  backend_->Release();
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_GT(backend_->count(BackendOp::kWrite), 8u);  // Those of the lost path did.
  EXPECT_TRUE(DiskHasMemory(8 * kIoSize));
}

// A path that is connecting again, because the server keeps it out while its old write executes,
// must not stand in the way of the others' fences.
class ClientPathsTestAfter : public ClientPathsTest,
                             public ::testing::WithParamInterface<std::int64_t> {};
INSTANTIATE_TEST_SUITE_P(Ms, ClientPathsTestAfter,
                         ::testing::Values(2'000, 10'050, 10'150, 10'300, 10'600, 11'000, 15'000));

TEST_P(ClientPathsTestAfter, APathIsRemovedWhileAnotherOneIsConnectingAgain) {
  client_.options().session.more_paths = {{Address(1)}, {Address(2)}};
  Device* device = StartAndOpen();
  ASSERT_TRUE(AwaitUp(3));
  const std::vector<rtrs::PathInfo> paths = session().paths();
  FillPattern(client_.memory().first(12 * kIoSize), 7);
  backend_->HoldIos();
  SubmitMany(*device, IoOp::kWrite, 12);  // Each path has some.
  world_.RunFor(10 * kNsPerMs);
  ASSERT_EQ(backend_->executing_count(), 12u);
  Cut(0);
  world_.RunFor(GetParam() * kNsPerMs);
  std::optional<absl::Status> removed;
  session().RemovePath(paths[1].id, [&](const absl::Status& status) { removed = status; });
  world_.RunFor(kNsPerSecond);
  EXPECT_FALSE(removed.has_value());
  backend_->Release();
  EXPECT_TRUE(AwaitAll(60 * kNsPerSecond));
  EXPECT_TRUE(world_.RunUntil([&] { return removed.has_value(); }, 60 * kNsPerSecond));
  EXPECT_TRUE(removed.has_value() && removed->ok());
  ExpectAllOnceAndWell();
  EXPECT_TRUE(DiskHasMemory(12 * kIoSize));
  EXPECT_TRUE(AwaitUp(2));
}

TEST_F(ClientPathsTest, ASilentPathIsGivenUpInLessThanASecond) {
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kAdaptive);
  FillPattern(client_.memory().first(64 * kIoSize), 4);
  SubmitMany(*device, IoOp::kWrite, 64);
  world_.RunFor(20 * kNsPerUs);
  world_.Partition(client_.host(), node_.host(), 1);
  const std::int64_t lost_ns = world_.now_ns();
  ASSERT_TRUE(AwaitAll());
  EXPECT_LT(world_.now_ns() - lost_ns, kNsPerSecond);
  ExpectAllOnceAndWell();
  EXPECT_EQ(marks_.count("client: a silent path was given up"), 1u);
  EXPECT_EQ(device->state(), DeviceState::kOpen);
  // While it is away the other one serves; when it is back, it is used again.
  ios_.clear();
  SubmitMany(*device, IoOp::kRead, 64);
  ASSERT_TRUE(AwaitAll(kNsPerSecond));
  world_.HealPartition(client_.host(), node_.host(), 1);
  EXPECT_TRUE(AwaitUp(2));
}

// There are no hedged reads (docs/decisions/0008-paths.md); this is the bound that makes them
// dispensable.
TEST_F(ClientPathsTest, ReadsThatAreStuckOnASilentPathGoOverTheOtherWithin600Ms) {
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kAdaptive);
  for (int round = 0; round < 5; ++round) {
    ios_.clear();
    SubmitMany(*device, IoOp::kRead, 64);
    world_.RunFor(round * 37 % 150 * kNsPerMs + 20 * kNsPerUs);  // Between probes.
    SubmitMany(*device, IoOp::kRead, 64);
    world_.RunFor(20 * kNsPerUs);
    world_.Partition(client_.host(), node_.host(), 1);
    const std::int64_t lost_ns = world_.now_ns();
    ASSERT_TRUE(AwaitAll());
    EXPECT_GT(world_.now_ns() - lost_ns, 100 * kNsPerMs);  // Some were stuck.
    EXPECT_LT(world_.now_ns() - lost_ns, 605 * kNsPerMs);
    ExpectAllOnceAndWell();
    world_.HealPartition(client_.host(), node_.host(), 1);
    ASSERT_TRUE(AwaitUp(2));
  }
}

TEST_F(ClientPathsTest, ABrownOutIsNoticedIn100MsAndCostsNextToNothingFromThenOn) {
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kAdaptive);
  const auto read_one = [&] {
    const std::int64_t begun_ns = world_.now_ns();
    EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 0, kIoSize)), 0);
    return world_.now_ns() - begun_ns;
  };
  for (int i = 0; i < 200; ++i) read_one();
  for (const std::int64_t extra_ns : {kNsPerMs, 20 * kNsPerMs}) {
    ASSERT_FALSE(session().paths()[1].drained_by_policy);
    world_.SetLinkDelay(client_.host(), node_.host(), {extra_ns, extra_ns}, 1);
    const std::int64_t begun_ns = world_.now_ns();
    while (!session().paths()[1].drained_by_policy && world_.now_ns() - begun_ns < kNsPerSecond) {
      read_one();
    }
    EXPECT_LT(world_.now_ns() - begun_ns, 100 * kNsPerMs);
    int slow = 0;
    for (int i = 0; i < 1000; ++i) slow += read_one() > extra_ns ? 1 : 0;
    EXPECT_LT(slow, 10);  // Probes: a p99 does not see them.
    EXPECT_EQ(session().stats().failovers, 0u);
    world_.SetLinkDelay(client_.host(), node_.host(), {-1, -1}, 1);
    for (int i = 0; i < 100'000 && session().paths()[1].drained_by_policy; ++i) read_one();
  }
}

// As when a network spreads connections over several links and one of them swallows everything.
TEST_F(ClientPathsTest, AConnectionThatIsStuckAloneIsNoticedWithItsPath) {
  NobodyElseNotices();
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kRoundRobin);
  FillPattern(client_.memory().first(64 * kIoSize), 8);
  for (std::size_t connection = 1; connection <= ClientNode::kLanes; ++connection) {
    ios_.clear();
    SubmitMany(*device, IoOp::kWrite, 64);
    world_.RunFor(20 * kNsPerUs);
    world_.SwallowConnection(client_.host(), node_.host(), 1, connection);
    const std::int64_t lost_ns = world_.now_ns();
    ASSERT_TRUE(AwaitAll());
    EXPECT_LT(world_.now_ns() - lost_ns, kNsPerSecond);
    ExpectAllOnceAndWell();
    EXPECT_EQ(marks_.count("client: a silent path was given up"), connection);
    EXPECT_EQ(device->state(), DeviceState::kOpen);
    ASSERT_TRUE(AwaitUp(2));  // With other connections.
  }
  EXPECT_TRUE(DiskHasMemory(64 * kIoSize));
}

TEST_F(ClientPathsTest, AStuckConnectionOfTheOnlyPathIsNoticedByHeartbeats) {
  NobodyElseNotices();
  client_.options().session.more_paths.clear();
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  Device* device = *client_.Open("vol0");
  world_.SwallowConnection(client_.host(), node_.host(), 0, 2);
  const std::int64_t lost_ns = world_.now_ns();
  SubmitMany(*device, IoOp::kWrite, 64);
  ASSERT_TRUE(AwaitAll());
  EXPECT_GT(world_.now_ns() - lost_ns, 5 * kNsPerSecond);
  EXPECT_LT(world_.now_ns() - lost_ns, 11 * kNsPerSecond);
  ExpectAllOnceAndWell();
}

TEST_F(ClientPathsTest, AnIdleSessionOutlivesAServerWhoseControlThreadIsHeldUp) {
  client_.options().session.more_paths.clear();
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  Device* device = *client_.Open("vol0");
  world_.StallReactor(node_.control_reactor(), 100 * kNsPerSecond);
  world_.RunFor(100 * kNsPerSecond);
  SubmitMany(*device, IoOp::kWrite, 64);
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_EQ(session().stats().reconnects, 0u);
}

TEST_F(ClientPathsTest, ASlowDiskIsNotTakenForAStuckConnection) {
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kAdaptive);
  backend_->HoldIos();
  SubmitMany(*device, IoOp::kWrite, 8);
  world_.RunFor(100 * kNsPerSecond);
  EXPECT_EQ(session().stats().failovers, 0u);
  EXPECT_EQ(session().stats().reconnects, 0u);
  backend_->Release();
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
}

TEST_F(ClientPathsTest, AServerThatIsSlowAsAWholeIsNotTakenForADeadPath) {
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kAdaptive);
  SubmitMany(*device, IoOp::kWrite, 16);
  world_.StallHost(node_.host(), 3 * kNsPerSecond);
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_EQ(session().stats().failovers, 0u);
}

// One path speaks until the server stalls, the other, idle, had just been asked, or is about to be.
TEST_F(ClientPathsTest, AShortStallOfTheServerIsNoEvidenceAgainstThePathThatWasIdle) {
  Device* device = StartAndOpen();
  world_.SetLinkDelay(client_.host(), node_.host(), {5 * kNsPerMs, 5 * kNsPerMs});
  ASSERT_TRUE(session().SetPathWeight(1, 0).ok());
  for (int i = 0; i < 30; ++i) {
    ios_.clear();
    SubmitFor(*device, 500 * kNsPerMs + i * 10 * kNsPerMs);
    world_.StallHost(node_.host(), 330 * kNsPerMs);
    ASSERT_TRUE(AwaitAll());
    ExpectAllOnceAndWell();
  }
  EXPECT_EQ(session().stats().failovers, 0u);
}

TEST_F(ClientPathsTest, ALaneThatIsPolledSeldomLosesNoPath) {
  Device* device = StartAndOpen();
  world_.SetLinkDelay(client_.host(), node_.host(), {5 * kNsPerMs, 5 * kNsPerMs});
  ASSERT_TRUE(session().SetPathWeight(1, 0).ok());
  for (int i = 0; i < 60; ++i) {
    SubmitFor(*device, 4 * kNsPerMs);  // An answer takes longer.
    StallLanes((330 + i) * kNsPerMs);
    world_.RunFor((331 + i) * kNsPerMs);
  }
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_EQ(session().stats().reconnects, 0u);
}

TEST_F(ClientPathsTest, AQueueThatIsNotPolledForLongDoesNotEndTheOnlyPathOfAll) {
  client_.options().session.more_paths.clear();
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  Device* device = *client_.Open("vol0");
  backend_->HoldIos();
  SubmitMany(*device, IoOp::kWrite, 4);
  for (int i = 0; i < 30; ++i) {
    StallLanes((9 + i % 8) * kNsPerSecond);
    world_.RunFor((9 + i % 8) * kNsPerSecond + kNsPerMs);
  }
  backend_->Release();
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_EQ(session().stats().reconnects, 0u);
}

TEST_F(ClientPathsTest, WhenTheLastPathIsLostIosAreHeldUntilOneIsBack) {
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(100 * kIoSize), 5);
  SubmitMany(*device, IoOp::kWrite, 100);
  world_.RunFor(20 * kNsPerUs);
  Cut(0);
  Cut(1);
  world_.RunFor(10 * kNsPerMs);  // They know it.
  world_.Partition(client_.host(), node_.host());
  world_.RunFor(kNsPerSecond);
  EXPECT_FALSE(session().up()) << session().Describe();
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  world_.HealPartition(client_.host(), node_.host(), 1);  // The other stays away.
  ASSERT_TRUE(AwaitAll(60 * kNsPerSecond));
  ExpectAllOnceAndWell();
  EXPECT_TRUE(DiskHasMemory(100 * kIoSize));
  // Before anything went on, both old paths were gone: one came back, the other was fenced.
  EXPECT_GE(marks_.count("client: path fenced"), 1u);
}

TEST_F(ClientPathsTest, ASessionThatWasDownIsNotUpBeforeItsLostPathIsFenced) {
  Device* device = StartAndOpen();
  world_.Partition(client_.host(), node_.host(), 1);
  ASSERT_TRUE(world_.RunUntil([&] { return UpCount() == 1; }, 60 * kNsPerSecond));
  FillPattern(client_.memory().first(8 * kIoSize), 5);
  backend_->HoldIos();
  SubmitMany(*device, IoOp::kWrite, 8);
  world_.RunFor(10 * kNsPerMs);
  ASSERT_EQ(backend_->executing_count(), 8u);
  Cut(0);
  world_.RunFor(10 * kNsPerMs);  // The server keeps it out while its writes execute.
  world_.HealPartition(client_.host(), node_.host(), 1);
  ASSERT_TRUE(AwaitUp(1));
  world_.RunFor(kNsPerSecond);
  EXPECT_FALSE(session().up()) << session().Describe();
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_EQ(backend_->count(BackendOp::kWrite), 8u);  // None came twice.
  backend_->Release();
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_TRUE(DiskHasMemory(8 * kIoSize));
}

TEST_F(ClientPathsTest, PathsAreAddedAndRemovedUnderLoad) {
  client_.options().session.more_paths.clear();
  client_.options().session.policy = rtrs::PathPolicyKind::kRoundRobin;
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  Device* device = *client_.Open("vol0");
  FillPattern(client_.memory().first(300 * kIoSize), 6);
  SubmitMany(*device, IoOp::kWrite, 100);
  const auto added = session().AddPath({Address(2)});
  ASSERT_TRUE(added.ok()) << added.status();
  ASSERT_TRUE(AwaitUp(2));
  SubmitMany(*device, IoOp::kWrite, 100);
  ASSERT_TRUE(AwaitAll());
  EXPECT_GE(IosOf(1), 40u);
  SubmitMany(*device, IoOp::kWrite, 100);
  world_.RunFor(20 * kNsPerUs);
  absl::Status removed = absl::UnknownError("no answer");
  session().RemovePath(0, [&](const absl::Status& status) { removed = status; });
  EXPECT_TRUE(world_.RunUntil([&] { return removed.ok(); }, 10 * kNsPerSecond)) << removed;
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  ASSERT_EQ(session().paths().size(), 1u);
  EXPECT_EQ(session().paths()[0].id, *added);
  EXPECT_EQ(session().stats().failovers, 0u);
  session().RemovePath(*added, [&](const absl::Status& status) { removed = status; });
  world_.RunFor(kNsPerMs);
  EXPECT_THAT(std::string(removed.message()), HasSubstr("the last one"));
  session().RemovePath(17, [&](const absl::Status& status) { removed = status; });
  world_.RunFor(kNsPerMs);
  EXPECT_THAT(std::string(removed.message()), HasSubstr("no such path"));
}

TEST_F(ClientPathsTest, WeightsShareTheIosAndWeightZeroIsForEmergencies) {
  Device* device = StartAndOpen();
  ASSERT_TRUE(session().SetPathWeight(1, 0).ok());
  world_.RunFor(kNsPerMs);
  SubmitMany(*device, IoOp::kWrite, 50);
  ASSERT_TRUE(AwaitAll());
  EXPECT_EQ(IosOf(1), 0u);
  EXPECT_EQ(session().paths()[1].weight, 0u);
  world_.Partition(client_.host(), node_.host(), 0);
  Cut(0);
  world_.RunFor(kNsPerMs);
  SubmitMany(*device, IoOp::kRead, 50);
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_EQ(IosOf(1), 50u);
  world_.HealPartition(client_.host(), node_.host(), 0);
  EXPECT_FALSE(session().SetPathWeight(1, 1001).ok());
  EXPECT_FALSE(session().SetPathWeight(9, 1).ok());
}

TEST_F(ClientPathsTest, ANewPathDoesNotInheritTheWeightOfOneThatWasRemoved) {
  Device* device = StartAndOpen();
  ASSERT_TRUE(session().SetPathWeight(1, 0).ok());
  absl::Status removed = absl::UnknownError("no answer");
  session().RemovePath(1, [&](const absl::Status& status) { removed = status; });
  ASSERT_TRUE(world_.RunUntil([&] { return removed.ok(); }, 10 * kNsPerSecond)) << removed;
  ASSERT_TRUE(session().AddPath({Address(2)}).ok());
  ASSERT_TRUE(AwaitUp(2));
  EXPECT_EQ(session().paths()[1].weight, rtrs::kPathWeightDefault);
  SubmitMany(*device, IoOp::kWrite, 100);
  ASSERT_TRUE(AwaitAll());
  ExpectAllOnceAndWell();
  EXPECT_GE(IosOf(1), 40u);
}

TEST_F(ClientPathsTest, AServerThatRestartedIsOneSessionToAllPaths) {
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(100 * kIoSize), 7);
  SubmitMany(*device, IoOp::kWrite, 100);
  world_.RunFor(20 * kNsPerUs);
  node_.Stop();
  world_.RunFor(3 * kNsPerSecond);
  node_.exports().Clear();
  backend_ = &node_.exports().Add("vol0", disk_);
  StartServer();
  ASSERT_TRUE(AwaitAll(60 * kNsPerSecond));
  ExpectAllOnceAndWell();
  EXPECT_TRUE(DiskHasMemory(100 * kIoSize));
  EXPECT_TRUE(AwaitUp(2));
  EXPECT_EQ(node_.server().sessions().size(), 1u);
}

TEST_F(ClientPathsTest, AStormOverBothPathsLosesNothing) {
  Device* device = StartAndOpen(rtrs::PathPolicyKind::kAdaptive);
  for (std::uint64_t round = 0; round < 60; ++round) {
    ios_.clear();
    ASSERT_TRUE(AwaitUp(1 + round % 2));
    FillPattern(client_.memory().first(64 * kIoSize), 100 + round);
    SubmitMany(*device, IoOp::kWrite, 64);
    world_.RunFor(static_cast<std::int64_t>(round % 7) * 15 * kNsPerUs);
    Cut(round % 2);
    if (round % 3 == 0) {
      world_.RunFor(static_cast<std::int64_t>(round % 5) * 100 * kNsPerUs);
      Cut((round + 1) % 2);
    }
    ASSERT_TRUE(AwaitAll(60 * kNsPerSecond)) << "round " << round << ": " << session().Describe();
    ExpectAllOnceAndWell();
    ASSERT_TRUE(DiskHasMemory(64 * kIoSize)) << "round " << round;
  }
  EXPECT_GT(marks_.count("client: path fenced"), 0u);
  EXPECT_GT(marks_.count("client: request repeated on another path"), 0u);
}

TEST_F(ClientPathsTest, ClosingWithOnePathLostIsBounded) {
  Device* device = StartAndOpen();
  backend_->HoldIos();
  SubmitMany(*device, IoOp::kWrite, 20);
  world_.RunFor(kNsPerMs);
  Cut(0);
  world_.RunFor(100 * kNsPerMs);
  EXPECT_LT(client_.CloseDevice(device, kNsPerSecond), 2 * kNsPerSecond);
  for (const auto& io : ios_) EXPECT_EQ(io->result, -ECANCELED);
  backend_->Release();
}

}  // namespace
}  // namespace ibnbd::rnbd
