// SPDX-License-Identifier: Apache-2.0
// ibnbd-client: list, show, ping and copy, against a server; map, path and their like, for this
// host's block devices and sessions; softroce and doctor for the machine itself.  Exit status: 0
// done, 1 failed, 2 usage.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>

#include <ibnbd/ibnbd.h>

#include "absl/strings/match.h"
#include "base/socket_address.h"
#include "ibnbd-client/commands.h"
#include "ibnbd-client/device_commands.h"
#include "ibnbd-client/host_commands.h"
#include "ibnbd-client/path_commands.h"

namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

using ibnbd::client::CommonOptions;
using ibnbd::client::CopyCommandOptions;
using ibnbd::client::DeviceCommandOptions;
using ibnbd::client::PingOptions;

void AddCommon(CLI::App& command, CommonOptions& options) {
  command.add_flag("--json", options.json, "Print JSON");
  command.add_option("--session-name", options.session_name,
                     "Name to give the server, which may have a directory for it");
  command.add_option("--timeout", options.timeout_s, "Seconds to wait for the server")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
}

void AddCopyOptions(CLI::App& command, CopyCommandOptions& copy) {
  command.add_option("source", copy.source, "URI/EXPORT, file, block device, or - (stdin)")
      ->required();
  command.add_option("destination", copy.target, "URI/EXPORT, file, block device, or - (stdout)")
      ->required();
  command.add_flag("!--no-sparse", copy.sparse, "Do not look for zeroes: write all as data");
  command.add_flag("--destination-is-zero", copy.destination_is_zero,
                   "The destination reads as zero already: leave zeroes out");
  command.add_flag("--verify", copy.verify, "Read both sides again and compare");
  command.add_flag("!--no-progress", copy.progress, "No progress line, even on a terminal");
  command.add_option("--depth", copy.depth, "Pieces of 512 KiB in flight")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command
      .add_option("--fail-after", copy.fail_after_s,
                  "Seconds without the server until the copy fails (default: waits for ever)")
      ->check(CLI::NonNegativeNumber);
}

// What has a URI is asked of a server, the rest of the daemon.  But a URI may be mapped, too: that
// is asked with unmap, remap and resize alone.
bool IsUri(const std::string& text) { return absl::StrContains(text, "://"); }

// Neither: "hostA", "tcp://10.0.0.2".
bool IsSession(const std::string& text) {
  const auto uri = ibnbd::ParseUri(text);
  return uri.ok() ? uri->export_name.empty() : !absl::StrContains(text, '/');
}

absl::Status List(const std::string& uri, const CommonOptions& common,
                  DeviceCommandOptions& devices) {
  if (!uri.empty()) return RunList(uri, common);
  devices.ask.json = common.json;
  return RunMappedList(devices);
}

absl::Status Show(const std::string& what, const CommonOptions& common,
                  DeviceCommandOptions& devices) {
  devices.ask.json = common.json;
  if (IsSession(what) && !devices.ios) return RunSessionShow(devices.ask, what);
  if (IsUri(what)) return RunShow(what, common);
  devices.device = what;
  return RunMappedShow(devices);
}

struct ServerCommandOptions {
  CommonOptions common;
  PingOptions ping;
  CopyCommandOptions copy;
  std::string uri;
};

void AddServerCommands(CLI::App& app, ServerCommandOptions& options, DeviceCommandOptions& devices,
                       std::function<absl::Status()>& run) {
  auto& [common, ping, copy, uri] = options;
  CLI::App* list_command =
      app.add_subcommand("list", "List the exports of a server, or what is mapped");
  CLI::App* show_command =
      app.add_subcommand("show", "Show one export, one mapped device, or one session");
  CLI::App* ping_command = app.add_subcommand("ping", "Measure round trips to a server");
  CLI::App* copy_command = app.add_subcommand("copy", "Copy to or from a volume");
  for (CLI::App* command : {list_command, show_command, ping_command, copy_command}) {
    AddCommon(*command, common);
  }
  for (CLI::App* command : {list_command, show_command}) {
    command->add_option("--socket", devices.ask.socket, "The daemon's")->capture_default_str();
  }
  list_command->add_option("uri", uri, "tcp://HOST[:PORT]; without: what is mapped on this host");
  show_command
      ->add_option("uri", uri,
                   "tcp://HOST[:PORT]/EXPORT, or /dev/ublkbN, or a session: its name, or "
                   "tcp://HOST[:PORT]")
      ->required();
  show_command->add_flag(
      "--ios", devices.ios,
      "Of a mapped device: what is outstanding, since when, and what it waits for");
  ping_command->add_option("uri", uri, "tcp://HOST[:PORT]")->required();
  ping_command->add_option("-c,--count", ping.count, "How many")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  ping_command->add_option("-i,--interval", ping.interval_s, "Seconds between two")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  AddCopyOptions(*copy_command, copy);
  const auto runs = [&run](CLI::App* command, std::function<absl::Status()> what) {
    command->callback([&run, what] { run = what; });
  };
  ServerCommandOptions* const o = &options;
  runs(list_command, [o, &devices] { return List(o->uri, o->common, devices); });
  runs(show_command, [o, &devices] { return Show(o->uri, o->common, devices); });
  runs(ping_command, [o] { return RunPing(o->uri, o->ping, o->common); });
  runs(copy_command, [o] { return RunCopy(o->copy, o->common); });
}

int Run(int argc, char** argv) {
  CLI::App app("Looks at RNBD servers, copies volumes, and makes them block devices of this host",
               "ibnbd-client");
  app.set_version_flag("--version", std::string("ibnbd-client ") + ibnbd_version());
  app.require_subcommand(1);
  app.footer("URIs are tcp://HOST[:PORT][/EXPORT] or rdma://HOST[:PORT][/EXPORT].");
  ServerCommandOptions servers;
  DeviceCommandOptions devices;
  ibnbd::client::PathCommandOptions paths;
  std::function<absl::Status()> run;
  AddDeviceCommands(app, devices, run);
  AddPathCommands(app, paths, run);
  AddServerCommands(app, servers, devices, run);
  ibnbd::client::HostCommands host_commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;
  }
  const absl::Status status = run ? run() : host_commands.Run();
  if (status.ok() && std::fflush(stdout) == 0) return 0;
  const std::string text =
      status.ok() ? "standard output: cannot be written" : std::string(status.message());
  std::fprintf(stderr, "ibnbd-client: %s\n", text.c_str());
  return kFailed;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // A reader that left is an error with a name.
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ibnbd-client: %s\n", error.what());
    return kFailed;
  }
}
