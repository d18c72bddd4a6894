// SPDX-License-Identifier: Apache-2.0
// The client against the real server over the simulated fabric: what C1 to C4 promise, with and
// without a network that breaks.
#include "rnbd/client.h"

#include <cerrno>
#include <cstring>

#include "base/status_macros.h"
#include "fabric/sim/marks.h"
#include "gmock/gmock.h"
#include "tests/support/client_world.h"

namespace ibnbd::rnbd {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kDiskSize = 8 << 20;

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Geometry geometry = FakeGeometry(kDiskSize);
    geometry.volume_id = 4711;
    disk_ = std::make_shared<FakeDisk>(geometry);
    backend_ = &node_.exports().Add("vol0", disk_, timing());
    node_.Start();
  }
  void TearDown() override { EXPECT_THAT(world_.violations(), ::testing::IsEmpty()); }
  virtual FakeTiming timing() { return {kNsPerUs, 50 * kNsPerUs}; }

  Device* StartAndOpen(const LossPolicy& policy = {}) {
    const absl::Status status = client_.Start(node_.address());
    EXPECT_TRUE(status.ok()) << status;
    const auto device = client_.Open("vol0", AccessMode::kReadWrite, policy);
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *device : nullptr;
  }
  // The server comes back on the same disk.
  void RestartServer() {
    node_.exports().Clear();
    backend_ = &node_.exports().Add("vol0", disk_, timing());
    node_.Start();
  }

  // The server says nothing any more: how long until that is noticed.
  std::int64_t NsUntilHeldBySilence(Device& device) {
    world_.StallHost(node_.host(), 100 * kNsPerSecond);
    const std::int64_t start_ns = world_.now_ns();
    EXPECT_TRUE(
        world_.RunUntil([&] { return device.state() == DeviceState::kHeld; }, 60 * kNsPerSecond));
    const std::int64_t held_ns = world_.now_ns() - start_ns;
    world_.HealEverything();
    return held_ns;
  }

  absl::StatusOr<std::uint64_t> Refresh(Device& device) {
    absl::StatusOr<std::uint64_t> size = absl::UnknownError("not answered");
    bool answered = false;
    client_.client().RefreshDevice(&device, [&](absl::StatusOr<std::uint64_t> answer) {
      size = std::move(answer);
      answered = true;
    });
    EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 60 * kNsPerSecond));
    return size;
  }

  sim::World world_{1, sim::FaultPlan{}};
  ServerNode node_{world_};
  ClientNode client_{world_, "client"};
  std::shared_ptr<FakeDisk> disk_;
  FakeBackend* backend_ = nullptr;
};

TEST_F(ClientTest, WhatIsWrittenIsReadBack) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  EXPECT_EQ(device->info().size_bytes, kDiskSize);
  EXPECT_EQ(device->info().volume_id, 4711u);
  FillPattern(client_.memory().first(4096), 1);
  const auto write = client_.Make(IoOp::kWrite, 8192, 4096);
  EXPECT_EQ(client_.Run(*device, *write), 0);
  EXPECT_EQ(std::memcmp(&disk_->current()[8192], client_.memory().data(), 4096), 0);
  const auto read = client_.Make(IoOp::kRead, 8192, 4096, 65536);
  EXPECT_EQ(client_.Run(*device, *read, 1), 0);
  EXPECT_EQ(std::memcmp(&client_.memory()[65536], client_.memory().data(), 4096), 0);
}

TEST_F(ClientTest, WhatIsOutstandingCanBeListedWithWhatItWaitsForAndSinceWhen) {
  Device* device = StartAndOpen();
  ASSERT_NE(device, nullptr);
  const auto list = [&] {
    std::vector<OutstandingIo> ios;
    bool answered = false;
    client_.client().ListIos(device, [&](std::vector<OutstandingIo> answer) {
      ios = std::move(answer);
      answered = true;
    });
    EXPECT_TRUE(world_.RunUntil([&] { return answered; }, kNsPerMs));
    return ios;
  };
  EXPECT_THAT(list(), ::testing::IsEmpty());

  backend_->HoldIos();
  const auto sent = client_.Make(IoOp::kWrite, 8192, 4096);
  ASSERT_EQ(device->queue(1).Submit(*sent), 0);
  world_.RunFor(3 * kNsPerSecond);
  std::vector<OutstandingIo> ios = list();
  ASSERT_EQ(ios.size(), 1u);
  EXPECT_EQ(ios[0].op, IoOp::kWrite);
  EXPECT_EQ(ios[0].lane, 1u);
  EXPECT_EQ(ios[0].offset, 8192u);
  EXPECT_EQ(ios[0].length, 4096u);
  EXPECT_EQ(ios[0].waits_for, OutstandingIo::WaitsFor::kAnswer);
  EXPECT_GE(ios[0].waited_ns, 3 * kNsPerSecond);
  EXPECT_LT(ios[0].waited_ns, 3 * kNsPerSecond + 10 * kNsPerMs);

  world_.Partition(client_.host(), node_.host());
  EXPECT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kHeld; }, 60 * kNsPerSecond));
  const auto held = client_.Make(IoOp::kFlush, 0, 0);
  ASSERT_EQ(device->queue(0).Submit(*held), 0);
  world_.RunFor(kNsPerSecond);
  ios = list();
  ASSERT_EQ(ios.size(), 2u);
  EXPECT_EQ(ios[0].op, IoOp::kFlush);
  EXPECT_LT(ios[0].waited_ns, 2 * kNsPerSecond);
  EXPECT_EQ(ios[1].op, IoOp::kWrite);
  EXPECT_GE(ios[1].waited_ns, 4 * kNsPerSecond);
  for (const OutstandingIo& io : ios) EXPECT_EQ(io.waits_for, OutstandingIo::WaitsFor::kServer);

  backend_->Release();
  world_.HealPartition(client_.host(), node_.host());
  EXPECT_TRUE(
      world_.RunUntil([&] { return sent->done_count + held->done_count == 2; }, 60 * kNsPerSecond));
  EXPECT_THAT(list(), ::testing::IsEmpty());
}

TEST_F(ClientTest, ALargeIoIsSplitAndCompletesOnce) {
  Device* device = StartAndOpen();
  constexpr std::size_t kSize = 1 << 20;
  FillPattern(client_.memory().first(kSize), 2);
  const auto write = client_.Make(IoOp::kWrite, 512, kSize);
  EXPECT_EQ(client_.Run(*device, *write), 0);
  EXPECT_GE(backend_->count(BackendOp::kWrite), 8u);
  const auto read = client_.Make(IoOp::kRead, 512, kSize, kSize);
  EXPECT_EQ(client_.Run(*device, *read), 0);
  EXPECT_EQ(std::memcmp(&client_.memory()[kSize], client_.memory().data(), kSize), 0);
  world_.RunFor(kNsPerSecond);
  EXPECT_EQ(write->done_count, 1);
  EXPECT_EQ(read->done_count, 1);
}

TEST_F(ClientTest, MoreIosThanPermitsAllComplete) {
  client_.options().io_parts_max = 300;
  Device* device = StartAndOpen();
  std::vector<std::unique_ptr<TestIo>> ios;
  for (std::size_t i = 0; i < 500; ++i) {
    ios.push_back(client_.Make(i % 2 == 0 ? IoOp::kWrite : IoOp::kRead, i * 4096, 4096, i * 4096));
    ASSERT_EQ(device->queue(i % 2).Submit(*ios.back()), 0);
  }
  const auto all_done = [&] {
    return std::all_of(ios.begin(), ios.end(), [](const auto& io) { return io->done_count == 1; });
  };
  EXPECT_TRUE(world_.RunUntil(all_done, 10 * kNsPerSecond));
  for (const auto& io : ios) EXPECT_EQ(io->result, 0);
}

TEST_F(ClientTest, FlushDiscardAndZeroesReachTheBackendWithTheirFlags) {
  Device* device = StartAndOpen();
  const auto flush = client_.Make(IoOp::kFlush, 0, 0);
  EXPECT_EQ(client_.Run(*device, *flush), 0);
  EXPECT_EQ(backend_->count(BackendOp::kFlush), 1u);
  const auto discard = client_.Make(IoOp::kDiscard, 4096, 4 << 20);
  EXPECT_EQ(client_.Run(*device, *discard), 0);
  EXPECT_EQ(backend_->count(BackendOp::kDiscard), 4u);  // The fake disk's limit is 1 MiB.
  bool no_unmap = false, fua = false, preflush = false;
  backend_->on_submit = [&](const BackendIo& io) {
    no_unmap = io.no_unmap;
    fua = io.fua;
    preflush = io.preflush;
  };
  const auto zeroes = client_.Make(IoOp::kWriteZeroes, 0, 8192);
  zeroes->no_unmap = true;
  EXPECT_EQ(client_.Run(*device, *zeroes), 0);
  EXPECT_TRUE(no_unmap);
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  write->fua = write->preflush = true;
  EXPECT_EQ(client_.Run(*device, *write), 0);
  EXPECT_TRUE(fua);
  EXPECT_TRUE(preflush);
}

TEST_F(ClientTest, APreflushOfASplitWriteIsAFlushBeforeAllParts) {
  Device* device = StartAndOpen();
  std::vector<BackendOp> order;
  backend_->on_submit = [&](const BackendIo& io) { order.push_back(io.op); };
  const auto write = client_.Make(IoOp::kWrite, 0, 512 << 10);
  write->preflush = true;
  EXPECT_EQ(client_.Run(*device, *write), 0);
  ASSERT_GE(order.size(), 5u);
  EXPECT_EQ(order.front(), BackendOp::kFlush);
  EXPECT_EQ(std::count(order.begin(), order.end(), BackendOp::kFlush), 1);
}

TEST_F(ClientTest, WrongRequestsAreRefusedAtOnce) {
  Device* device = StartAndOpen();
  const auto submit = [&](IoOp op, std::uint64_t offset, std::uint64_t length,
                          const std::function<void(Io&)>& change = nullptr) {
    const auto io = client_.Make(op, offset, length);
    if (change) change(*io);
    const int error = device->queue(0).Submit(*io);
    EXPECT_EQ(io->done_count, 0);
    return error;
  };
  EXPECT_EQ(submit(IoOp::kRead, 1, 512), -EINVAL);
  EXPECT_EQ(submit(IoOp::kRead, 0, 511), -EINVAL);
  EXPECT_EQ(submit(IoOp::kRead, 0, 0), -EINVAL);
  EXPECT_EQ(submit(IoOp::kRead, kDiskSize, 512), -EINVAL);
  EXPECT_EQ(submit(IoOp::kRead, kDiskSize - 512, 1024), -EINVAL);
  EXPECT_EQ(submit(IoOp::kDiscard, ~std::uint64_t{0} - 511, 512), -EINVAL);
  EXPECT_EQ(submit(IoOp::kRead, 0, 512, [](Io& io) { io.fua = true; }), -EINVAL);
  EXPECT_EQ(submit(IoOp::kRead, 0, 512, [](Io& io) { io.data = io.data.first(256); }), -EINVAL);
  EXPECT_EQ(submit(IoOp::kFlush, 0, 512), -EINVAL);
  EXPECT_EQ(submit(IoOp::kSecureErase, 0, 512), -EOPNOTSUPP);
}

TEST_F(ClientTest, ErrorsOfTheDiskArriveAsThemselves) {
  Device* device = StartAndOpen();
  disk_->FailRange(0, 512, -ENOSPC);
  disk_->FailRange(4096, 512, -EIO);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 512)), -ENOSPC);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 4096, 512)), -EIO);
  // One bad part of many fails the whole.
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 1 << 20)), -ENOSPC);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 8192, 512)), 0);
}

TEST_F(ClientTest, AnUnknownExportIsNamedInTheError) {
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  const auto device = client_.Open("nothing");
  ASSERT_FALSE(device.ok());
  EXPECT_THAT(std::string(device.status().message()), HasSubstr("open nothing"));
  EXPECT_THAT(std::string(device.status().message()), HasSubstr("No such file"));
}

TEST_F(ClientTest, AReadOnlyDeviceRefusesToBeChanged) {
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  const auto device = client_.Open("vol0", AccessMode::kReadOnly);
  ASSERT_TRUE(device.ok());
  EXPECT_TRUE((*device)->info().read_only);
  EXPECT_EQ((*device)->queue(0).Submit(*client_.Make(IoOp::kWrite, 0, 512)), -EPERM);
  EXPECT_EQ((*device)->queue(0).Submit(*client_.Make(IoOp::kDiscard, 0, 512)), -EPERM);
  EXPECT_EQ(client_.Run(**device, *client_.Make(IoOp::kRead, 0, 512)), 0);
}

TEST_F(ClientTest, ExportsAreListedAndPingAnswers) {
  node_.exports().Add("vol1", std::make_shared<FakeDisk>(FakeGeometry(1 << 20)));
  for (int i = 0; i < 100; ++i) {
    node_.exports().Add("many" + std::to_string(i), std::make_shared<FakeDisk>(FakeGeometry(4096)));
  }
  StartAndOpen();
  absl::StatusOr<std::vector<ExportEntry>> list = absl::UnknownError("no answer");
  client_.client().ListExports([&](auto result) { list = std::move(result); });
  std::int64_t round_trip_ns = 0;
  client_.client().Ping([&](auto result) { round_trip_ns = result.value_or(-1); });
  EXPECT_TRUE(world_.RunUntil([&] { return list.ok() && round_trip_ns != 0; }, kNsPerSecond));
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 102u);  // Several pages.
  EXPECT_EQ(list->at(0).name, "vol0");
  EXPECT_EQ(list->at(0).size_bytes, kDiskSize);
  EXPECT_EQ(list->at(0).writer_count, 1u);
  EXPECT_EQ(list->at(1).name, "vol1");
  EXPECT_GT(round_trip_ns, 0);
}

TEST_F(ClientTest, NobodyListeningFailsTheFirstRoundWithoutRetry) {
  node_.Stop();
  const absl::Status status = client_.Start(node_.address());
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("session client to"));
  EXPECT_TRUE(client_.client().closed());
}

TEST_F(ClientTest, WithRetryTheClientWaitsForTheServer) {
  node_.Stop();
  world_.Schedule(3 * kNsPerSecond, [&] { RestartServer(); });
  EXPECT_TRUE(client_.Start(node_.address(), true).ok());
  EXPECT_GT(client_.client().session().stats().connect_failures, 0u);
}

TEST_F(ClientTest, IosSurviveACutAndCompleteOnce) {
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(64 * 4096), 3);
  std::vector<std::unique_ptr<TestIo>> ios;
  for (std::size_t i = 0; i < 64; ++i) {
    ios.push_back(client_.Make(IoOp::kWrite, i * 4096, 4096, i * 4096));
    ASSERT_EQ(device->queue(i % 2).Submit(*ios.back()), 0);
  }
  world_.RunFor(10 * kNsPerUs);
  world_.CutConnections(client_.host(), node_.host());
  const auto all_done = [&] {
    return std::all_of(ios.begin(), ios.end(), [](const auto& io) { return io->done_count > 0; });
  };
  EXPECT_TRUE(world_.RunUntil(all_done, 20 * kNsPerSecond));
  world_.RunFor(kNsPerSecond);
  for (const auto& io : ios) {
    EXPECT_EQ(io->result, 0);
    EXPECT_EQ(io->done_count, 1);
  }
  EXPECT_EQ(std::memcmp(disk_->current().data(), client_.memory().data(), 64 * 4096), 0);
  EXPECT_EQ(client_.client().session().stats().reconnects, 1u);
}

TEST_F(ClientTest, IosAreHeldWhileTheServerIsAwayAndReissuedInOrder) {
  Device* device = StartAndOpen();
  node_.Stop();
  world_.RunFor(kNsPerSecond);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_NE(device->state_reason(), "");
  std::vector<std::unique_ptr<TestIo>> ios;
  for (std::size_t i = 0; i < 16; ++i) {
    ios.push_back(client_.Make(IoOp::kWrite, i * 512, 512, i * 512));
    ASSERT_EQ(device->queue(0).Submit(*ios.back()), 0);
  }
  world_.RunFor(30 * kNsPerSecond);
  EXPECT_EQ(ios.front()->done_count, 0);
  std::vector<std::uint64_t> order;
  RestartServer();
  backend_->on_submit = [&](const BackendIo& io) { order.push_back(io.offset); };
  EXPECT_TRUE(world_.RunUntil([&] { return ios.back()->done_count > 0; }, 30 * kNsPerSecond));
  world_.RunFor(kNsPerSecond);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(order.size(), 16u);
  for (const auto& io : ios) EXPECT_EQ(io->result, 0);
  EXPECT_EQ(device->state(), DeviceState::kOpen);
}

TEST_F(ClientTest, TheLossPolicyEndsTheWaitWhenItSays) {
  Device* device = StartAndOpen({.fail_after_ns = 5 * kNsPerSecond});
  node_.Stop();
  const std::int64_t start_ns = world_.now_ns();
  const auto held = client_.Make(IoOp::kWrite, 0, 512);
  EXPECT_EQ(client_.Run(*device, *held), -ETIMEDOUT);
  EXPECT_GE(world_.now_ns() - start_ns, 3 * kNsPerSecond);
  EXPECT_LE(world_.now_ns() - start_ns, 6 * kNsPerSecond);
  EXPECT_EQ(device->state(), DeviceState::kFailing);
  // New ones fail at once, but not from inside Submit().
  const std::int64_t second_ns = world_.now_ns();
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 0, 512)), -ETIMEDOUT);
  EXPECT_LE(world_.now_ns() - second_ns, kNsPerMs);
  RestartServer();
  EXPECT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kOpen; }, 30 * kNsPerSecond));
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 0, 512)), 0);
}

TEST_F(ClientTest, AnotherVolumeUnderTheSameNameIsNotWrittenTo) {
  Device* device = StartAndOpen();
  node_.Stop();
  const auto write = client_.Make(IoOp::kWrite, 0, 512);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  FillPattern(client_.memory().first(512), 9);
  Geometry geometry = FakeGeometry(kDiskSize);
  geometry.volume_id = 815'000'000;
  const auto other = std::make_shared<FakeDisk>(geometry);
  node_.exports().Clear();
  node_.exports().Add("vol0", other);
  node_.Start();
  world_.RunFor(30 * kNsPerSecond);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_THAT(device->state_reason(), HasSubstr("another volume"));
  EXPECT_THAT(device->state_reason(), HasSubstr("000000003093e9c0"));  // As ibnbd-client shows it.
  EXPECT_EQ(write->done_count, 0);
  EXPECT_EQ(other->unflushed_block_count(), 0u);
  // The right one comes back.
  node_.Stop();
  RestartServer();
  EXPECT_TRUE(world_.RunUntil([&] { return write->done_count > 0; }, 60 * kNsPerSecond));
  EXPECT_EQ(write->result, 0);
}

TEST_F(ClientTest, AVolumeWhoseContentOthersHaveChangedIsNotWrittenTo) {
  Device* device = StartAndOpen();
  node_.Stop();
  Geometry geometry = FakeGeometry(kDiskSize);
  geometry.volume_id = 4711 ^ 1;
  const auto other = std::make_shared<FakeDisk>(geometry);
  node_.exports().Clear();
  node_.exports().Add("vol0", other);
  node_.Start();
  const auto write = client_.Make(IoOp::kWrite, 0, 512);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  world_.RunFor(30 * kNsPerSecond);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_THAT(device->state_reason(), HasSubstr("its content was changed by somebody else"));
  EXPECT_EQ(other->unflushed_block_count(), 0u);
  node_.Stop();
  RestartServer();
  EXPECT_TRUE(world_.RunUntil([&] { return write->done_count > 0; }, 60 * kNsPerSecond));
  EXPECT_EQ(write->result, 0);
}

TEST_F(ClientTest, AReaderGoesOnWhenTheVolumeBecomesReadOnly) {
  ASSERT_TRUE(client_.Start(node_.address()).ok());
  const auto device = client_.Open("vol0", AccessMode::kReadOnly);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_NE((*device)->info().discard_bytes_max, 0u);
  node_.Stop();
  Geometry geometry = FakeGeometry(kDiskSize);
  geometry.volume_id = 4711;
  geometry.read_only = true;
  node_.exports().Clear();
  node_.exports().Add("vol0", std::make_shared<FakeDisk>(geometry));
  node_.Start();
  const auto read = client_.Make(IoOp::kRead, 0, 512);
  ASSERT_EQ((*device)->queue(0).Submit(*read), 0);
  EXPECT_TRUE(world_.RunUntil([&] { return read->done_count > 0; }, 60 * kNsPerSecond))
      << (*device)->state_reason();
  EXPECT_EQ(read->result, 0);
}

TEST_F(ClientTest, AVolumeThatHasGrownIsUsedToItsEndOnceItWasAskedFor) {
  Device* device = StartAndOpen();
  disk_->GrowTo(2 * kDiskSize);
  const auto beyond = client_.Make(IoOp::kWrite, 2 * kDiskSize - 4096, 4096);
  EXPECT_EQ(device->queue(0).Submit(*beyond), -EINVAL);
  EXPECT_EQ(Refresh(*device).value(), 2 * kDiskSize);
  EXPECT_EQ(device->info().size_bytes, 2 * kDiskSize);
  FillPattern(client_.memory().first(4096), 3);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 2 * kDiskSize - 4096, 4096), 1), 0);
  EXPECT_EQ(std::memcmp(&disk_->current()[2 * kDiskSize - 4096], client_.memory().data(), 4096), 0);
  EXPECT_EQ(Refresh(*device).value(), 2 * kDiskSize);
}

TEST_F(ClientTest, AskingForTheSizeDisturbsNoIo) {
  Device* device = StartAndOpen();
  backend_->HoldIos();
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  world_.RunUntil([&] { return backend_->executing_count() == 1; }, 10 * kNsPerSecond);
  disk_->GrowTo(2 * kDiskSize);
  EXPECT_EQ(Refresh(*device).value(), 2 * kDiskSize);
  EXPECT_EQ(write->done_count, 0);
  backend_->Release();
  EXPECT_TRUE(world_.RunUntil([&] { return write->done_count > 0; }, 10 * kNsPerSecond));
  EXPECT_EQ(write->result, 0);
  EXPECT_EQ(backend_->count(BackendOp::kWrite), 1u);  // Not issued again.
}

TEST_F(ClientTest, TheSizeCannotBeAskedForWhileTheServerIsAway) {
  Device* device = StartAndOpen();
  node_.Stop();
  world_.RunUntil([&] { return device->state() == DeviceState::kHeld; }, 60 * kNsPerSecond);
  EXPECT_EQ(Refresh(*device).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, ASmallerVolumeIsRefusedOnReconnect) {
  Device* device = StartAndOpen();
  node_.Stop();
  node_.exports().Clear();
  node_.exports().Add("vol0", std::make_shared<FakeDisk>(FakeGeometry(kDiskSize / 2)));
  node_.Start();
  world_.RunFor(30 * kNsPerSecond);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_THAT(device->state_reason(), HasSubstr("size"));
}

TEST_F(ClientTest, AChangedQueueDepthIsRefusedButTheOldOneIsWelcomeAgain) {
  Device* device = StartAndOpen();
  node_.Stop();
  node_.exports().Clear();
  node_.exports().Add("vol0", disk_);
  node_.Start({.queue_depth = 64});
  world_.RunFor(30 * kNsPerSecond);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_THAT(client_.client().session().Describe(), HasSubstr("queue depth 128 to 64"));
  node_.Stop();
  RestartServer();
  EXPECT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kOpen; }, 60 * kNsPerSecond));
}

TEST_F(ClientTest, ASilentServerIsGivenUpAfterTheHeartbeats) {
  Device* device = StartAndOpen();
  const std::int64_t held_ns = NsUntilHeldBySilence(*device);
  EXPECT_GE(held_ns, 8 * kNsPerSecond);
  EXPECT_LE(held_ns, 10 * kNsPerSecond + kNsPerMs);
  EXPECT_THAT(device->state_reason(), HasSubstr("heartbeat"));
  EXPECT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kOpen; }, 60 * kNsPerSecond));
}

TEST_F(ClientTest, HowLongAServerMayBeSilentIsSetPerSession) {
  client_.options().session.heartbeat_interval_ns = kNsPerSecond / rtrs::kHeartbeatsToDeath;
  Device* device = StartAndOpen();
  const std::int64_t held_ns = NsUntilHeldBySilence(*device);
  EXPECT_GE(held_ns, 800 * kNsPerMs);
  EXPECT_LE(held_ns, kNsPerSecond + kNsPerMs);
}

TEST_F(ClientTest, HowLongAServerMayBeSilentChangesWhileTheSessionLives) {
  client_.options().session.heartbeat_interval_ns = 600 * kNsPerSecond;
  Device* device = StartAndOpen();
  world_.RunFor(kNsPerSecond);
  rtrs::ClientSession& session = client_.client().session();
  session.SetHeartbeat(kNsPerSecond);  // Not only after the tick that is due in ten minutes.
  EXPECT_EQ(session.heartbeat_interval_ns(), kNsPerSecond);
  const std::int64_t held_ns = NsUntilHeldBySilence(*device);
  EXPECT_LE(held_ns, rtrs::kHeartbeatsToDeath * kNsPerSecond + kNsPerMs);
  session.SetHeartbeat(0);  // As the peer is: one of our own.
  EXPECT_EQ(session.heartbeat_interval_ns(), rtrs::kHeartbeatNsIbnbd);
}

TEST_F(ClientTest, AnIdleSessionStaysUp) {
  StartAndOpen();
  world_.RunFor(300 * kNsPerSecond);
  EXPECT_EQ(client_.client().session().stats().reconnects, 0u);
  EXPECT_GT(client_.client().session().stats().heartbeats_sent, 50u);
  EXPECT_GT(client_.client().session().stats().heartbeat_rtt_ns, 0);
}

TEST_F(ClientTest, CloseWaitsForOutstandingIos) {
  Device* device = StartAndOpen();
  const auto write = client_.Make(IoOp::kWrite, 0, 1 << 20);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  EXPECT_LT(client_.CloseDevice(device, 10 * kNsPerSecond), kNsPerSecond);
  EXPECT_EQ(write->done_count, 1);
  EXPECT_EQ(write->result, 0);
  // The writer's place is free again.
  EXPECT_TRUE(client_.Open("vol0").ok());
}

TEST_F(ClientTest, CloseEndsWithinItsDeadlineWhileIosAreStuckAtTheServer) {
  Device* device = StartAndOpen();
  backend_->HoldIos();
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  world_.RunFor(kNsPerMs);
  EXPECT_LT(client_.CloseDevice(device, 2 * kNsPerSecond), 5 * kNsPerSecond);
  EXPECT_EQ(write->result, -ECANCELED);
  backend_->Release();
  world_.RunFor(kNsPerSecond);
  EXPECT_EQ(write->done_count, 1);
}

TEST_F(ClientTest, CloseEndsWithinItsDeadlineWhileTheServerIsAway) {
  Device* device = StartAndOpen();
  node_.Stop();
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  EXPECT_LE(client_.Close(2 * kNsPerSecond), 3 * kNsPerSecond);
  EXPECT_EQ(write->result, -ECANCELED);
  EXPECT_TRUE(client_.client().closed());
}

TEST_F(ClientTest, CloseEndsWithinItsDeadlineInAPartition) {
  Device* device = StartAndOpen();
  world_.Partition(client_.host(), node_.host());
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  EXPECT_LE(client_.Close(2 * kNsPerSecond), 6 * kNsPerSecond);
  EXPECT_EQ(write->done_count, 1);
  EXPECT_NE(write->result, 0);
  world_.HealEverything();
}

TEST_F(ClientTest, ASecondWriterIsRefusedUntilTheFirstHasClosed) {
  Device* device = StartAndOpen();
  ClientNode other(world_, "other");
  other.options().session.seed = 8;
  ASSERT_TRUE(other.Start(node_.address()).ok());
  const auto refused = other.Open("vol0");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(ErrnoFromStatus(refused.status()), -EPERM) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("another client writes"));
  client_.CloseDevice(device, kNsPerSecond);
  EXPECT_TRUE(other.Open("vol0").ok());
}

// The writer was killed and is still being drained: its successor need not care.
TEST_F(ClientTest, AWriterThatIsLetGoSoonIsWaitedForAtTheFirstOpen) {
  Device* device = StartAndOpen();
  ClientNode other(world_, "other");
  other.options().session.seed = 8;
  ASSERT_TRUE(other.Start(node_.address()).ok());
  bool answered = false;
  absl::Status status;
  other.client().OpenDevice("vol0", AccessMode::kReadWrite, {},
                            [&](const absl::StatusOr<Device*>& result) {
                              answered = true;
                              status = result.status();
                            });
  world_.RunFor(1500 * kNsPerMs);
  EXPECT_FALSE(answered);
  client_.CloseDevice(device, kNsPerSecond);
  EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 200 * kNsPerMs));
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ClientTest, TwoHandlesOfOneNameAreClosedOneByOne) {
  Device* first = StartAndOpen();
  const auto second = client_.Open("vol0");
  ASSERT_TRUE(second.ok()) << second.status();
  const sim::Marks marks;
  client_.CloseDevice(first, kNsPerSecond);
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  EXPECT_EQ(client_.Run(**second, *write), 0);
  EXPECT_EQ(marks.count("client: server closed the device"), 0u);
  EXPECT_EQ(node_.exports().Find("", "vol0").value()->writer_count, 1u);
  client_.CloseDevice(*second, kNsPerSecond);
  EXPECT_EQ(node_.exports().Find("", "vol0").value()->writer_count, 0u);
}

// One is being closed while the other is being opened: whoever comes first, it ends well.
TEST_F(ClientTest, AHandleIsOpenedWhileAnotherOfItsNameIsClosed) {
  Device* first = StartAndOpen();
  bool closed = false;
  client_.client().CloseDevice(first, kNsPerSecond, [&] { closed = true; });
  world_.RunFor(kNsPerUs);
  const auto second = client_.Open("vol0");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(world_.RunUntil([&] { return closed; }, kNsPerSecond));
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  EXPECT_EQ(client_.Run(**second, *write), 0);
}

}  // namespace
}  // namespace ibnbd::rnbd
