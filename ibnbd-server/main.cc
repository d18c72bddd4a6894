// SPDX-License-Identifier: Apache-2.0
// ibnbd-server: starts the server, then waits for signals.  The main thread does nothing else, so
// that slow control work (reading the configuration, waiting for a lock) disturbs no IO.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/handover.h"
#include "base/log.h"
#include "base/memory_pressure.h"
#include "base/process_limits.h"
#include "base/status_macros.h"
#include "ibnbd-server/listen_sockets.h"
#include "ibnbd-server/log_sink.h"
#include "ibnbd-server/notify.h"
#include "ibnbd-server/options.h"
#include "ibnbd-server/server_process.h"
#include "ibnbd-server/signals.h"

namespace ibnbd {
namespace {

constexpr char kProgram[] = "ibnbd-server";
// Beyond the deadline of the stop itself, for the answer to arrive.
constexpr std::int64_t kStopGraceNs = 2 * kNsPerSecond;
// The longest --stop-timeout, for that is the other process's, and for it to let go of its memory.
constexpr std::int64_t kTakeOverTimeoutNs = (kStopSecondsMax + 60) * kNsPerSecond;
constexpr std::int64_t kRetryMissingNs = 2 * kNsPerSecond;

int Fail(const absl::Status& status) {
  // One line, whatever a library put into its message.
  std::string text(status.message());
  std::replace(text.begin(), text.end(), '\n', ' ');
  FlushLog();  // What led to it comes first.
  std::fprintf(stderr, "ibnbd-server: %s\n", text.c_str());
  return kExitFailure;
}

// Written aside and renamed: who waits for the file finds it whole.
absl::Status WritePortFile(const std::string& path, std::uint16_t port) {
  const std::string aside = path + ".new";
  {
    std::ofstream file(aside);
    file << port << '\n';
    if (!file.flush()) return ErrnoStatus(errno, absl::StrCat("write ", aside));
  }
  if (rename(aside.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rename ", aside, " to ", path));
  }
  return absl::OkStatus();
}

std::string StatusLine(const ServerProcess& process) {
  const std::size_t missing = process.missing_count();
  return absl::StrCat(
      "serving on ", absl::StrJoin(process.addresses(), ", "),
      missing == 0 ? "" : absl::StrCat("; ", missing, " missing and tried again, see the log"));
}

absl::Status Announce(const Options& options, const ServerProcess& process) {
  LOG_INFO(process.MemoryBill());
  for (const std::string& address : process.addresses()) {
    std::printf("listening on %s\n", address.c_str());
  }
  std::fflush(stdout);
  if (!options.port_file.empty()) {
    RETURN_IF_ERROR(WritePortFile(options.port_file, process.first_port()));
  }
  NotifyReady(StatusLine(process));
  return absl::OkStatus();
}

void Reload(ServerProcess& process) {
  NotifyReloading();
  const absl::Status status = process.Reload();
  if (status.ok()) {
    LOG_INFO("reload: done");
  } else {
    LOG_ERROR("reload: ", std::string(status.message()), "; nothing was changed");
  }
  NotifyReady(StatusLine(process));
}

// What is to be done now and then: by the clock, for signals may come more often than it is due.
// Tells the service manager that all reactors answer, and tries again what is missing.
class Chores {
 public:
  explicit Chores(ServerProcess& process)
      : process_(process), watchdog_ns_(WatchdogIntervalNs() / 2) {}
  // How long to wait for a signal at most; -1: as long as it takes.
  [[nodiscard]] std::int64_t WaitNs() const {
    const std::int64_t due_ns = std::min(watchdog_ns_ > 0 ? watchdog_due_ns_ : kNever,
                                         process_.missing_count() > 0 ? retry_due_ns_ : kNever);
    return due_ns == kNever ? -1 : std::max<std::int64_t>(due_ns - clock_.NowNs(), 0);
  }
  void DoWhatIsDue() {
    const std::int64_t now_ns = clock_.NowNs();
    if (watchdog_ns_ > 0 && watchdog_due_ns_ <= now_ns) {
      watchdog_due_ns_ = now_ns + watchdog_ns_;
      if (process_.AllAlive()) NotifyWatchdog();
    }
    if (process_.missing_count() > 0 && retry_due_ns_ <= now_ns) {
      retry_due_ns_ = now_ns + kRetryMissingNs;
      const std::size_t missing = process_.missing_count();
      process_.RetryMissing();
      if (process_.missing_count() != missing) NotifyReady(StatusLine(process_));
    }
  }

 private:
  static constexpr std::int64_t kNever = INT64_MAX;
  ServerProcess& process_;
  const MonotonicClock clock_;
  const std::int64_t watchdog_ns_;
  std::int64_t watchdog_due_ns_ = 0;
  std::int64_t retry_due_ns_ = 0;
};

// What this process and the next have between them.
struct Succession {
  ListenSockets sockets;
  std::optional<HandoverSocket> door;
  UniqueFd successor;  // Closes with our end.
  std::int64_t door_rests_until_ns = 0;
};

// True: there is a successor, and we are to stop.
bool HandOver(Succession& succession) {
  auto successor = succession.door->HandOver(kProgram, succession.sockets.ours());
  if (!successor.ok()) {
    LOG_WARN("handover: ", std::string(successor.status().message()));
    succession.door_rests_until_ns = MonotonicClock().NowNs() + kDoorRestNs;
    return false;
  }
  succession.successor = *std::move(successor);
  return true;
}

// Serves until it is told to stop.  True once everything has come to its end.
bool Serve(const Options& options, ServerProcess& process, SignalWaiter& signals,
           Succession& succession) {
  Chores chores(process);
  bool stopping = false;
  while (true) {
    if (!stopping) chores.DoWhatIsDue();
    const int door = stopping || !succession.door ? -1 : succession.door->fd();
    const std::int64_t rest_ns =
        std::max<std::int64_t>(succession.door_rests_until_ns - MonotonicClock().NowNs(), 0);
    std::int64_t wait_ns = stopping ? options.stop_timeout_ns + kStopGraceNs : chores.WaitNs();
    if (door >= 0 && rest_ns > 0) wait_ns = wait_ns < 0 ? rest_ns : std::min(wait_ns, rest_ns);
    const int signal = signals.Wait(wait_ns, rest_ns > 0 ? -1 : door);
    if (signal == SignalWaiter::kReadable && !HandOver(succession)) continue;
    if (signal == SIGTERM || signal == SIGINT || signal == SignalWaiter::kReadable) {
      if (stopping) return false;
      stopping = true;
      LOG_INFO("stopping: finishing executing IOs, at most ",
               options.stop_timeout_ns / kNsPerSecond, " s; once more to stop at once");
      NotifyStopping();
      process.StartStop(options.stop_timeout_ns, [&signals] { signals.Wake(); });
      succession.sockets.Close(!succession.successor.valid());
    } else if (signal == SignalWaiter::kWoken) {
      return true;
    } else if (stopping) {
      if (signal == SignalWaiter::kTimedOut) return false;
    } else if (signal == SIGHUP) {
      Reload(process);
    } else if (signal == options.stats_signal && signal != 0) {
      process.LogStats();
    }
  }
}

// From the service manager, and from the server that runs, which ends with this.  Says whether
// somebody was there before us, whose clients wait for us: if we fail, nobody serves.
absl::StatusOr<ServerProcess::Missing> TakeSockets(const Options& options,
                                                   const ServerProcess& process,
                                                   ListenSockets& sockets) {
  using Missing = ServerProcess::Missing;
  RETURN_IF_ERROR(sockets.AddFromServiceManager());
  bool heir = sockets.has_inherited();
  if (options.handover_path.empty()) return heir ? Missing::kIsTriedAgain : Missing::kFails;
  RETURN_IF_ERROR(process.Check());
  ASSIGN_OR_RETURN(HandedOver taken, TakeOver(kProgram, options.handover_path, kTakeOverTimeoutNs));
  heir = heir || taken.taken;
  for (UniqueFd& fd : taken.sockets) {
    if (absl::Status status = sockets.Add(std::move(fd)); !status.ok()) {
      LOG_WARN("handover: ", status.message());
    }
  }
  return heir ? Missing::kIsTriedAgain : Missing::kFails;
}

// After Start(): this is what the next one finds.
absl::Status OpenDoor(const Options& options, Succession& succession) {
  succession.sockets.Settle();
  if (options.handover_path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(succession.door, HandoverSocket::Open(options.handover_path));
  return absl::OkStatus();
}

int RunServer(const Options& options) {
  Succession succession;
  absl::StatusOr<std::unique_ptr<ServerProcess>> process = ServerProcess::Create(options);
  if (!process.ok()) return Fail(process.status());
  RaiseLimits();
  // For clients on this machine, whose pages are written back through us.  If we may: nobody else
  // needs it.
  if (absl::Status status = BecomeIoFlusher(); !status.ok()) LOG_DEBUG(status.message());
  // What can be found wrong without it has been: from here on there is only one server, us.
  const auto missing = TakeSockets(options, **process, succession.sockets);
  if (!missing.ok()) return Fail(missing.status());
  // Before signals are held back: who interrupts the wait for a lock wants to be obeyed.
  if (absl::Status status = (*process)->OpenExports(*missing); !status.ok()) return Fail(status);
  absl::StatusOr<SignalWaiter> signals =
      SignalWaiter::Create({SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2});
  if (!signals.ok()) return Fail(signals.status());
  absl::Status started = (*process)->Start(succession.sockets, *missing);
  if (started.ok()) started = OpenDoor(options, succession);
  if (started.ok()) started = Announce(options, **process);
  // Half of it may be running; nobody was promised anything yet.
  if (!started.ok()) _exit(Fail(started));
  if (!Serve(options, **process, *signals, succession)) {
    LOG_ERROR("stopped with IOs still executing");
    FlushLog();
    // Their memory must outlive them: only the kernel can take it down in the right order.
    _exit(kExitFailure);
  }
  process->reset();
  LOG_INFO("stopped");
  return 0;
}

}  // namespace
}  // namespace ibnbd

int main(int argc, char** argv) {
  // A write beyond RLIMIT_FSIZE and a reader that went away are errors of the IO.
  (void)signal(SIGXFSZ, SIG_IGN);
  (void)signal(SIGPIPE, SIG_IGN);
  const ibnbd::CommandLine command_line = ibnbd::ParseCommandLine(argc, argv);
  if (!command_line.options) {
    std::fputs(command_line.text.c_str(), command_line.exit_code == 0 ? stdout : stderr);
    return command_line.exit_code;
  }
  ibnbd::InstallLogSink(command_line.options->log_level);
  const int exit_code = ibnbd::RunServer(*command_line.options);
  ibnbd::FlushLog();
  return exit_code;
}
