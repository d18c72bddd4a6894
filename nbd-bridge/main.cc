// SPDX-License-Identifier: Apache-2.0
// nbd-bridge: an NBD server whose volumes live on an RNBD server.  The main thread parses the
// command line, starts the bridge, and waits for a signal.
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "ibnbd/ibnbd.h"
#include "nbd-bridge/bridge.h"
#include "nbd-bridge/options.h"

namespace {

using ibnbd::LogLevel;

void ToStderr(LogLevel level, const std::string& line) {
  static constexpr const char* kNames[] = {"error: ", "warning: ", "", "debug: "};
  std::fprintf(stderr, "nbd-bridge: %s%s\n", kNames[static_cast<int>(level)], line.c_str());
}

void FromLibrary(void* /*opaque*/, int level, const char* line) {
  ToStderr(static_cast<LogLevel>(level), line);
}

void SetUpLog(int verbosity) {
  const LogLevel level = verbosity == 0   ? LogLevel::kWarn
                         : verbosity == 1 ? LogLevel::kInfo
                                          : LogLevel::kDebug;
  ibnbd::SetLogSink(ToStderr, level);
  ibnbd_set_log(FromLibrary, nullptr, static_cast<int>(level));
}

// Until the bridge serves there is nothing to finish, and a server that it waits for may never
// come.
void LeaveAtOnce(int /*signal*/) { _exit(0); }

int Serve(const ibnbd::bridge::ProgramOptions& options) {
  auto bridge = ibnbd::bridge::Bridge::Start(options.bridge);
  if (!bridge.ok()) {
    std::fprintf(stderr, "nbd-bridge: %s\n", std::string(bridge.status().message()).c_str());
    return 1;
  }
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  for (const auto& socket : (*bridge)->sockets()) {
    std::printf("listening on %s\n", socket.ClientUri().c_str());
  }
  std::fflush(stdout);
  sd_notify(
      0,
      absl::StrCat("READY=1\nSTATUS=Serving ", (*bridge)->volumes().count(), " volumes").c_str());
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  sd_notify(0, "STOPPING=1");
  return (*bridge)->Stop() ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  for (const int number : {SIGTERM, SIGINT}) std::signal(number, LeaveAtOnce);
  for (const int number : {SIGHUP, SIGPIPE}) std::signal(number, SIG_IGN);

  const auto options = ibnbd::bridge::ParseProgramOptions(argc, argv);
  if (!options.ok()) {
    std::fprintf(stderr, "nbd-bridge: %s\nTry 'nbd-bridge --help'.\n",
                 std::string(options.status().message()).c_str());
    return 64;  // EX_USAGE
  }
  if (!options->message.empty()) {
    std::fputs(options->message.c_str(), stdout);
    return 0;
  }
  SetUpLog(options->verbosity);
  return Serve(*options);
}
