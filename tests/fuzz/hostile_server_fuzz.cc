// SPDX-License-Identifier: Apache-2.0
// The real client against a whole hostile server, in the simulated world.  The client must not
// crash, not complete an IO twice nor succeed with a broken wire, not write outside its buffers,
// and must end every IO and itself in bounded virtual time (honest_client.cc judges).  Input:
// {seed: 1 byte; number of IOs: 1; what the server does: hostile_server.h}.
#include <algorithm>
#include <cstdio>
#include <string>

#include "base/check.h"
#include "base/log.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/honest_client.h"
#include "tests/fuzz/hostile_server.h"

namespace ibnbd::fuzz {
namespace {

constexpr std::int64_t kFailAfterNs = 2 * kNsPerSecond;
// A server that lives but does not answer is given up on after 30 s; an IO may need a few rounds of
// that before its policy, which counts from the loss of the path, ends it.
constexpr std::int64_t kIoNsMax = 300 * kNsPerSecond;
constexpr std::int64_t kOpenNsMax = 300 * kNsPerSecond;

void RunIos(HonestClient& client, int count, bool honest) {
  using rnbd::IoOp;
  static constexpr IoOp kOps[] = {IoOp::kRead, IoOp::kWrite, IoOp::kFlush, IoOp::kDiscard,
                                  IoOp::kWriteZeroes};
  for (int i = 0; i < count; ++i) {
    const IoOp op = kOps[i % 5];
    const std::uint32_t length = op == IoOp::kFlush ? 0 : HonestClient::kBufferSize;
    // Memory of an IO that has completed is ours again: what is still being sent from it shows.
    std::fill(client.write_buffer().begin(), client.write_buffer().end(),
              static_cast<std::byte>(i));
    const int error = client.Do(op, 0, length, kIoNsMax);
    CHECK(!honest || error == 0);
    if (error == 1) return;  // Close() must end it.
  }
}

void JudgeViolations(const sim::World& world) {
  for (const std::string& violation : world.violations()) {
    std::fprintf(stderr, "violation: %s\n", violation.c_str());
    CHECK(world.violations().empty());
  }
}

}  // namespace
}  // namespace ibnbd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ibnbd;
  using namespace ibnbd::fuzz;
  SetLogSink(nullptr, LogLevel::kError);
  FuzzInput input(data, size);
  sim::World world(input.U8(), sim::FaultPlan());
  const int io_count = input.U8() % 16;
  const bool honest = input.empty();  // Else this would test less than it seems.
  HostileServer server(input, world);
  {
    rtrs::ClientSessionOptions session;
    session.name = "victim";
    HonestClient client(world, world.AddHost("victim"), server.address(), session);
    const bool opened = client.Open(kOpenNsMax, kFailAfterNs);
    CHECK(opened || !honest);
    if (opened) {
      RunIos(client, io_count, honest);
      client.ListExports();
      world.RunFor(kNsPerSecond);
    }
  }
  JudgeViolations(world);
  return 0;
}
