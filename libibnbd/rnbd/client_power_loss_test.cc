// SPDX-License-Identifier: Apache-2.0
// C5: the server's machine loses power with acknowledged writes in its caches and comes back, the
// client connects again by itself, and no flush says that all is well.
#include <cerrno>
#include <cstring>

#include "gmock/gmock.h"
#include "rnbd/client.h"
#include "tests/support/client_world.h"

namespace ibnbd::rnbd {
namespace {

class ClientPowerLoss : public ::testing::Test {
 protected:
  void SetUp() override { Restart(); }
  void TearDown() override { EXPECT_THAT(world_.violations(), ::testing::IsEmpty()); }

  Device* StartAndOpen() {
    const absl::Status status = client_.Start(node_.address());
    EXPECT_TRUE(status.ok()) << status;
    return client_.Open("vol0").value();
  }
  // The server, on the same disk.
  void Restart() {
    node_.exports().Clear();
    backend_ = &node_.exports().Add("vol0", disk_, {kNsPerUs, 50 * kNsPerUs});
    ServerOptions options;
    options.instance_id[15] = instance_;
    node_.Start(options);
  }
  // What was not flushed is gone, and the server's machine has booted anew.
  void LosePower() {
    node_.Stop();
    Prng prng(1);
    disk_->LoseUnflushed(prng, 0);
    ++instance_;
    Restart();
  }

  std::uint8_t instance_ = 1;
  sim::World world_{1, sim::FaultPlan{}};
  ServerNode node_{world_};
  ClientNode client_{world_, "client"};
  std::shared_ptr<FakeDisk> disk_ = std::make_shared<FakeDisk>(FakeGeometry(8 << 20));
  FakeBackend* backend_ = nullptr;
};

TEST_F(ClientPowerLoss, AFlushOnAnotherInstanceFailsOncePerLaneIfWritesWereNotFlushed) {
  Device* device = StartAndOpen();
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096)), 0);
  LosePower();
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kRead, 0, 4096)), 0);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096)), 0);
  const auto forced = client_.Make(IoOp::kWrite, 0, 4096);
  forced->fua = true;  // Promises only itself.
  EXPECT_EQ(client_.Run(*device, *forced), 0);
  for (std::size_t lane = 0; lane < 2; ++lane) {
    EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0), lane), -EIO);
    EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0), lane), 0);
  }
}

TEST_F(ClientPowerLoss, HeldFlushesThatSpanThePowerLossFailAndLaterOnesDoNot) {
  Device* device = StartAndOpen();
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kDiscard, 0, 4096)), 0);
  node_.Stop();
  const auto first = client_.Make(IoOp::kFlush, 0, 0), second = client_.Make(IoOp::kFlush, 0, 0);
  ASSERT_EQ(device->queue(0).Submit(*first), 0);
  ASSERT_EQ(device->queue(0).Submit(*second), 0);
  LosePower();
  EXPECT_TRUE(world_.RunUntil([&] { return second->done_count > 0; }, 60 * kNsPerSecond));
  EXPECT_EQ(first->result, -EIO);
  EXPECT_EQ(second->result, -EIO);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0)), 0);
}

TEST_F(ClientPowerLoss, AWriteWithPreflushAfterAPowerLossFailsAndWritesNothing) {
  Device* device = StartAndOpen();
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kWriteZeroes, 0, 4096)), 0);
  LosePower();
  FillPattern(client_.memory().first(4096), 7);
  const auto commit = client_.Make(IoOp::kWrite, 8192, 4096);
  commit->preflush = commit->fua = true;
  EXPECT_EQ(client_.Run(*device, *commit), -EIO);
  EXPECT_EQ(backend_->count(BackendOp::kWrite), 0u);
  const auto again = client_.Make(IoOp::kWrite, 8192, 4096);
  again->preflush = again->fua = true;
  EXPECT_EQ(client_.Run(*device, *again), 0);
  EXPECT_EQ(std::memcmp(&disk_->stable()[8192], client_.memory().data(), 4096), 0);
}

TEST_F(ClientPowerLoss, AFlushOfAnyLaneClearsWhatAllLanesWroteBefore) {
  Device* device = StartAndOpen();
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096), 0), 0);
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096), 1), 0);
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0), 1), 0);
  const auto forced = client_.Make(IoOp::kWrite, 0, 4096);
  forced->fua = true;
  ASSERT_EQ(client_.Run(*device, *forced), 0);
  LosePower();
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0), 0), 0);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0), 1), 0);
}

TEST_F(ClientPowerLoss, AWriteThatCompletesDuringAFlushIsNotCoveredByIt) {
  Device* device = StartAndOpen();
  const auto flush = client_.Make(IoOp::kFlush, 0, 0);
  const auto write = client_.Make(IoOp::kWrite, 0, 4096);
  backend_->HoldIos();
  ASSERT_EQ(device->queue(0).Submit(*flush), 0);
  ASSERT_TRUE(world_.RunUntil([&] { return backend_->executing_count() == 1; }, kNsPerSecond));
  ASSERT_EQ(device->queue(1).Submit(*write), 0);
  ASSERT_TRUE(world_.RunUntil([&] { return backend_->executing_count() == 2; }, kNsPerSecond));
  backend_->Release();
  ASSERT_TRUE(
      world_.RunUntil([&] { return flush->done_count + write->done_count == 2; }, kNsPerSecond));
  LosePower();
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0)), -EIO);
}

TEST_F(ClientPowerLoss, ARestartOfTheProcessOrASilentServerFailsNoFlush) {
  Device* device = StartAndOpen();
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096)), 0);
  node_.Stop();
  Restart();
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0)), 0);
  ASSERT_EQ(client_.Run(*device, *client_.Make(IoOp::kWrite, 0, 4096)), 0);
  instance_ = 0;  // Not known.
  node_.Stop();
  Restart();
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0)), 0);
}

TEST_F(ClientPowerLoss, AnIoOfWhichTheLostInstanceAcknowledgedPartsBeginsAnew) {
  client_.options().io_parts_max = 1;  // One part at a time.
  Device* device = StartAndOpen();
  FillPattern(client_.memory().first(512 << 10), 5);
  const auto write = client_.Make(IoOp::kWrite, 0, 512 << 10);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  ASSERT_TRUE(
      world_.RunUntil([&] { return backend_->count(BackendOp::kWrite) == 3; }, kNsPerSecond));
  LosePower();
  ASSERT_TRUE(world_.RunUntil([&] { return write->done_count > 0; }, 60 * kNsPerSecond));
  EXPECT_EQ(write->result, 0);
  EXPECT_EQ(std::memcmp(disk_->current().data(), client_.memory().data(), 512 << 10), 0);
  EXPECT_EQ(client_.Run(*device, *client_.Make(IoOp::kFlush, 0, 0)), 0);
}

}  // namespace
}  // namespace ibnbd::rnbd
