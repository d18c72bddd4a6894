// SPDX-License-Identifier: Apache-2.0
// A client whose server was away, and who comes back: it goes on if nobody else has had the volume
// open for writing, and keeps what it holds to itself if somebody has.
#include <cstring>

#include "gmock/gmock.h"
#include "rnbd/client.h"
#include "tests/support/client_world.h"

namespace ibnbd::rnbd {
namespace {

using ::testing::HasSubstr;

class ClientWriters : public ::testing::Test {
 protected:
  void SetUp() override {
    other_.options().session.seed = 8;
    AddVolume();
    node_.Start();
    for (ClientNode* client : {&client_, &other_}) {
      const absl::Status status = client->Start(node_.address());
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  void TearDown() override { EXPECT_THAT(world_.violations(), ::testing::IsEmpty()); }

  void AddVolume() { node_.exports().Add("vol0", disk_, {kNsPerUs, 50 * kNsPerUs}); }
  // Until the server has let go of its session, and it knows.
  void Lose(ClientNode& client, Device* device) {
    world_.Partition(client.host(), node_.host());
    ASSERT_TRUE(
        world_.RunUntil([&] { return device->state() == DeviceState::kHeld; }, 100 * kNsPerSecond));
    world_.RunFor(60 * kNsPerSecond);
  }
  void Find(ClientNode& client) { world_.HealPartition(client.host(), node_.host()); }
  void RestartServer() {
    node_.Stop();
    node_.exports().Clear();
    AddVolume();
    node_.Start();
  }
  int Write(ClientNode& client, Device* device, std::uint64_t pattern) {
    FillPattern(client.memory().first(4096), pattern);
    return client.Run(*device, *client.Make(IoOp::kWrite, 0, 4096));
  }
  // The other one takes the volume, writes, and leaves.
  void OtherWrites(AccessMode mode = AccessMode::kReadWrite) {
    const auto device = other_.Open("vol0", mode);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ(Write(other_, *device, 2), 0);
    other_.CloseDevice(*device, kNsPerSecond);
  }
  bool DiskHas(ClientNode& client) {
    return std::memcmp(disk_->current().data(), client.memory().data(), 4096) == 0;
  }
  void ExpectShutOut(Device* device, const TestIo& held) {
    world_.RunFor(60 * kNsPerSecond);
    EXPECT_EQ(device->state(), DeviceState::kHeld);
    EXPECT_THAT(device->state_reason(), HasSubstr("another client has had it open for writing"));
    EXPECT_EQ(held.done_count, 0);
  }
  void ExpectGoesOn(TestIo& held) {
    EXPECT_TRUE(world_.RunUntil([&] { return held.done_count > 0; }, 60 * kNsPerSecond));
    EXPECT_EQ(held.result, 0);
  }
  std::unique_ptr<TestIo> Hold(Device* device) {
    auto held = client_.Make(IoOp::kWrite, 0, 4096);
    EXPECT_EQ(device->queue(0).Submit(*held), 0);
    return held;
  }

  sim::World world_{1, sim::FaultPlan{}};
  ServerNode node_{world_};
  std::shared_ptr<FakeDisk> disk_ = std::make_shared<FakeDisk>(FakeGeometry(8 << 20));
  ClientNode client_{world_, "client"};
  ClientNode other_{world_, "other"};
};

TEST_F(ClientWriters, WhatWasHeldDoesNotGoOverWhatAnotherClientHasWrittenMeanwhile) {
  Device* device = *client_.Open("vol0");
  ASSERT_EQ(Write(client_, device, 1), 0);
  Lose(client_, device);
  const auto held = Hold(device);
  OtherWrites();
  Find(client_);
  ExpectShutOut(device, *held);
  EXPECT_TRUE(DiskHas(other_));
  // That it looks again and again takes nothing from the one that has the volume.
  const auto again = other_.Open("vol0");
  ASSERT_TRUE(again.ok()) << again.status();
  Lose(other_, *again);
  Find(other_);
  EXPECT_EQ(Write(other_, *again, 3), 0);
  other_.CloseDevice(*again, kNsPerSecond);
  // Who knows better opens it anew.
  client_.CloseDevice(device, 0);
  EXPECT_EQ(held->result, -ECANCELED);
  const auto anew = client_.Open("vol0");
  ASSERT_TRUE(anew.ok()) << anew.status();
  EXPECT_EQ(Write(client_, *anew, 4), 0);
  EXPECT_TRUE(DiskHas(client_));
}

TEST_F(ClientWriters, NobodyElseOrAReaderIsNoReasonToStayAway) {
  Device* device = *client_.Open("vol0");
  for (int round = 0; round < 3; ++round) {
    Lose(client_, device);
    const auto held = Hold(device);
    if (round == 1) {
      const auto reader = other_.Open("vol0", AccessMode::kReadOnly);
      ASSERT_TRUE(reader.ok()) << reader.status();
      other_.CloseDevice(*reader, kNsPerSecond);
    }
    if (round == 2) RestartServer();  // It does not know the past.
    Find(client_);
    ExpectGoesOn(*held);
  }
}

TEST_F(ClientWriters, AServerThatWasRestartedKnowsWhoHasWrittenSince) {
  Device* device = *client_.Open("vol0");
  Lose(client_, device);
  const auto held = Hold(device);
  RestartServer();
  world_.RunFor(20 * kNsPerSecond);  // The other one is back.
  OtherWrites();
  Find(client_);
  ExpectShutOut(device, *held);
  EXPECT_TRUE(DiskHas(other_));
  client_.CloseDevice(device, 0);
}

TEST_F(ClientWriters, AMigrationThatOthersBeginIsAChangeOfTheWriterAndOneAtTheSameTimeIsNot) {
  Device* device = *client_.Open("vol0");
  const auto guest = other_.Open("vol0", AccessMode::kMigration);
  ASSERT_TRUE(guest.ok()) << guest.status();
  Lose(client_, device);
  const auto held = Hold(device);
  other_.CloseDevice(*guest, kNsPerSecond);
  Find(client_);
  ExpectGoesOn(*held);
  Lose(client_, device);
  const auto late = Hold(device);
  OtherWrites(AccessMode::kMigration);
  Find(client_);
  ExpectShutOut(device, *late);
  client_.CloseDevice(device, 0);
}

// The source of a live migration has the volume for itself when the guest comes.
TEST_F(ClientWriters, TheSourceOfAMigrationThatLosesItsPathComesBackBesideItsGuest) {
  Device* device = *client_.Open("vol0");
  const auto guest = other_.Open("vol0", AccessMode::kMigration);
  ASSERT_TRUE(guest.ok()) << guest.status();
  for (int round = 0; round < 2; ++round) {
    Lose(client_, device);
    const auto held = Hold(device);
    EXPECT_EQ(Write(other_, *guest, 2), 0);
    Find(client_);
    ExpectGoesOn(*held);
  }
  EXPECT_EQ(Write(other_, *guest, 3), 0);
  // Somebody new who wants it for himself is kept out, also by the guest alone.
  client_.CloseDevice(device, kNsPerSecond);
  EXPECT_FALSE(client_.Open("vol0").ok());
  other_.CloseDevice(*guest, kNsPerSecond);
  EXPECT_TRUE(client_.Open("vol0").ok());
}

TEST_F(ClientWriters, TheSourceOfAMigrationComesBackToAServerThatItsGuestHasFoundFirst) {
  Device* device = *client_.Open("vol0");
  const auto guest = other_.Open("vol0", AccessMode::kMigration);
  ASSERT_TRUE(guest.ok()) << guest.status();
  for (const bool guest_stays : {true, false}) {
    Lose(client_, device);
    const auto held = Hold(device);
    RestartServer();
    world_.RunFor(20 * kNsPerSecond);
    EXPECT_EQ(Write(other_, *guest, 2), 0);
    if (!guest_stays) other_.CloseDevice(*guest, kNsPerSecond);
    Find(client_);
    ExpectGoesOn(*held);
  }
  EXPECT_EQ(Write(client_, device, 1), 0);
}

TEST_F(ClientWriters, TheGuestOfAMigrationComesBackToAServerThatItsSourceHasFoundFirst) {
  Device* device = *client_.Open("vol0");
  const auto guest = other_.Open("vol0", AccessMode::kMigration);
  ASSERT_TRUE(guest.ok()) << guest.status();
  Lose(other_, *guest);
  RestartServer();
  world_.RunFor(20 * kNsPerSecond);
  EXPECT_EQ(Write(client_, device, 1), 0);
  Lose(client_, device);
  const auto held = Hold(device);
  Find(other_);  // Alone, and it does not shut the source out.
  world_.RunFor(20 * kNsPerSecond);
  EXPECT_EQ(Write(other_, *guest, 2), 0);
  Find(client_);
  ExpectGoesOn(*held);
}

// The daemon's case: its process ends with the volume open, and the next one knows the epoch.
TEST_F(ClientWriters, ARestartedProgramGoesOnWithTheEpochThatItsFormerProcessHad) {
  const auto first = client_.Open("vol0");
  const std::uint16_t epoch = (*first)->info().writer_epoch;
  EXPECT_NE(epoch, 0);
  client_.CloseDevice(*first, kNsPerSecond);
  const auto open = [&](std::uint16_t known) {
    absl::StatusOr<Device*> device = absl::UnknownError("no answer");
    bool answered = false;
    client_.client().OpenDevice(
        "vol0", AccessMode::kReadWrite, {},
        [&](absl::StatusOr<Device*> result) {
          answered = true;
          device = std::move(result);
        },
        known);
    EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 60 * kNsPerSecond));
    return device;
  };
  const auto next = open(epoch);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ((*next)->info().writer_epoch, epoch);
  client_.CloseDevice(*next, kNsPerSecond);
  OtherWrites();
  const auto refused = open(epoch);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("another client"));
  EXPECT_TRUE(open(0).ok());
}

}  // namespace
}  // namespace ibnbd::rnbd
