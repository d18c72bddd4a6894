// SPDX-License-Identifier: Apache-2.0
// A process goes on with the device of one that was killed, whether the server is there or not:
// what holds for an IO, a flush and the loss policy must not depend on whose life they were begun
// in.
#include <cerrno>
#include <cstring>

#include "gmock/gmock.h"
#include "tests/support/client_world.h"

namespace ibnbd::rnbd {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kIoSize = 4096;

class ClientResume : public ::testing::Test {
 protected:
  void SetUp() override {
    after_.options().session.name = "before";  // To the server it is the same client.
    Restart();
    ASSERT_TRUE(before_.Start(node_.address()).ok());
    Device* device = *before_.Open("vol0");
    FillPattern(before_.memory().first(kIoSize), 1);
    ASSERT_EQ(before_.Run(*device, *before_.Make(IoOp::kWrite, 0, kIoSize)), 0);
    past_ = device->past();
    before_.Close(kNsPerSecond);
  }
  void TearDown() override { EXPECT_THAT(world_.violations(), ::testing::IsEmpty()); }

  void Restart() {
    node_.exports().Clear();
    node_.exports().Add("vol0", disk_, {kNsPerUs, 50 * kNsPerUs});
    ServerOptions options;
    options.instance_id[15] = instance_;
    node_.Start(options);
  }
  void LosePower() {
    node_.Stop();
    Prng prng(1);
    disk_->LoseUnflushed(prng, 0);
    ++instance_;
    Restart();
  }
  Device* Resume(std::int64_t fail_after_ns = -1) {
    after_.StartInBackground(node_.address());
    const auto device =
        after_.client().ResumeDevice(past_, AccessMode::kReadWrite, LossPolicy{fail_after_ns});
    EXPECT_TRUE(device.ok()) << device.status();
    if (!device.ok()) return nullptr;
    world_.RunFor(100 * kNsPerMs);
    EXPECT_NE((*device)->state(), DeviceState::kOpen);  // Not settled.
    after_.client().SettleDevice(*device, 2 * kNsPerSecond);
    return *device;
  }
  bool Await(const TestIo& io, std::int64_t ns = 60 * kNsPerSecond) {
    return world_.RunUntil([&io] { return io.done_count > 0; }, ns);
  }

  std::uint8_t instance_ = 1;
  sim::World world_{1, sim::FaultPlan{}};
  ServerNode node_{world_};
  ClientNode before_{world_, "before"}, after_{world_, "after"};
  std::shared_ptr<FakeDisk> disk_ = std::make_shared<FakeDisk>(FakeGeometry(8 << 20));
  DevicePast past_;
};

TEST_F(ClientResume, WithoutAServerIosAreHeldListedAndDoneWhenItIsThere) {
  node_.Stop();
  Device* device = Resume();
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_EQ(device->info().size_bytes, past_.info.size_bytes);
  const auto read = after_.Make(IoOp::kRead, 0, kIoSize);
  ASSERT_EQ(device->queue(0).Submit(*read), 0);
  world_.RunFor(100 * kNsPerSecond);
  EXPECT_EQ(read->done_count, 0);
  EXPECT_THAT(device->state_reason(), HasSubstr("connect"));
  std::vector<OutstandingIo> waiting;
  after_.client().ListIos(device, [&](std::vector<OutstandingIo> ios) { waiting = ios; });
  world_.RunFor(kNsPerMs);
  ASSERT_EQ(waiting.size(), 1u);
  EXPECT_EQ(waiting[0].waits_for, OutstandingIo::WaitsFor::kServer);
  Restart();
  ASSERT_TRUE(Await(*read));
  EXPECT_EQ(read->result, 0);
  EXPECT_EQ(std::memcmp(after_.memory().data(), before_.memory().data(), kIoSize), 0);
  EXPECT_EQ(device->state(), DeviceState::kOpen);
}

TEST_F(ClientResume, TheLossPolicyCountsFromTheLossInTheLifeBefore) {
  node_.Stop();
  past_.held_ns = 7 * kNsPerSecond;
  Device* device = Resume(10 * kNsPerSecond);
  const auto write = after_.Make(IoOp::kWrite, 0, kIoSize);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  const std::int64_t begin_ns = world_.now_ns();
  ASSERT_TRUE(Await(*write));
  EXPECT_EQ(write->result, -ETIMEDOUT);
  EXPECT_NEAR(static_cast<double>(world_.now_ns() - begin_ns), 3e9, 1e8);
  EXPECT_EQ(device->state(), DeviceState::kFailing);
  EXPECT_GE(device->past().held_ns, 10 * kNsPerSecond);
}

// The kernel gives the IOs of the dead process to the next one, some of them late.
struct TooOld {
  std::int64_t held_ns, comes_after_ns;
};
class ClientResumeTooOld : public ClientResume, public ::testing::WithParamInterface<TooOld> {};
INSTANTIATE_TEST_SUITE_P(
    , ClientResumeTooOld,
    ::testing::Values(TooOld{11 * kNsPerSecond, 500 * kNsPerMs},    // T was over before,
                      TooOld{9 * kNsPerSecond, 1500 * kNsPerMs}));  // or ends in the window.

TEST_P(ClientResumeTooOld, FailsAlthoughTheServerIsThere) {
  past_.held_ns = GetParam().held_ns;
  FillPattern(after_.memory().first(kIoSize), 2);
  Device* device = Resume(10 * kNsPerSecond);
  world_.RunFor(GetParam().comes_after_ns);
  const auto old = after_.Make(IoOp::kWrite, 0, kIoSize);
  ASSERT_EQ(device->queue(0).Submit(*old), 0);
  ASSERT_TRUE(Await(*old, kNsPerSecond));
  EXPECT_EQ(old->result, -ETIMEDOUT);
  EXPECT_EQ(std::memcmp(disk_->current().data(), before_.memory().data(), kIoSize), 0);
  ASSERT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kOpen; }, 10 * kNsPerSecond));
  EXPECT_EQ(after_.Run(*device, *after_.Make(IoOp::kWrite, 0, kIoSize)), 0);
  EXPECT_EQ(std::memcmp(disk_->current().data(), after_.memory().data(), kIoSize), 0);
}

TEST_F(ClientResume, TheFirstFlushFailsIfTheServersMachineLostPowerSince) {
  LosePower();
  Device* device = Resume();
  EXPECT_EQ(after_.Run(*device, *after_.Make(IoOp::kFlush, 0, 0)), -EIO);
  EXPECT_EQ(after_.Run(*device, *after_.Make(IoOp::kFlush, 0, 0)), 0);
}

TEST_F(ClientResume, AFlushIsAFlushIfItDidNot) {
  node_.Stop();
  Restart();
  Device* device = Resume();
  EXPECT_EQ(after_.Run(*device, *after_.Make(IoOp::kFlush, 0, 0)), 0);
  EXPECT_EQ(device->past().server_instance, past_.server_instance);
  LosePower();  // All was flushed.
  EXPECT_EQ(after_.Run(*device, *after_.Make(IoOp::kFlush, 0, 0)), 0);
}

// The process in between learnt of it when it opened the volume, and died before anybody flushed.
TEST_F(ClientResume, ALossThatNobodyWasToldOfIsTheNextOnesToTell) {
  LosePower();
  ClientNode between(world_, "between");
  between.options().session.name = "before";
  between.StartInBackground(node_.address());
  Device* device = *between.client().ResumeDevice(past_, AccessMode::kReadWrite, LossPolicy{});
  between.client().SettleDevice(device, 0);
  ASSERT_TRUE(
      world_.RunUntil([&] { return device->state() == DeviceState::kOpen; }, 60 * kNsPerSecond));
  past_ = device->past();
  between.Close(kNsPerSecond);
  device = Resume();
  EXPECT_EQ(after_.Run(*device, *after_.Make(IoOp::kFlush, 0, 0)), -EIO);
  // Told once: it is not the next one's any more, on whichever lane it was.
  past_ = device->past();
  EXPECT_EQ(past_.server_instance[15], instance_);
}

TEST_F(ClientResume, AnotherVolumeUnderTheNameIsNotTouched) {
  past_.info.volume_id ^= std::uint64_t{1} << 40;
  if (past_.info.volume_id == 0) past_.info.volume_id = 1;
  past_.info.size_bytes += kIoSize;  // The fake disk has no id, perhaps.
  Device* device = Resume();
  const auto write = after_.Make(IoOp::kWrite, 0, kIoSize, kIoSize);
  ASSERT_EQ(device->queue(0).Submit(*write), 0);
  world_.RunFor(60 * kNsPerSecond);
  EXPECT_EQ(write->done_count, 0);
  EXPECT_EQ(device->state(), DeviceState::kHeld);
  EXPECT_THAT(device->state_reason(), HasSubstr("offers another volume"));
  after_.CloseDevice(device, kNsPerSecond);
  EXPECT_EQ(write->result, -ECANCELED);
  EXPECT_EQ(std::memcmp(disk_->current().data(), before_.memory().data(), kIoSize), 0);
}

TEST_F(ClientResume, IsClosedInTimeWithoutAServer) {
  node_.Stop();
  Device* device = Resume();
  const auto read = after_.Make(IoOp::kRead, 0, kIoSize);
  ASSERT_EQ(device->queue(1).Submit(*read), 0);
  EXPECT_LT(after_.CloseDevice(device, kNsPerSecond), 2 * kNsPerSecond);
  EXPECT_EQ(read->result, -ECANCELED);
}

}  // namespace
}  // namespace ibnbd::rnbd
