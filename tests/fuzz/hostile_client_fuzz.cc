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
  const std::uint8_t op = input.U8();
  const std::size_t slot = input.U8() % RawPeer::kSlots;
  switch (op % 12) {
    case 0:
      return client.Connect(input, slot);
    case 1:
      return client.Introduce(input, slot);
    case 2:
      return client.ControlMessage(input, slot);
    case 3:
      return client.Io(input, slot);
    case 4:
      return client.RawWrite(input, slot, fabric::Opcode::kWriteImm);
    case 5:
      return client.RawWrite(input, slot, fabric::Opcode::kWrite);
    case 6:
      return client.RawSend(input, slot, fabric::Opcode::kSend);
    case 7:
      return client.RawSend(input, slot, fabric::Opcode::kSendImm);
    case 8:
      return client.peer().PostAgain();
    case 9:
      return client.peer().Disconnect(slot);
    case 10:
      return server.world().RunFor(input.U16() * 50 * kNsPerUs);  // Up to 3.3 s.
    default:
      return server.JudgeNeighbour();
  }
}

}  // namespace
}  // namespace ibnbd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ibnbd::fuzz;
  FuzzInput input(data, size);
  ServerWorld server(input.U8());
  {
    HostileClient client(server);
    for (int steps = 0; steps < kStepsMax && !input.empty(); ++steps) {
      Step(input, server, client);
      server.JudgeNow();
    }
    client.peer().DisconnectAll();
  }
  return 0;
}
