// SPDX-License-Identifier: Apache-2.0
// See daemon.h.
#include "ibnbd-client/daemon/daemon.h"

#include <pthread.h>
#include <signal.h>
#include <sys/random.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/memory_pressure.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/alive_file.h"
#include "ibnbd-client/daemon/control_server.h"
#include "ibnbd-client/daemon/control_socket.h"
#include "ibnbd-client/daemon/protocol.h"
#include "ibnbd-client/daemon/runtime_lock.h"
#include "ibnbd-client/daemon/state_file.h"
#include "ibnbd-client/mapping/device_names.h"
#include "ibnbd-client/mapping/device_table.h"

namespace ibnbd::client {
namespace {

// For commands that run when the daemon is to end; and for what they have begun with the kernel.
constexpr std::int64_t kStopMs = 5000;
constexpr std::int64_t kEndMapsMs = 10'000;
// For the log's reader to take the last lines.
constexpr absl::Duration kLastLinesTime = absl::Seconds(1);

// Writing dirty pages back needs us.
void ProtectFromMemoryPressure() {
  for (const auto protect : {BecomeIoFlusher, LockAllMemory, BeNobodysVictim}) {
    if (const absl::Status status = protect(); !status.ok()) LOG_WARN(status.message());
  }
}

// To be waited for; set before there are other threads.
sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

void WaitForSignal(const sigset_t& signals) {
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
}

// What the process before left; or of the first one, with nothing in it but who we are.
absl::StatusOr<DaemonState> ReadState(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  if (!text.empty()) {
    auto state = ParseState(text);
    if (!state.ok()) return Annotate(state.status(), path);
    return state;
  }
  DaemonState state;
  while (state.client_id == 0) {
    if (::getrandom(&state.client_id, sizeof(state.client_id), 0) < 0) {
      return ErrnoStatus(errno, "getrandom");
    }
  }
  RETURN_IF_ERROR(ReplaceFile(path, FormatState(state)));
  return state;
}

// Also tells the service manager, as long as all loops turn and all sessions' threads answer.
void WaitForEnd(const sigset_t& signals, DeviceLoops& loops, SessionTable& sessions) {
  std::uint64_t interval_us = 0;
  if (sd_watchdog_enabled(0, &interval_us) <= 0) return WaitForSignal(signals);
  const std::uint64_t pause_us = std::max<std::uint64_t>(interval_us / 3, 1000);
  const timespec pause{static_cast<time_t>(pause_us / 1'000'000),
                       static_cast<long>(pause_us % 1'000'000) * 1000};
  while (sigtimedwait(&signals, nullptr, &pause) < 0) {
    const bool loops_turn = loops.AllAlive();
    if (sessions.AllAlive() && loops_turn) sd_notify(0, "WATCHDOG=1");
  }
}

}  // namespace

absl::Status RunDaemon(const DaemonOptions& options, LogWriter& log) {
  ProtectFromMemoryPressure();  // First: devices of the process before us may be waiting for us.
  log.Start();
  const sigset_t signals = BlockEndSignals();
  std::error_code error;
  std::filesystem::create_directories(options.runtime_directory, error);
  ASSIGN_OR_RETURN(const UniqueFd lock, LockRuntime(options.runtime_directory + "/lock"));
  ASSIGN_OR_RETURN(UniqueFd listening, ListenControl(options.socket, options.group));
  const std::string state_path = options.runtime_directory + "/devices.json";
  ASSIGN_OR_RETURN(const DaemonState state, ReadState(state_path));
  const std::unique_ptr<DeviceLoops> loops = DeviceLoops::Start(options.loop_count);
  SessionTable sessions(*loops, options.session_name, state.client_id, options.memory);
  DeviceTable table(
      *loops, sessions, DeviceNames(options.runtime_directory + "/devices"),
      [&](const TableRecords& now) {
        return ReplaceFile(state_path, FormatState({state.client_id, now}));
      },
      MsSinceBoot);
  AliveFile alive(options.runtime_directory + "/alive");
  table.Restore(state.records, alive.LastMs());
  table.StartRefreshing([&alive] { alive.Touch(); });
  const std::unique_ptr<ControlServer> server = ControlServer::Start(std::move(listening), table);
  LOG_INFO("serving on ", options.socket, ", ", loops->count(), " loops");
  sd_notify(0, "READY=1");
  WaitForEnd(signals, *loops, sessions);
  sd_notify(0, "STOPPING=1");
  if (!server->Stop(kStopMs)) LOG_WARN("commands were still running");
  if (!table.EndMaps(kEndMapsMs)) LOG_ERROR("the kernel has not given up a device being made");
  (void)log.Flush(kLastLinesTime);
  // Nothing is taken down: IOs that are under way are the next process's, and the kernel and the
  // servers must see the same end as if we had been killed, which is the one that is tested.  But
  // in the quiet: a request that arrives while a process ends can crash Linux before 6.15
  // (decision 0009).
  loops->HoldStill();
  alive.Touch();
  std::fflush(nullptr);
  ::_exit(0);
}

absl::Status RunForeground(const MapRequest& request, const DaemonOptions& options,
                           LogWriter& log) {
  ProtectFromMemoryPressure();
  log.Start();
  const sigset_t signals = BlockEndSignals();
  const std::unique_ptr<DeviceLoops> loops = DeviceLoops::Start(options.loop_count);
  SessionTable sessions(*loops, options.session_name, 0, options.memory);
  const DeviceNames names(options.runtime_directory + "/devices");
  names.RemoveStale(nullptr);
  std::string node;
  absl::StatusOr<UniqueFd> named;
  MappedVolume::Options how;
  how.before_use = [&](int index, const ibnbd_device_info&) {
    node = NodeOf(request.kind, index);
    named = names.WriteHeld(node, request.uri);
    if (!named.ok()) LOG_WARN("no stable name for ", node, ": ", named.status().message());
    return absl::OkStatus();
  };
  const auto volume = MappedVolume::Map(*loops, sessions, request, how);
  if (!volume.ok() && !node.empty()) names.Remove(node);
  if (!volume.ok()) return volume.status();
  DeviceNames::Announce(node);
  std::printf("%s\n", node.c_str());
  std::fflush(stdout);
  sd_notify(0, "READY=1");
  WaitForSignal(signals);
  sd_notify(0, "STOPPING=1");
  names.Remove(node);
  const absl::Status status = (*volume)->Unmap(request.timeout_ms);
  DeviceNames::Announce(node);
  if (status.ok()) return status;
  // What the kernel has not given back refers to our memory.
  LOG_ERROR(status.message());
  (void)log.Flush(kLastLinesTime);
  ::_exit(1);
}

}  // namespace ibnbd::client
