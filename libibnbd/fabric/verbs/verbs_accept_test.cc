// SPDX-License-Identifier: Apache-2.0
// Accepting may fail at its last step, when there is a queue pair already: the peer may go away at
// any moment.  That moment is not to be had in a test, a receive that the device refuses is.
#include "fabric/conformance_fixture.h"

namespace ibnbd::fabric {

TEST_P(ConformanceTest, AcceptingThatFailsLateLeavesNothing) {
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  ASSERT_NO_FATAL_FAILURE(StartConnect());
  ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); }));
  const std::vector<Sge> pieces(kAskedLimits.sges_max + 60, Piece(1, 0, 64));
  ReceiveRequest receive;
  receive.sges = pieces;
  auto accepted = side(1).incoming.front()->Accept(
      *side(1).poller, Options(kPassiveContext, {&receive, 1}), Bytes("yes"));
  EXPECT_FALSE(accepted.ok());
  side(1).incoming.clear();
  EXPECT_TRUE(Until([&] { return end(0).drained(); }));
}

}  // namespace ibnbd::fabric
