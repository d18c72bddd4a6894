// SPDX-License-Identifier: Apache-2.0
// See device_commands.h.
#include "ibnbd-client/device_commands.h"

#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/log.h"
#include "base/log_writer.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/control_socket.h"
#include "ibnbd-client/daemon/protocol.h"
#include "ibnbd-client/mapping/rnbd_words.h"
#include "ibnbd-client/path_commands.h"
#include "ibnbd-client/text.h"
#include "nbd-bridge/loss_policy.h"
#include "nbd-bridge/session_words.h"

namespace ibnbd::client {
namespace {

std::uint32_t TimeoutMs(const DeviceCommandOptions& options) {
  return options.ask.timeout_s * 1000;
}

// The node alone: for scripts, as losetup does it.
absl::Status PrintNode(const DeviceCommandOptions& options, const absl::StatusOr<Json>& answer) {
  ASSIGN_OR_RETURN(const Json device, ObjectOf(answer, "device"));
  if (options.ask.json) {
    PrintJson(device);
  } else {
    std::printf("%s\n", Member(device, "device").c_str());
  }
  return absl::OkStatus();
}

// What is said of the session.
absl::Status TakeSessionWords(const DeviceCommandOptions& options,
                              std::optional<std::uint32_t>* policy,
                              std::optional<std::uint32_t>* dead_after_ms) {
  if (!options.path_policy.empty()) {
    ASSIGN_OR_RETURN(*policy, bridge::ParsePathPolicy(options.path_policy));
  }
  if (!options.dead_after.empty()) {
    ASSIGN_OR_RETURN(*dead_after_ms, bridge::ParseDeadAfter(options.dead_after));
  }
  return absl::OkStatus();
}

absl::StatusOr<MapRequest> MapRequestOf(const DeviceCommandOptions& options) {
  MapRequest map;
  if (IsRnbdWord(options.volume.front())) {
    if (!options.session.empty()) {
      return absl::InvalidArgumentError("--session: sessname= says which one it is");
    }
    ASSIGN_OR_RETURN(const RnbdMapping words, ParseRnbdWords(options.volume));
    map.uri = words.uri;
    map.wishes.ways = words.ways;
    map.session_name = words.session_name;
    map.access = words.access;
  } else {
    if (options.volume.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.volume[1], ": one volume at a time is mapped"));
    }
    ASSIGN_OR_RETURN(map.uri, ParseUri(options.volume.front()));
    map.session_name = options.session;
  }
  if (map.uri.export_name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.volume.front(), " names no volume: say ",
                                                   map.uri.ToString(), "/NAME"));
  }
  map.kind = options.kind == "nbd" ? DeviceKind::kNbd : DeviceKind::kUblk;
  if (options.read_only) map.access = IBNBD_READ_ONLY;
  if (options.migration) map.access = IBNBD_MIGRATION;
  ASSIGN_OR_RETURN(map.fail_after_ms, bridge::ParseLossPolicy(options.on_loss));
  RETURN_IF_ERROR(TakeSessionWords(options, &map.wishes.policy, &map.wishes.dead_after_ms));
  const std::string more = absl::StrJoin(options.paths, " ");
  Ways& ways = map.wishes.ways;
  absl::StrAppend(&ways.more, ways.more.empty() ? "" : " ", more);
  map.queue_depth = options.queue_depth;
  map.index = options.index;
  map.timeout_ms = TimeoutMs(options);
  return map;
}

// Of what serves devices: who reads it may be waiting for one of them.  It is never destroyed.
LogWriter& ServingLog() {
  static LogWriter* log = new LogWriter(STDERR_FILENO, "ibnbd-client: warning: ");
  return *log;
}

void ToServingLog(LogLevel level, const std::string& line) {
  static constexpr const char* kNames[] = {"error: ", "warning: ", "", "debug: "};
  ServingLog().Write(absl::StrCat("ibnbd-client: ", kNames[static_cast<int>(level)], line));
}

absl::Status Serve(LogLevel level, const std::function<absl::Status(LogWriter&)>& serve) {
  static constexpr absl::Duration kLastLinesTime = absl::Seconds(1);
  SetLogSink(ToServingLog, level);
  ibnbd_set_log([](void*, int line_level,
                   const char* line) { ToServingLog(static_cast<LogLevel>(line_level), line); },
                nullptr, static_cast<int>(level));
  before_check_fails = [] { (void)ServingLog().Flush(kLastLinesTime); };
  const absl::Status status = serve(ServingLog());
  (void)ServingLog().Flush(kLastLinesTime);
  return status;
}

// Of a device that was there already, and may have been changed since: it stays as it is.
void SayWhatDiffers(const ControlRequest& request, const Json& answer) {
  const auto device = answer.find("device");
  if (device == answer.end() || !device->is_object()) return;
  const auto compare = [&](const char* what, const char* key, std::int64_t wanted) {
    const auto is = device->find(key);
    if (is == device->end() || !is->is_number_integer() || *is == wanted) return;
    std::fprintf(stderr, "ibnbd-client: warning: %s is mapped already, with another %s\n",
                 Member(*device, "device").c_str(), what);
  };
  compare("--on-loss", "fail_after_ms", request.map.fail_after_ms);
  compare("--queue-depth", "queue_depth", request.map.queue_depth);
}

absl::Status RunMap(const DeviceCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kMap;
  ASSIGN_OR_RETURN(request.map, MapRequestOf(options));
  if (options.foreground) {
    return Serve(LogLevel::kWarn,
                 [&](LogWriter& log) { return RunForeground(request.map, options.daemon, log); });
  }
  request.if_needed = options.if_needed;
  const absl::StatusOr<Json> answer = Ask(options.ask, request);
  if (options.if_needed && answer.ok()) SayWhatDiffers(request, *answer);
  return PrintNode(options, answer);
}

absl::Status AskAbout(const DeviceCommandOptions& options, Command command) {
  ControlRequest request;
  request.command = command;
  request.device = options.device;
  request.force = options.force;
  return PrintNode(options, Ask(options.ask, request));
}

absl::Status RunSet(const DeviceCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kSet;
  request.device = options.device;
  if (!options.on_loss.empty()) {
    ASSIGN_OR_RETURN(request.fail_after_ms, bridge::ParseLossPolicy(options.on_loss));
  }
  RETURN_IF_ERROR(TakeSessionWords(options, &request.policy, &request.dead_after_ms));
  const absl::StatusOr<Json> answer = Ask(options.ask, request);
  if (request.fail_after_ms) return PrintNode(options, answer);
  ASSIGN_OR_RETURN(const Json session, ObjectOf(answer, "session"));
  if (options.ask.json) {
    PrintJson(session);
  } else {
    std::printf("%s\n", Member(session, "name").c_str());
  }
  return absl::OkStatus();
}

absl::Status PrintIos(const DeviceCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kIos;
  request.device = options.device;
  ASSIGN_OR_RETURN(const Json answer, Ask(options.ask, request));
  ASSIGN_OR_RETURN(const Json ios, ArrayOf(answer, "ios"));
  if (options.ask.json) {
    PrintJson(answer);
    return absl::OkStatus();
  }
  std::printf("%-12s %16s %10s %6s %12s  %s\n", "OP", "OFFSET", "LENGTH", "QUEUE", "WAITED MS",
              "WAITS FOR");
  for (const Json& io : ios) {
    std::printf("%-12s %16s %10s %6s %12s  %s\n", Member(io, "op").c_str(),
                Member(io, "offset").c_str(), Member(io, "length").c_str(),
                Member(io, "queue").c_str(), Member(io, "waited_ms").c_str(),
                Member(io, "waits_for").c_str());
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> AskForList(const DeviceCommandOptions& options) {
  ASSIGN_OR_RETURN(Json answer, Ask(options.ask, ControlRequest()));
  RETURN_IF_ERROR(ArrayOf(answer, "devices").status());
  return answer;
}

absl::Status UnmapOne(const DeviceCommandOptions& options, const std::string& device) {
  ControlRequest request;
  request.command = Command::kUnmap;
  request.device = device;
  request.force = options.force;
  return Ask(options.ask, request).status();
}

absl::Status RunUnmap(const DeviceCommandOptions& options) {
  if (!options.all) return UnmapOne(options, options.device);
  ASSIGN_OR_RETURN(const Json answer, AskForList(options));
  absl::Status first;  // All are tried.
  for (const Json& device : answer["devices"]) {
    const absl::Status status = UnmapOne(options, Member(device, "device"));
    if (status.ok()) continue;
    if (first.ok()) {
      first = status;
    } else {
      std::fprintf(stderr, "ibnbd-client: %s\n", std::string(status.message()).c_str());
    }
  }
  return first;
}

CLI::Option* AddOnLoss(CLI::App& command, DeviceCommandOptions& options) {
  return command
      .add_option("--on-loss", options.on_loss,
                  "When the server is lost: hold, or fail-after=TIME (500ms, 30s, 2m)")
      ->type_name("POLICY");
}

void AddSessionWords(CLI::App& command, DeviceCommandOptions& options) {
  command
      .add_option(
          "--path-policy,--policy", options.path_policy,
          absl::StrCat("Of the session: which path an IO takes, ", bridge::kPathPolicyNames))
      ->type_name("POLICY");
  command
      .add_option("--dead-after", options.dead_after,
                  "Of the session: how long the server may say nothing, 1s to 3600s, or default: "
                  "10s, 35s with the kernel's server")
      ->type_name("TIME");
}

void AddMapOptions(CLI::App& map, DeviceCommandOptions& options) {
  map.add_option("volume", options.volume,
                 "tcp://HOST[:PORT]/EXPORT, rdma://..., or as for the kernel's map_device: "
                 "sessname=NAME path=[ip:SOURCE@]ip:ADDRESS [path=...] device_path=PATH "
                 "[dest_port=N] [access_mode=ro|rw|migration]")
      ->required();
  map.add_option("--path", options.paths, "One more way to the server; repeatable")
      ->type_name("[SRC@]DST[:PORT]")
      ->allow_extra_args(false);
  map.add_option("--as", options.kind, "Kind of device: ublk or nbd")
      ->check(CLI::IsMember({"ublk", "nbd"}))
      ->capture_default_str();
  CLI::Option* read_only = map.add_flag("--ro", options.read_only, "Open it read-only");
  map.add_flag("--migration", options.migration,
               "Open it for writing although another host has it open, as live migration does")
      ->excludes(read_only);
  CLI::Option* foreground = map.add_flag("--foreground", options.foreground,
                                         "No daemon: stay, and unmap at SIGTERM or SIGINT");
  map.add_flag("--if-needed", options.if_needed, "Content if it is mapped in this way already")
      ->excludes(foreground);
  AddOnLoss(map, options);
  map.add_option("--session", options.session,
                 "Its session, shared with what names the same one (default: one per server); a "
                 "volume that hangs may keep others of its session waiting")
      ->type_name("NAME");
  AddSessionWords(map, options);
  map.add_option("--queue-depth", options.queue_depth, "IOs at once, per queue")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  map.add_option("--index", options.index, "N of /dev/ublkbN or /dev/nbdN (default: any)")
      ->check(CLI::Range(0, 1 << 20));
}

void AddDaemonOptions(CLI::App& daemon, DaemonOptions& options) {
  daemon.add_option("--socket", options.socket, "Where to listen for commands")
      ->capture_default_str();
  daemon
      .add_option("--runtime-directory", options.runtime_directory,
                  "For what is served, and for udev; emptied by a reboot")
      ->capture_default_str();
  daemon.add_option("--group", options.group, "Who else than root may command");
  daemon
      .add_option("--loops", options.loop_count,
                  "Threads for IO, and queues per session (default: CPUs, at most 4)")
      ->check(CLI::Range(1, 64));
  daemon
      .add_option("--memory", options.memory,
                  "What buffers are made of: pages, huge (huge pages as far as there are some) "
                  "or memfd (default: pages)")
      ->check(CLI::IsMember({"pages", "huge", "memfd"}));
  daemon.add_option("--session-name", options.session_name,
                    "Name to give servers, which may have a directory for it");
}

}  // namespace

absl::Status RunMappedList(const DeviceCommandOptions& options) {
  ASSIGN_OR_RETURN(const Json answer, AskForList(options));
  if (options.ask.json) {
    PrintJson(answer);
    return absl::OkStatus();
  }
  std::printf("%-14s %10s  %-9s %-7s %s\n", "DEVICE", "SIZE", "ACCESS", "STATE", "VOLUME");
  for (const Json& device : answer["devices"]) {
    std::printf("%-14s %10s  %-9s %-7s %s\n", Member(device, "device").c_str(),
                SizeMember(device, "size").c_str(), Member(device, "access").c_str(),
                Member(device, "state").c_str(), Member(device, "uri").c_str());
  }
  return absl::OkStatus();
}

absl::Status RunMappedShow(const DeviceCommandOptions& options) {
  if (options.ios) return PrintIos(options);
  ControlRequest request;
  request.command = Command::kShow;
  request.device = options.device;
  ASSIGN_OR_RETURN(const Json device, ObjectOf(Ask(options.ask, request), "device"));
  if (options.ask.json) {
    PrintJson(device);
    return absl::OkStatus();
  }
  for (const auto& [key, value] : device.items()) {
    if (value.is_object()) continue;
    std::printf("%-22s%s\n", key.c_str(), Member(device, key.c_str()).c_str());
  }
  if (const auto session = device.find("session"); session != device.end()) PrintSession(*session);
  return absl::OkStatus();
}

void AddDeviceCommands(CLI::App& app, DeviceCommandOptions& options,
                       std::function<absl::Status()>& run) {
  options.daemon.socket = options.ask.socket = kControlSocket;
  CLI::App* map = app.add_subcommand("map", "Make a volume a block device of this host");
  AddAskOptions(*map, options.ask);
  AddMapOptions(*map, options);
  map->callback([&options, &run] { run = [&options] { return RunMap(options); }; });

  CLI::App* unmap = app.add_subcommand("unmap", "Take such a block device away");
  CLI::App* remap = app.add_subcommand("remap", "Take it away and make it again");
  CLI::App* resize = app.add_subcommand("resize", "Adopt the size that the server has now");
  CLI::App* set =
      app.add_subcommand("set", "Change how it, or its session, deals with loss and silence");
  for (CLI::App* command : {unmap, remap, resize, set}) AddAskOptions(*command, options.ask);
  const char* what = "/dev/ublkbN, /dev/nbdN, a link to it, or the volume's URI";
  CLI::Option* one = unmap->add_option("device", options.device, what);
  unmap->add_flag("--all", options.all, "All of them")->excludes(one);
  for (CLI::App* command : {unmap, remap}) {
    command->add_flag("--force", options.force, "Even if it is in use; its IO fails then");
  }
  for (CLI::App* command : {remap, resize, set}) {
    command->add_option("device", options.device, what)->required();
  }
  unmap->callback([&options, &run] {
    if (options.device.empty() && !options.all) throw CLI::RequiredError("device, or --all");
    run = [&options] { return RunUnmap(options); };
  });
  remap->callback(
      [&options, &run] { run = [&options] { return AskAbout(options, Command::kRemap); }; });
  resize->callback(
      [&options, &run] { run = [&options] { return AskAbout(options, Command::kResize); }; });
  CLI::Option* on_loss = AddOnLoss(*set, options);
  AddSessionWords(*set, options);
  set->callback([&options, &run, on_loss] {
    if (on_loss->count() == 0) options.on_loss.clear();
    if (options.on_loss.empty() && options.path_policy.empty() && options.dead_after.empty()) {
      throw CLI::RequiredError("--on-loss, --path-policy or --dead-after");
    }
    run = [&options] { return RunSet(options); };
  });
  CLI::App* daemon = app.add_subcommand("daemon", "Hold the sessions and devices of this host");
  AddDaemonOptions(*daemon, options.daemon);
  daemon->callback([&options, &run] {
    run = [&options] {
      return Serve(LogLevel::kInfo, [&](LogWriter& log) { return RunDaemon(options.daemon, log); });
    };
  });
}

}  // namespace ibnbd::client
