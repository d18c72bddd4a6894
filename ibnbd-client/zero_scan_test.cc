// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/zero_scan.h"

#include <gtest/gtest.h>

#include <vector>

namespace ibnbd::client {
namespace {

TEST(IsZero, SeesASingleByteAnywhere) {
  for (const std::size_t size : {1u, 15u, 16u, 17u, 512u}) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(IsZero(bytes));
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = std::byte{1};
      EXPECT_FALSE(IsZero(bytes)) << size << " " << i;
      bytes[i] = std::byte{0};
    }
  }
}

TEST(FirstRun, JoinsGrainsOfTheSameKind) {
  std::vector<std::byte> bytes(1000);
  bytes[250] = std::byte{1};
  ZeroRun run = FirstRun(bytes, 100);
  EXPECT_TRUE(run.zero);
  EXPECT_EQ(run.length, 200u);
  run = FirstRun(std::span(bytes).subspan(200), 100);
  EXPECT_FALSE(run.zero);
  EXPECT_EQ(run.length, 100u);
  run = FirstRun(std::span(bytes).subspan(300), 100);
  EXPECT_TRUE(run.zero);
  EXPECT_EQ(run.length, 700u);
}

TEST(FirstRun, TheLastGrainMayBeShort) {
  const std::vector<std::byte> bytes(130);
  EXPECT_EQ(FirstRun(bytes, 100).length, 130u);
  EXPECT_EQ(FirstRun(std::span(bytes).first(7), 100).length, 7u);
}

}  // namespace
}  // namespace ibnbd::client
