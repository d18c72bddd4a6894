// SPDX-License-Identifier: Apache-2.0
// nbd-bridge: an NBD server whose volumes live on an RNBD server.  The main thread parses the
// command line, takes what the process before has left, starts the bridge, and waits for a signal,
// or for a successor.
#include <poll.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/handover.h"
#include "base/log.h"
#include "base/log_writer.h"
#include "base/process_limits.h"
#include "base/status_macros.h"
#include "ibnbd/ibnbd.h"
#include "nbd-bridge/bridge.h"
#include "nbd-bridge/listener.h"
#include "nbd-bridge/options.h"
#include "nbd-bridge/service_manager.h"
#include "nbd-bridge/succession.h"

namespace {

using ibnbd::HandedClient;
using ibnbd::HandedOver;
using ibnbd::HandoverSocket;
using ibnbd::LogLevel;
using ibnbd::bridge::Bridge;
using ibnbd::bridge::Inheritance;
using ibnbd::bridge::Predecessor;
using ibnbd::bridge::ProgramOptions;

// Who reads it may be waiting for one of our volumes.  It is never destroyed.
ibnbd::LogWriter& Log() {
  static ibnbd::LogWriter* log = new ibnbd::LogWriter(STDERR_FILENO, "nbd-bridge: warning: ");
  return *log;
}

void ToLog(LogLevel level, const std::string& line) {
  static constexpr const char* kNames[] = {"error: ", "warning: ", "", "debug: "};
  Log().Write(absl::StrCat("nbd-bridge: ", kNames[static_cast<int>(level)], line));
}

void FromLibrary(void* /*opaque*/, int level, const char* line) {
  ToLog(static_cast<LogLevel>(level), line);
}

// Gives the reader a second to take the last lines.
void FlushLog() { (void)Log().Flush(absl::Seconds(1)); }

void SetUpLog(int verbosity) {
  const LogLevel level = verbosity == 0   ? LogLevel::kWarn
                         : verbosity == 1 ? LogLevel::kInfo
                                          : LogLevel::kDebug;
  Log().Start();
  ibnbd::before_check_fails = FlushLog;
  ibnbd::SetLogSink(ToLog, level);
  ibnbd_set_log(FromLibrary, nullptr, static_cast<int>(level));
}

// Until the bridge serves there is nothing to finish, and a server that it waits for may never
// come.
void LeaveAtOnce(int /*signal*/) { _exit(0); }

sigset_t EndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&signals, number);
  return signals;
}

// From here on they wait for WaitForEnd().
void HoldEndSignals() {
  const sigset_t signals = EndSignals();
  (void)pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // Cannot fail.
}

constexpr char kProgram[] = "nbd-bridge";
// For the process before us to answer who looks at it.
constexpr std::int64_t kLookTimeoutNs = 30 * ibnbd::kNsPerSecond;
// For it to end, beyond what it says that it may need.
constexpr std::int64_t kTakeOverGraceNs = 10 * ibnbd::kNsPerSecond;
constexpr int kRestMs = ibnbd::kDoorRestNs / ibnbd::kNsPerMs;

// What the bridge has beside its clients, generously.
std::size_t OwnDescriptors(const ibnbd::bridge::BridgeOptions& options) {
  std::set<std::pair<std::string, int>> servers;
  for (const auto& volume : options.volumes.volumes) {
    servers.emplace(volume.uri.host, volume.uri.port);
  }
  return 64 + options.listen.size() + options.thread_count * (8 + 16 * servers.size());
}

// A bridge that cannot open its volumes serves none of them.  The first ones go: what is opened
// next gets their numbers, which must be below the limit.
void MakeRoom(const ibnbd::bridge::BridgeOptions& options, std::vector<HandedClient>& clients) {
  const std::size_t limit = ibnbd::DescriptorLimit();
  const std::size_t own = std::min(OwnDescriptors(options), limit);
  if (clients.size() <= limit - own) return;
  const auto first_kept = clients.end() - static_cast<std::ptrdiff_t>(limit - own);
  for (auto client = clients.begin(); client != first_kept; ++client) {
    LOG_WARN("closed the connection of ", ibnbd::bridge::PeerOf(client->socket.get()),
             ": no more than ", limit, " open files are allowed (ulimit -n), of which ", own,
             " are not for clients");
  }
  clients.erase(clients.begin(), first_kept);
}

// How long the bridge that runs may need to end, if there is one, whose clients we could serve.
absl::StatusOr<std::int64_t> LookAhead(const ProgramOptions& options) {
  const std::string& path = options.handover_path;
  ASSIGN_OR_RETURN(const auto shown, ibnbd::LookAt(kProgram, path, kLookTimeoutNs));
  if (!shown) return 0;
  absl::StatusOr<Predecessor> before = ibnbd::bridge::ParsePredecessor(*shown);
  absl::Status status = before.status();
  if (status.ok()) status = ibnbd::bridge::CheckSuccession(options.bridge, *before);
  if (!status.ok()) {
    return ibnbd::Annotate(
        absl::Status(status.code(),
                     absl::StrCat(status.message(), "; the bridge that runs there goes on")),
        absl::StrCat("take over at ", path));
  }
  return before->ends_within_ns;
}

absl::StatusOr<Inheritance> TakeInheritance(const ProgramOptions& options) {
  Inheritance inheritance;
  ASSIGN_OR_RETURN(ibnbd::bridge::Kept kept, ibnbd::bridge::TakeFromServiceManager());
  inheritance.activated = std::move(kept.given.sockets);
  if (!options.handover_path.empty()) {
    // From here on there is no way back.
    ASSIGN_OR_RETURN(const std::int64_t ends_within_ns, LookAhead(options));
    ASSIGN_OR_RETURN(inheritance.before, ibnbd::TakeOver(kProgram, options.handover_path,
                                                         ends_within_ns + kTakeOverGraceNs));
  }
  std::move(kept.given.clients.begin(), kept.given.clients.end(),
            std::back_inserter(inheritance.before.clients));
  MakeRoom(options.bridge, inheritance.before.clients);
  inheritance.on_serve = [names = std::move(kept.names)] {
    HoldEndSignals();
    ibnbd::bridge::ForgetInServiceManager(names);
  };
  return inheritance;
}

// If somebody is at the door who takes over: his connection.
ibnbd::UniqueFd Admit(HandoverSocket& door, const std::vector<int>& sockets,
                      const HandoverSocket::Show& show) {
  auto visitor = door.HandOver(kProgram, sockets, show);
  if (visitor.ok()) return *std::move(visitor);
  LOG_WARN("handover: ", visitor.status().message());
  return ibnbd::UniqueFd();
}

// What can be told of those whom we do not serve yet.
Predecessor DescribeWaiting(const Inheritance& inheritance) {
  Predecessor described;
  described.ends_within_ns = 0;
  for (const auto& socket : inheritance.before.sockets) {
    described.addresses.push_back(ibnbd::bridge::LocalAddress(socket.get()));
  }
  for (const HandedClient& client : inheritance.before.clients) {
    auto state = ibnbd::bridge::ParseClientState(client.state);
    if (!state.ok() || state->is_new) continue;
    state->received.clear();
    described.clients.push_back(*std::move(state));
  }
  return described;
}

// For one who has taken over, and has nobody to give it back to: tries until the volumes can be
// opened, or another successor takes it all.  The exit code, if that was it.
std::optional<int> OpenVolumes(const ProgramOptions& options, std::optional<HandoverSocket>& door,
                               Inheritance* inheritance) {
  auto volume_options = Bridge::VolumeOptionsOf(options.bridge);
  volume_options.wait_for_servers = false;  // We wait, and look at the door meanwhile.
  std::vector<int> sockets;
  for (const auto& socket : inheritance->before.sockets) sockets.push_back(socket.get());
  std::string said;
  while (true) {
    auto volumes = ibnbd::bridge::VolumeTable::Open(volume_options);
    if (volumes.ok()) {
      inheritance->volumes = *std::move(volumes);
      return std::nullopt;
    }
    if (const std::string why(volumes.status().message()); why != said) {
      LOG_ERROR(why, "; it is tried again, and ", inheritance->before.clients.size(),
                " clients wait");
      said = why;
    }
    pollfd waiting{door ? door->fd() : -1, POLLIN, 0};
    if (::poll(&waiting, 1, kRestMs) <= 0) continue;
    const ibnbd::UniqueFd successor =
        Admit(*door, sockets, [&] { return FormatPredecessor(DescribeWaiting(*inheritance)); });
    if (!successor.valid()) {
      (void)::poll(nullptr, 0, kRestMs);
      continue;
    }
    return ibnbd::HandOverClients(successor.get(), inheritance->before.clients) ? 0 : 2;
  }
}

// Tells the service manager now and then that all threads answer.
class Watchdog {
 public:
  explicit Watchdog(Bridge& bridge) : bridge_(bridge) {
    std::uint64_t interval_us = 0;
    if (sd_watchdog_enabled(0, &interval_us) <= 0) return;
    pause_ns_ = std::max<std::int64_t>(static_cast<std::int64_t>(interval_us) * ibnbd::kNsPerUs / 3,
                                       ibnbd::kNsPerMs);
  }
  // For poll(): until it is due; -1: never.
  [[nodiscard]] int WaitMs() const {
    if (pause_ns_ < 0) return -1;
    const std::int64_t left_ns = std::max<std::int64_t>(due_ns_ - clock_.NowNs(), 0);
    return static_cast<int>(std::min<std::int64_t>(left_ns / ibnbd::kNsPerMs + 1, 3'600'000));
  }
  void FeedIfDue() {
    if (pause_ns_ < 0 || clock_.NowNs() < due_ns_) return;
    due_ns_ = clock_.NowNs() + pause_ns_;
    if (bridge_.AllAlive()) {
      sd_notify(0, "WATCHDOG=1");
      silent_ = false;
    } else if (!std::exchange(silent_, true)) {
      LOG_ERROR("a thread does not answer");
    }
  }

 private:
  Bridge& bridge_;
  const ibnbd::MonotonicClock clock_;
  std::int64_t pause_ns_ = -1;
  std::int64_t due_ns_ = 0;
  bool silent_ = false;
};

// Until there is a signal (invalid), or a successor.
ibnbd::UniqueFd WaitForEnd(int signals, std::optional<HandoverSocket>& door,
                           const std::vector<int>& sockets, Bridge& bridge) {
  pollfd waiting[] = {{signals, POLLIN, 0}, {door ? door->fd() : -1, POLLIN, 0}};
  Watchdog watchdog(bridge);
  while (true) {
    watchdog.FeedIfDue();
    if (::poll(waiting, 2, watchdog.WaitMs()) <= 0) continue;
    if (waiting[0].revents != 0) return ibnbd::UniqueFd();
    if (waiting[1].revents == 0) continue;
    auto visitor = door->HandOver(kProgram, sockets,
                                  [&bridge] { return FormatPredecessor(bridge.Describe()); });
    if (visitor.ok() && !visitor->valid()) continue;  // He has only looked.
    if (visitor.ok()) return *std::move(visitor);
    LOG_WARN("handover: ", visitor.status().message());
    (void)::poll(waiting, 1, kRestMs);  // For a signal.
  }
}

// What the next process gets, if there is to be one.
int End(Bridge& bridge, ibnbd::UniqueFd successor) {
  sd_notify(0, "STOPPING=1");
  if (!successor.valid() && !ibnbd::bridge::HasServiceManager()) return bridge.Stop() ? 0 : 2;
  std::vector<HandedClient> clients;
  const bool clean = bridge.StopFor(&clients);
  const bool all = successor.valid() ? ibnbd::HandOverClients(successor.get(), clients)
                                     : ibnbd::bridge::LeaveToServiceManager(clients);
  return clean && all ? 0 : 2;  // Which closes the connection to the successor.
}

int Fail(const absl::Status& status) {
  FlushLog();  // What led to it comes first.
  std::fprintf(stderr, "nbd-bridge: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Where the next one finds us.  Who has clients to serve does so without a door, too.
absl::Status OpenDoor(const ProgramOptions& options, bool has_taken_over,
                      std::optional<HandoverSocket>& door) {
  if (options.handover_path.empty()) return absl::OkStatus();
  auto opened = HandoverSocket::Open(options.handover_path);
  if (opened.ok()) {
    door = *std::move(opened);
  } else if (has_taken_over) {
    LOG_ERROR(opened.status().message(), "; nobody can take over from here");
  } else {
    return opened.status();
  }
  return absl::OkStatus();
}

void CheckRoomForClients(const ProgramOptions& options) {
  if (!options.handover_path.empty() || !ibnbd::bridge::HasServiceManager()) return;
  const std::size_t kept_max = ibnbd::bridge::KeptClientsMax();
  if (static_cast<std::size_t>(options.bridge.connections_max) <= kept_max) return;
  LOG_WARN("--connections-max ", options.bridge.connections_max, ": a restart keeps ", kept_max,
           " clients at most (FileDescriptorStoreMax=, two descriptors for each)");
}

int Serve(const ProgramOptions& options) {
  ibnbd::RaiseLimits();
  CheckRoomForClients(options);
  // Before the rest: who has taken over may not fail any more.
  const sigset_t end_signals = EndSignals();
  const ibnbd::UniqueFd signals(::signalfd(-1, &end_signals, SFD_CLOEXEC));
  if (!signals.valid()) return Fail(ibnbd::ErrnoStatus(errno, "signalfd"));
  absl::StatusOr<Inheritance> inheritance = TakeInheritance(options);
  if (!inheritance.ok()) return Fail(inheritance.status());
  const bool has_taken_over = inheritance->before.taken;
  std::optional<HandoverSocket> door;
  if (absl::Status opened = OpenDoor(options, has_taken_over, door); !opened.ok()) {
    return Fail(opened);
  }
  if (has_taken_over) {
    if (const auto ended = OpenVolumes(options, door, &*inheritance)) return *ended;
  }
  auto bridge = Bridge::Start(options.bridge, *std::move(inheritance));
  if (!bridge.ok()) return Fail(bridge.status());
  std::vector<int> sockets;
  for (const auto& socket : (*bridge)->sockets()) {
    sockets.push_back(socket.fd());
    std::printf("listening on %s\n", socket.ClientUri().c_str());
  }
  std::fflush(stdout);
  sd_notify(
      0,
      absl::StrCat("READY=1\nSTATUS=Serving ", (*bridge)->volumes().count(), " volumes").c_str());
  ibnbd::UniqueFd successor = WaitForEnd(signals.get(), door, sockets, **bridge);
  const int exit_code = End(**bridge, std::move(successor));
  if (exit_code != 0) (void)bridge->release();  // Threads that hang may still come back.
  return exit_code;
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
  const int exit_code = Serve(*options);
  FlushLog();
  return exit_code;
}
