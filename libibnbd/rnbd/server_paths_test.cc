// SPDX-License-Identifier: Apache-2.0
// A session with several paths, as the kernel's client makes them: what is in flight on a path that
// breaks comes again over another, under the same number, and must not be overtaken by what is left
// of the old request.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "fabric/sim/marks.h"
#include "rnbd/server_fixture.h"
#include "tests/support/raw_client.h"

namespace ibnbd::rnbd {
namespace {

using proto::AccessMode;

class ServerPathsTest : public ::testing::Test {
 protected:
  ServerPathsTest()
      : world(12, sim::FaultPlan()),
        disk(std::make_shared<FakeDisk>(FakeGeometry(1 << 20))),
        server(world, SmallServer()) {
    vol0 = &server.exports.Add("vol0", disk);
    for (std::uint8_t i = 0; i < 3; ++i) {
      paths.push_back(std::make_unique<RawClient>(world, world.AddHost("way" + std::to_string(i)),
                                                  server.address,
                                                  static_cast<std::uint8_t>(i + 1)));
      paths[i]->request.paths_uuid.fill(77);
      EXPECT_TRUE(paths[i]->Open(2, "host-a"));
    }
    proto::OpenRsp opened;
    EXPECT_EQ(paths[0]->OpenDevice("vol0", AccessMode::kReadWrite, &opened), 0);
    device = opened.device_id.get();
  }
  ~ServerPathsTest() override {
    paths.clear();
    EXPECT_TRUE(server.Stop());
    EXPECT_THAT(world.violations(), ::testing::IsEmpty());
  }
  // Connection 1 and 2 of different paths are on different reactors.
  void Write(std::size_t path, std::uint32_t mem_id, std::uint8_t value) {
    const proto::Io io = MakeIo(proto::IoOp::kWrite, device, 0, 512);
    paths[path]->Write(path % 2, mem_id, proto::AsBytes(io),
                       std::vector<std::byte>(512, std::byte{value}));
    world.RunFor(kNsPerMs);
  }

  int Flush(std::size_t path, std::uint32_t mem_id) {
    paths[path]->Write(1, mem_id, proto::AsBytes(MakeIo(proto::IoOp::kFlush, device, 0, 0)));
    return paths[path]->Await(mem_id);
  }
  // The path breaks and comes back.
  void Replace(std::size_t path, std::uint8_t round) {
    paths[path]->Disconnect();
    world.RunFor(kNsPerSecond);
    paths[path] =
        std::make_unique<RawClient>(world, world.AddHost("again" + std::to_string(round)),
                                    server.address, static_cast<std::uint8_t>(40 + round));
    paths[path]->request.paths_uuid.fill(77);
    ASSERT_TRUE(paths[path]->Open(2, "host-a"));
  }

  sim::Marks marks;
  sim::World world;
  std::shared_ptr<FakeDisk> disk;
  ServerFixture server;
  FakeBackend* vol0 = nullptr;
  std::vector<std::unique_ptr<RawClient>> paths;
  std::uint32_t device = 0;
};

TEST_F(ServerPathsTest, WhatWasLostIsToldOnceToAQueueWhicheverPathsItHasAndGets) {
  vol0->sync_errors()->Note();
  EXPECT_EQ(Flush(0, 7), -EIO);
  for (std::size_t path = 0; path < paths.size(); ++path) EXPECT_EQ(Flush(path, 7), 0);
  for (std::uint8_t round = 0; round < 3; ++round) {
    Replace(2, round);
    EXPECT_EQ(Flush(2, 7), 0) << "round " << int{round};
  }
}

// The client may not have read the answer: it sends the flush again.
TEST_F(ServerPathsTest, AFlushWhoseAnswerMayBeLostWithItsPathFailsAgain) {
  vol0->sync_errors()->Note();
  EXPECT_EQ(Flush(2, 7), -EIO);
  EXPECT_EQ(Flush(2, 6), 0);  // Of another chunk: it says nothing of the first one's answer.
  Replace(2, 0);
  EXPECT_EQ(Flush(2, 7), -EIO);
  Replace(2, 1);
  EXPECT_EQ(Flush(1, 7), -EIO);
  EXPECT_EQ(Flush(1, 7), 0);
  EXPECT_EQ(Flush(2, 7), 0);
}

TEST_F(ServerPathsTest, ARequestThatComesAgainOverAnotherPathWaitsForTheOldOne) {
  vol0->HoldIos();
  Write(0, 3, 0x11);
  ASSERT_EQ(vol0->executing_count(), 1u);
  Write(1, 3, 0x22);
  EXPECT_EQ(vol0->executing_count(), 1u);
  vol0->Release();
  EXPECT_EQ(paths[1]->Await(3), 0);
  EXPECT_FALSE(paths[0]->responses.contains(3));
  EXPECT_EQ(disk->current()[0], std::byte{0x22});
  EXPECT_EQ(marks.count("server: a repeated request waited for the old one"), 1u);
}

// Which one the client still waits for is not known: over different paths what was sent first may
// come last.  Nothing may land behind the answer, and what is not answered is sent again.
TEST_F(ServerPathsTest, OnlyTheLastOneToExecuteIsAnsweredAndThePathsOfTheOthersEnd) {
  vol0->HoldIos();
  Write(0, 3, 0x11);
  Write(1, 3, 0x22);
  Write(2, 3, 0x33);  // The second path is dead, too, and we do not know.
  ASSERT_EQ(vol0->executing_count(), 1u);
  vol0->Release();
  vol0->HoldIos();
  world.RunFor(10 * kNsPerMs);
  EXPECT_EQ(vol0->executing_count(), 1u);  // The second one, which has waited longest.
  EXPECT_EQ(vol0->count(BackendOp::kWrite), 2u);
  EXPECT_TRUE(paths[0]->AwaitGone(kNsPerSecond));
  EXPECT_FALSE(paths[0]->responses.contains(3) || paths[2]->responses.contains(3));
  vol0->Release();
  EXPECT_EQ(paths[2]->Await(3), 0);
  EXPECT_TRUE(paths[1]->AwaitGone(kNsPerSecond));
  EXPECT_FALSE(paths[1]->responses.contains(3));
  EXPECT_EQ(disk->current()[0], std::byte{0x33});
  Write(2, 4, 0x44);  // Another number, after the answer.
  EXPECT_EQ(paths[2]->Await(4), 0);
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(disk->current()[0], std::byte{0x44});
  EXPECT_FALSE(paths[2]->AnyGone());
}

TEST_F(ServerPathsTest, ItWaitsAlsoIfTheOldPathIsGone) {
  vol0->HoldIos();
  Write(0, 3, 0x11);
  paths[0]->Disconnect();
  world.RunFor(kNsPerSecond);
  Write(1, 3, 0x22);
  EXPECT_EQ(vol0->executing_count(), 1u);
  vol0->Release();
  EXPECT_EQ(paths[1]->Await(3), 0);
  EXPECT_EQ(disk->current()[0], std::byte{0x22});
}

TEST_F(ServerPathsTest, OneThatWaitsOnAPathThatBreaksIsNotExecuted) {
  vol0->HoldIos();
  Write(0, 3, 0x11);
  Write(1, 3, 0x22);
  paths[0]->Disconnect();
  paths[1]->Disconnect();
  Write(2, 3, 0x33);
  EXPECT_EQ(vol0->executing_count(), 1u);
  vol0->Release();
  EXPECT_EQ(paths[2]->Await(3), 0);
  EXPECT_EQ(disk->current()[0], std::byte{0x33});
  EXPECT_EQ(vol0->count(BackendOp::kWrite), 2u);
  world.RunFor(kNsPerSecond);
  EXPECT_EQ(server.server->stats().chunk_memory, 16u * (8192 + 4096));  // Nothing is kept for them.
}

TEST_F(ServerPathsTest, RequestsOfOtherNumbersDoNotWait) {
  vol0->HoldIos();
  Write(0, 3, 0x11);
  Write(1, 4, 0x22);
  EXPECT_EQ(vol0->executing_count(), 2u);
  vol0->Release();
  EXPECT_EQ(paths[0]->Await(3), 0);
  EXPECT_EQ(paths[1]->Await(4), 0);
  Write(1, 3, 0x33);  // And a number is free once its request is done, whatever the path.
  EXPECT_EQ(paths[1]->Await(3), 0);
}

}  // namespace
}  // namespace ibnbd::rnbd
