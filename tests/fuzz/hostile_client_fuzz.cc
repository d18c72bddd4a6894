// SPDX-License-Identifier: Apache-2.0
// A whole hostile client against the real server, in the simulated world; server_world.h judges.
// Input: a program.  Each step is {opcode, slot of the connection, operands}; see Step().
#include "base/check.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/hostile_client.h"
#include "tests/fuzz/server_world.h"

namespace ibnbd::fuzz {
namespace {

constexpr int kStepsMax = 200;

void Step(FuzzInput& input, ServerWorld& server, HostileClient& client) {
  const unsigned op = input.U8() % (HostileClient::kMoves + 2);
  if (op < HostileClient::kMoves) return client.Move(op, input);
  (void)input.U8();  // A slot that nobody needs.
  if (op > HostileClient::kMoves) return server.JudgeNeighbour();
  server.world().RunFor(input.U16() * 50 * kNsPerUs);  // Up to 3.3 s.
}

}  // namespace
}  // namespace ibnbd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ibnbd::fuzz;
  FuzzInput input(data, size);
  ServerWorld server(input.U8());
  {
    HostileClient client(server.world(), server.AddHost("hostile"), server.target());
    for (int steps = 0; steps < kStepsMax && !input.empty(); ++steps) {
      Step(input, server, client);
      server.JudgeNow();
    }
    client.peer().DisconnectAll();
  }
  return 0;
}
