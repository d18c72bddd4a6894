// SPDX-License-Identifier: Apache-2.0
#include "fabric/traced_fabric.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "fabric/sim/test_pair.h"

namespace ibnbd::fabric {
namespace {
using sim::FaultPlan;
using sim::Pair;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

Pair::Decorate Into(std::vector<std::string>& lines) {
  return [&lines](Fabric& inner) {
    return std::make_unique<TracedFabric>(
        inner, [&lines](const std::string& line) { lines.push_back(line); });
  };
}

TEST(TracedFabricTest, EveryPostCompletionAndEventIsOneLine) {
  std::vector<std::string> lines;
  Pair pair(1, FaultPlan(), Into(lines));
  pair.Connect();
  pair.client->Write(*pair.server, 0, 0, 17, Opcode::kWriteImm);
  pair.world.RunFor(kNsPerMs);
  EXPECT_THAT(lines, Contains(HasSubstr("connect to sim2:")));
  EXPECT_THAT(lines, Contains(HasSubstr("event incoming from sim1:")));
  EXPECT_THAT(lines, Contains(HasSubstr("event established connection 1")));
  EXPECT_THAT(lines, Contains(AllOf(HasSubstr("connection 1 post write-imm cookie 17 signaled"),
                                    HasSubstr("length 64"), HasSubstr("imm 0x11"))));
  EXPECT_THAT(lines, Contains(HasSubstr("completion cookie 17 ok write-imm")));
  EXPECT_THAT(lines, Contains(HasSubstr("completion cookie 1000 ok receive-write-imm length 64")));
  for (const std::string& line : lines) EXPECT_THAT(line, Not(HasSubstr("\n")));
}

TEST(TracedFabricTest, AFailedCompletionShowsNothingButItsStatus) {
  std::vector<std::string> lines;
  Pair pair(1, FaultPlan(), Into(lines));
  pair.Connect();
  lines.clear();
  pair.client->connection->Disconnect();
  pair.world.RunFor(kNsPerSecond);
  EXPECT_THAT(lines, Contains("connection 1 disconnect"));
  EXPECT_THAT(lines, Contains("poller 1 completion cookie 1000 flushed"));
  EXPECT_THAT(lines, Contains(HasSubstr("event disconnected connection 1")));
}

}  // namespace
}  // namespace ibnbd::fabric
