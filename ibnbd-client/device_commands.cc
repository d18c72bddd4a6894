// SPDX-License-Identifier: Apache-2.0
// See device_commands.h.
#include "ibnbd-client/device_commands.h"

#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/control_socket.h"
#include "ibnbd-client/daemon/protocol.h"
#include "ibnbd-client/mapping/rnbd_words.h"
#include "ibnbd-client/text.h"
#include "nbd-bridge/loss_policy.h"

namespace ibnbd::client {
namespace {

// The daemon bounds what it does by the request's time-out; taking a device from the kernel comes
// on top.
constexpr absl::Duration kGrace = absl::Seconds(20);

std::uint32_t TimeoutMs(const DeviceCommandOptions& options) { return options.timeout_s * 1000; }

absl::StatusOr<Json> Ask(const DeviceCommandOptions& options, ControlRequest request) {
  request.timeout_ms = TimeoutMs(options);
  ASSIGN_OR_RETURN(const UniqueFd daemon, ConnectControl(options.daemon.socket));
  const absl::Time deadline = absl::Now() + 2 * absl::Milliseconds(request.timeout_ms) + kGrace;
  RETURN_IF_ERROR(WriteAll(daemon.get(), FormatRequest(request), deadline, "ask the daemon"));
  ASSIGN_OR_RETURN(const std::string line,
                   ReadLine(daemon.get(), kAnswerSizeMax, deadline, "the daemon's answer"));
  return ParseAnswer(line);
}

void PrintJson(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

// For people: nothing in it may be missing or of another type than it is, whoever wrote the answer.
std::string Member(const Json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end() || at->is_null()) return "";
  if (at->is_string()) return Printable(at->get<std::string>());
  return at->dump();
}

std::string SizeMember(const Json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_number_unsigned()) return "-";
  return SizeText(at->get<std::uint64_t>());
}

absl::StatusOr<Json> DeviceOf(const absl::StatusOr<Json>& answer) {
  if (!answer.ok()) return answer.status();
  const auto device = answer->find("device");
  if (device == answer->end() || !device->is_object()) {
    return absl::InternalError("the daemon's answer: no device in it");
  }
  return *device;
}

// The node alone: for scripts, as losetup does it.
absl::Status PrintNode(const DeviceCommandOptions& options, const absl::StatusOr<Json>& answer) {
  ASSIGN_OR_RETURN(const Json device, DeviceOf(answer));
  if (options.json) {
    PrintJson(device);
  } else {
    std::printf("%s\n", Member(device, "device").c_str());
  }
  return absl::OkStatus();
}

absl::StatusOr<MapRequest> MapRequestOf(const DeviceCommandOptions& options) {
  MapRequest map;
  if (IsRnbdWord(options.volume.front())) {
    ASSIGN_OR_RETURN(const RnbdMapping words, ParseRnbdWords(options.volume));
    map.uri = words.uri;
    map.ways = words.ways;
    map.session_name = words.session_name;
    map.access = words.access;
  } else {
    if (options.volume.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.volume[1], ": one volume at a time is mapped"));
    }
    ASSIGN_OR_RETURN(map.uri, ParseUri(options.volume.front()));
  }
  if (map.uri.export_name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.volume.front(), " names no volume: say ",
                                                   map.uri.ToString(), "/NAME"));
  }
  map.kind = options.kind == "nbd" ? DeviceKind::kNbd : DeviceKind::kUblk;
  if (options.read_only) map.access = IBNBD_READ_ONLY;
  if (options.migration) map.access = IBNBD_MIGRATION;
  ASSIGN_OR_RETURN(map.fail_after_ms, bridge::ParseLossPolicy(options.on_loss));
  const std::string more = absl::StrJoin(options.paths, " ");
  absl::StrAppend(&map.ways.more, map.ways.more.empty() ? "" : " ", more);
  map.queue_depth = options.queue_depth;
  map.index = options.index;
  map.timeout_ms = TimeoutMs(options);
  return map;
}

absl::Status RunMap(const DeviceCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kMap;
  ASSIGN_OR_RETURN(request.map, MapRequestOf(options));
  if (options.foreground) return RunForeground(request.map, options.daemon);
  return PrintNode(options, Ask(options, request));
}

absl::Status AskAbout(const DeviceCommandOptions& options, Command command) {
  ControlRequest request;
  request.command = command;
  request.device = options.device;
  request.force = options.force;
  return PrintNode(options, Ask(options, request));
}

absl::Status RunSet(const DeviceCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kSet;
  request.device = options.device;
  ASSIGN_OR_RETURN(request.fail_after_ms, bridge::ParseLossPolicy(options.on_loss));
  return PrintNode(options, Ask(options, request));
}

absl::Status PrintIos(const DeviceCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kIos;
  request.device = options.device;
  ASSIGN_OR_RETURN(const Json answer, Ask(options, request));
  const auto ios = answer.find("ios");
  if (ios == answer.end() || !ios->is_array()) {
    return absl::InternalError("the daemon's answer: no IOs in it");
  }
  if (options.json) {
    PrintJson(answer);
    return absl::OkStatus();
  }
  std::printf("%-12s %16s %10s %6s %12s  %s\n", "OP", "OFFSET", "LENGTH", "QUEUE", "WAITED MS",
              "WAITS FOR");
  for (const Json& io : *ios) {
    std::printf("%-12s %16s %10s %6s %12s  %s\n", Member(io, "op").c_str(),
                Member(io, "offset").c_str(), Member(io, "length").c_str(),
                Member(io, "queue").c_str(), Member(io, "waited_ms").c_str(),
                Member(io, "waits_for").c_str());
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> AskForList(const DeviceCommandOptions& options) {
  ASSIGN_OR_RETURN(Json answer, Ask(options, ControlRequest()));
  const auto devices = answer.find("devices");
  if (devices == answer.end() || !devices->is_array()) {
    return absl::InternalError("the daemon's answer: no devices in it");
  }
  return answer;
}

absl::Status UnmapOne(const DeviceCommandOptions& options, const std::string& device) {
  ControlRequest request;
  request.command = Command::kUnmap;
  request.device = device;
  request.force = options.force;
  return Ask(options, request).status();
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

void ToStderr(LogLevel level, const std::string& line) {
  static constexpr const char* kNames[] = {"error: ", "warning: ", "", "debug: "};
  std::fprintf(stderr, "ibnbd-client: %s%s\n", kNames[static_cast<int>(level)], line.c_str());
}

absl::Status Serve(const DeviceCommandOptions& options) {
  SetLogSink(ToStderr, LogLevel::kInfo);
  ibnbd_set_log(
      [](void*, int level, const char* line) { ToStderr(static_cast<LogLevel>(level), line); },
      nullptr, IBNBD_LOG_INFO);
  return RunDaemon(options.daemon);
}

void AddCommon(CLI::App& command, DeviceCommandOptions& options) {
  command.add_option("--socket", options.daemon.socket, "The daemon's")->capture_default_str();
  command.add_option("--timeout", options.timeout_s, "Seconds to wait for the server")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  command.add_flag("--json", options.json, "Print JSON");
}

CLI::Option* AddOnLoss(CLI::App& command, DeviceCommandOptions& options) {
  return command
      .add_option("--on-loss", options.on_loss,
                  "When the server is lost: hold, or fail-after=TIME (500ms, 30s, 2m)")
      ->type_name("POLICY");
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
  map.add_flag("--foreground", options.foreground,
               "No daemon: stay, and unmap at SIGTERM or SIGINT");
  AddOnLoss(map, options);
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
  if (options.json) {
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
  ASSIGN_OR_RETURN(const Json device, DeviceOf(Ask(options, request)));
  if (options.json) {
    PrintJson(device);
    return absl::OkStatus();
  }
  for (const auto& [key, value] : device.items()) {
    if (value.is_object()) continue;
    std::printf("%-22s%s\n", key.c_str(), Member(device, key.c_str()).c_str());
  }
  if (const auto session = device.find("session"); session != device.end()) {
    for (const auto& [key, value] : session->items()) {
      std::printf("session %-14s%s\n", key.c_str(), Member(*session, key.c_str()).c_str());
    }
  }
  return absl::OkStatus();
}

void AddDeviceCommands(CLI::App& app, DeviceCommandOptions& options,
                       std::function<absl::Status()>& run) {
  options.daemon.socket = kControlSocket;
  CLI::App* map = app.add_subcommand("map", "Make a volume a block device of this host");
  AddCommon(*map, options);
  AddMapOptions(*map, options);
  map->callback([&options, &run] { run = [&options] { return RunMap(options); }; });

  CLI::App* unmap = app.add_subcommand("unmap", "Take such a block device away");
  CLI::App* remap = app.add_subcommand("remap", "Take it away and make it again");
  CLI::App* resize = app.add_subcommand("resize", "Adopt the size that the server has now");
  CLI::App* set =
      app.add_subcommand("set", "Change what happens to its IO when the server is lost");
  for (CLI::App* command : {unmap, remap, resize, set}) AddCommon(*command, options);
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
  AddOnLoss(*set, options)->required();
  set->callback([&options, &run] { run = [&options] { return RunSet(options); }; });
  CLI::App* daemon = app.add_subcommand("daemon", "Hold the sessions and devices of this host");
  AddDaemonOptions(*daemon, options.daemon);
  daemon->callback([&options, &run] { run = [&options] { return Serve(options); }; });
}

}  // namespace ibnbd::client
