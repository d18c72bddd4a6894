// SPDX-License-Identifier: Apache-2.0
#include "rtrs/chunk_fence.h"

#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <thread>
#include <vector>

namespace ibnbd::rtrs {
namespace {

TEST(ChunkFence, WaitersGetTheNumberInTheOrderOfTheirArrivalAndTheLastLeavesItFree) {
  ChunkFence fence(2);
  ServerRequest first, second, third, fourth, fifth;
  ASSERT_TRUE(fence.Enter(first));
  EXPECT_FALSE(fence.Enter(second));
  EXPECT_FALSE(fence.Enter(third));
  EXPECT_FALSE(fence.Enter(fourth));
  EXPECT_EQ(fence.Leave(first), &second);
  EXPECT_FALSE(fence.Enter(fifth));
  EXPECT_EQ(fence.Leave(second), &third);
  EXPECT_EQ(fence.Leave(third), &fourth);
  EXPECT_EQ(fence.Leave(fourth), &fifth);
  EXPECT_EQ(fence.Leave(fifth), nullptr);
  EXPECT_TRUE(fence.Enter(first));
  EXPECT_EQ(fence.Leave(first), nullptr);
}

TEST(ChunkFence, LetsOneThreadInAtATimeAndForgetsNone) {
  constexpr int kThreads = 4, kRounds = 20'000;
  struct Party {
    ServerRequest request;
    std::atomic<bool> resumed{false};
  };
  ChunkFence fence(1);
  std::array<Party, kThreads> parties;
  int inside = 0;  // No atomic: the fence is what orders it, and a race detector says if not.
  int entered = 0;
  std::barrier start(kThreads);
  std::vector<std::thread> threads;
  for (Party& party : parties) {
    threads.emplace_back([&] {
      start.arrive_and_wait();
      for (int i = 0; i < kRounds; ++i) {
        if (!fence.Enter(party.request)) {
          party.resumed.wait(false);
          party.resumed = false;
        }
        EXPECT_EQ(++inside, 1);
        ++entered;
        --inside;
        ServerRequest* waiter = fence.Leave(party.request);
        for (Party& other : parties) {
          if (waiter != &other.request) continue;
          other.resumed = true;
          other.resumed.notify_one();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(entered, kThreads * kRounds);
}

}  // namespace
}  // namespace ibnbd::rtrs
