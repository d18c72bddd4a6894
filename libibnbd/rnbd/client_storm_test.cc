// SPDX-License-Identifier: Apache-2.0
// The client under the faults that a seed draws: workers write, read back and compare while the
// network does its worst, then everything heals and every IO must finish.  The large simulator
// (tests/sim) has the real oracles; this one is small enough to debug the client with.
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/support/client_world.h"

namespace ibnbd::rnbd {
namespace {

// Owns a range of the device, has one IO outstanding at a time, and so knows what to read.
class Worker {
 public:
  Worker(ClientNode& client, Device& device, std::uint32_t index, std::uint64_t seed)
      : device_(device), index_(index), prng_(seed) {
    size_ = index % 4 == 3 ? 200 << 10 : 8 << 10;  // Some are split.
    write_ = client.Make(IoOp::kWrite, Offset(), size_, Offset());
    read_ = client.Make(IoOp::kRead, Offset(), size_, (16 << 20) + Offset());
    write_->on_done = [this] { OnWritten(); };
    read_->on_done = [this] { OnRead(); };
  }
  void Step() {
    if (rounds_ == 0) {
      done_ = true;
      return;
    }
    --rounds_;
    FillPattern(write_->data, prng_.Next());
    write_->fua = prng_.Chance(100'000);
    write_->preflush = prng_.Chance(100'000);
    Submit(*write_);
  }
  [[nodiscard]] bool done() const { return done_; }
  [[nodiscard]] bool in_order() const { return in_order_; }

 private:
  std::uint64_t Offset() const { return std::uint64_t{index_} * (256 << 10); }
  void Submit(TestIo& io) {
    io.done_count = 0;
    ASSERT_EQ(device_.queue(index_ % ClientNode::kLanes).Submit(io), 0);
  }
  void OnWritten() {
    in_order_ &= write_->done_count == 1 && write_->result == 0;
    std::fill(read_->data.begin(), read_->data.end(), std::byte{0});
    Submit(*read_);
  }
  void OnRead() {
    in_order_ &= read_->done_count == 1 && read_->result == 0 &&
                 std::memcmp(read_->data.data(), write_->data.data(), size_) == 0;
    Step();
  }

  Device& device_;
  const std::uint32_t index_;
  Prng prng_;
  std::uint64_t size_ = 0;
  std::unique_ptr<TestIo> write_;
  std::unique_ptr<TestIo> read_;
  int rounds_ = 30;
  bool done_ = false;
  bool in_order_ = true;
};

void RunStorm(std::uint64_t seed) {
  Prng prng(seed);
  const sim::FaultPlan plan = sim::DrawSwarmPlan(prng);
  SCOPED_TRACE(absl::StrCat("seed ", seed, " ", plan.ToString()));
  sim::World world(seed, sim::FaultPlan{});
  ServerNode node(world);
  auto disk = std::make_shared<FakeDisk>(FakeGeometry(16 << 20));
  node.exports().Add("vol0", disk, {kNsPerUs, 200 * kNsPerUs});
  node.Start();
  ClientNode client(world, "client", 32 << 20);
  ASSERT_TRUE(client.Start(node.address(), true).ok());
  const auto device = client.Open("vol0");
  ASSERT_TRUE(device.ok()) << device.status();

  world.set_plan(plan);
  std::vector<std::unique_ptr<Worker>> workers;
  for (std::uint32_t i = 0; i < 24; ++i) {
    workers.push_back(std::make_unique<Worker>(client, **device, i, seed * 100 + i));
  }
  for (auto& worker : workers) worker->Step();
  const auto all_done = [&] {
    return std::all_of(workers.begin(), workers.end(), [](auto& w) { return w->done(); });
  };
  world.RunUntil(all_done, 30 * kNsPerSecond);
  world.HealEverything();
  ASSERT_TRUE(world.RunUntil(all_done, 200 * kNsPerSecond))
      << (*device)->state_reason() << " " << client.client().session().Describe();
  for (auto& worker : workers) EXPECT_TRUE(worker->in_order());
  EXPECT_EQ((*device)->queue(0).stats().outstanding, 0u);
  EXPECT_LE(client.Close(5 * kNsPerSecond), 20 * kNsPerSecond);
  EXPECT_THAT(world.violations(), ::testing::IsEmpty());
}

TEST(ClientStorm, EveryIoFinishesOnceAndReadsBackWhatWasWritten) {
  const char* first = std::getenv("IBNBD_STORM_SEED");
  const char* count = std::getenv("IBNBD_STORM_COUNT");
  const std::uint64_t begin = first == nullptr ? 1 : std::strtoull(first, nullptr, 10);
  const std::uint64_t seeds = count == nullptr ? 10 : std::strtoull(count, nullptr, 10);
  for (std::uint64_t seed = begin; seed < begin + seeds; ++seed) {
    RunStorm(seed);
    if (::testing::Test::HasFailure()) return;
  }
}

// Failing IOs come back at once; an application that tries again at once must not keep the lane
// from everything else, and must itself be served for ever.
TEST(ClientStorm, TryingAgainAtOnceDoesNotStarveTheLane) {
  sim::World world(1, sim::FaultPlan{});
  ServerNode node(world);
  ClientNode client(world, "client");
  node.exports().Add("vol0", std::make_shared<FakeDisk>(FakeGeometry(1 << 20)), {});
  node.Start();
  ASSERT_TRUE(client.Start(node.address()).ok());
  Device* device = *client.Open("vol0", AccessMode::kReadWrite, {.fail_after_ns = kNsPerSecond});
  node.Stop();
  ASSERT_TRUE(
      world.RunUntil([&] { return device->state() == DeviceState::kFailing; }, 30 * kNsPerSecond));
  constexpr int kManyTimes = 40'000;
  bool mail_was_read = false, mail_was_sent = false;
  std::vector<std::unique_ptr<TestIo>> ios;
  for (int i = 0; i < 3; ++i) {
    TestIo& io = *ios.emplace_back(client.Make(IoOp::kRead, 0, 512));
    io.on_done = [&] {
      if (!std::exchange(mail_was_sent, true)) {
        client.lane_reactor(0).Post([&] { mail_was_read = true; });
      }
      if (!mail_was_read && io.done_count < kManyTimes) {
        EXPECT_EQ(device->queue(0).Submit(io), 0);
      }
    };
    ASSERT_EQ(device->queue(0).Submit(io), 0);
  }
  EXPECT_TRUE(world.RunUntil([&] { return mail_was_read; }, kNsPerSecond));
  for (const auto& io : ios) EXPECT_LT(io->done_count, kManyTimes);
  EXPECT_EQ(client.Run(*device, *client.Make(IoOp::kRead, 0, 512)), -ETIMEDOUT);
}

}  // namespace
}  // namespace ibnbd::rnbd
