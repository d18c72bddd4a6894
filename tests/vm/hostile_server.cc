// SPDX-License-Identifier: Apache-2.0
// ibnbd-hostile-server: servers that break the rules of RTRS and RNBD over RDMA, one rule after the
// other (hostile_deeds.h), each with a client of libibnbd as its victim (victim.h) and two more
// beside it: one of an honest server, and one whose memory and keys the hostile servers know.  Exit
// code 1 if the victim did not end as it must, or anybody else noticed anything.
//
//   ibnbd-hostile-server rdma://10.77.0.1:1234 [PART-OF-A-NAME]
//
// The servers and their world are the main thread's; the clients have threads of their own.

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/socket_address.h"
#include "tests/support/scripted_server.h"
#include "tests/vm/hostile_deeds.h"
#include "tests/vm/rdma_machine.h"
#include "tests/vm/victim.h"

namespace ibnbd {
namespace {

using Server = rnbd::ScriptedServer;

constexpr std::uint16_t kFirstPort = 3000;
constexpr std::int64_t kPatience = 60 * kNsPerSecond;

bool EndsAs(const VictimReport& seen, End wanted) {
  const bool in_order = !seen.answered_twice && !seen.beside_touched &&
                        seen.succeeded + seen.failed + seen.cancelled == seen.submitted;
  if (!in_order) return false;
  switch (wanted) {
    case End::kRefused:
      return seen.session < 0;
    case End::kRecovers:
      return seen.session == 0 && seen.all_succeeded() && seen.reconnects > 0;
    case End::kIgnored:
      return seen.session == 0 && seen.all_succeeded() && seen.reconnects == 0;
    case End::kFails:
      return seen.session == 0 && (seen.device < 0 || seen.failed > 0);
    case End::kNothing:
      return seen.device == 0 && seen.submitted > 0 && seen.succeeded == 0;
    case End::kCancelled:
      return seen.device == 0 && seen.cancelled > 0;
  }
  return false;
}

bool Try(Machine& machine, SocketAddress address, const std::string& uri, const Deed& deed) {
  Server server(std::make_unique<SharedMachine>(machine), address);
  deed.arm(server);
  VictimReport seen;
  std::atomic<bool> done{false};
  std::thread victim([&] {
    seen = RunVictim(uri);
    done.store(true);
  });
  const std::int64_t begin_ns = MonotonicClock().NowNs();
  if (!machine.RunUntil([&done] { return done.load(); }, kPatience)) {
    std::printf("%s: FAILED: the client hangs\n", deed.what);
    std::fflush(stdout);
    ::_exit(1);  // Its thread cannot be ended.
  }
  victim.join();
  const bool well = EndsAs(seen, deed.end) && absl::StrContains(seen.text, deed.text);
  std::printf("%s: %s (%.1f s)\n", deed.what, well ? "ok" : "FAILED",
              static_cast<double>(MonotonicClock().NowNs() - begin_ns) / 1e9);
  if (!well) {
    std::printf("%s%s%s", seen.answered_twice ? "an IO was answered twice\n" : "",
                seen.beside_touched ? "memory that was not lent was touched\n" : "",
                seen.ToString().c_str());
  }
  std::fflush(stdout);
  return well;
}

// Port `number` of the servers' address.
absl::StatusOr<SocketAddress> At(const Uri& uri, std::uint16_t number) {
  return ResolveAddress(uri.host, number);
}

int Run(const std::string& text, const std::string& only) {
  const absl::StatusOr<Uri> uri = ParseUri(text);
  if (!uri.ok()) return 2;
  std::uint16_t port = kFirstPort;
  Machine machine(*At(*uri, port));
  fabric::RemoteAddress lent;
  Server generous(std::make_unique<SharedMachine>(machine), *At(*uri, port));
  generous.on_request = [&lent](const Server::Request& request) {
    // Its IO; control messages have other lengths.
    if (request.rtrs.has_desc && request.rtrs.data_len == 8192) {
      lent = {request.rtrs.desc_addr, request.rtrs.desc_key};
    }
    return false;
  };
  Neighbour honest(text, true), known(absl::StrCat("rdma://", uri->host, ":", port), false);
  const auto all_began = [&] { return honest.rounds() != 0 && known.rounds() != 0; };
  machine.RunUntil(all_began, kPatience);
  if (lent.rkey == 0) std::printf("no neighbour has lent anything\n");
  int failed = 0, tried = 0;
  for (const Deed& deed : AllDeeds(lent)) {
    ++port;
    if (!absl::StrContains(deed.what, only)) continue;
    ++tried;
    if (!Try(machine, *At(*uri, port), absl::StrCat("rdma://", uri->host, ":", port), deed)) {
      ++failed;
    }
  }
  std::atomic<bool> stopped{false};
  std::string trouble;
  std::thread stopper([&] {
    trouble = absl::StrCat(honest.Stop(), known.Stop());
    stopped.store(true);
  });
  machine.RunUntil([&stopped] { return stopped.load(); }, kPatience);
  stopper.join();
  std::printf("%d deeds, %d failed; neighbours: %d and %d rounds %s\n", tried, failed,
              honest.rounds(), known.rounds(), trouble.c_str());
  return tried > 0 && failed == 0 && lent.rkey != 0 && trouble.empty() && honest.rounds() > 0 &&
                 known.rounds() > 0
             ? 0
             : 1;
}

}  // namespace
}  // namespace ibnbd

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  return ibnbd::Run(argv[1], argc > 2 ? argv[2] : "");
}
