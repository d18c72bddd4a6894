// SPDX-License-Identifier: Apache-2.0
// See path_commands.h.
#include "ibnbd-client/path_commands.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/control_socket.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

constexpr const char* kSessionHelp = "Its name, its server, or a device of it";

std::string StateOf(const Json& path) {
  const auto slow = path.find("slow");
  const bool is_slow = slow != path.end() && slow->is_boolean() && slow->get<bool>();
  return absl::StrCat(Member(path, "state"), is_slow ? ", slow" : "");
}

void PrintPaths(const Json& paths) {
  std::size_t width = 4;
  for (const Json& path : paths) width = std::max(width, Member(path, "path").size());
  const int column = static_cast<int>(width);
  std::printf("%3s  %-*s  %-10s  %6s  %9s  %8s  %10s  %10s  %s\n", "ID", column, "PATH", "STATE",
              "WEIGHT", "LATENCY", "INFLIGHT", "BYTES", "RECONNECTS", "LAST ERROR");
  for (const Json& path : paths) {
    std::printf("%3s  %-*s  %-10s  %6s  %9s  %8s  %10s  %10s  %s\n", Member(path, "id").c_str(),
                column, Member(path, "path").c_str(), StateOf(path).c_str(),
                Member(path, "weight").c_str(), DurationMember(path, "latency_ns").c_str(),
                Member(path, "inflight").c_str(), SizeMember(path, "bytes").c_str(),
                Member(path, "reconnects").c_str(), Member(path, "last_error").c_str());
  }
}

absl::Status List(const PathCommandOptions& options) {
  ControlRequest request;
  request.command = Command::kSessions;
  request.device = options.session;
  ASSIGN_OR_RETURN(Json answer, Ask(options.ask, request));
  if (options.session.empty()) {
    RETURN_IF_ERROR(ArrayOf(answer, "sessions").status());
  } else {
    ASSIGN_OR_RETURN(const Json session, ObjectOf(answer, "session"));
    answer = {{"sessions", Json::array({session})}};
  }
  if (options.ask.json) {
    PrintJson(answer);
    return absl::OkStatus();
  }
  const char* between = "";
  for (const Json& session : answer["sessions"]) {
    if (!session.is_object()) continue;
    std::printf("%ssession %s with %s, %s\n", between, Member(session, "name").c_str(),
                Member(session, "server").c_str(), Member(session, "policy").c_str());
    if (const auto paths = session.find("paths"); paths != session.end()) PrintPaths(*paths);
    between = "\n";
  }
  return absl::OkStatus();
}

absl::Status Change(const PathCommandOptions& options, Command command) {
  ControlRequest request;
  request.command = command;
  request.device = options.session;
  request.path = options.path;
  request.wait = !options.no_wait;
  request.force = options.force;
  if (command != Command::kRemovePath) request.weight = options.weight;
  ASSIGN_OR_RETURN(const Json session, ObjectOf(Ask(options.ask, request), "session"));
  if (options.ask.json) PrintJson(session);
  return absl::OkStatus();
}

}  // namespace

void PrintSession(const Json& session) {
  for (const auto& [key, value] : session.items()) {
    if (key == "paths") continue;
    std::printf("session %-14s%s\n", key.c_str(), Member(session, key.c_str()).c_str());
  }
  if (const auto paths = session.find("paths"); paths != session.end()) PrintPaths(*paths);
}

absl::Status RunSessionShow(const AskOptions& options, const std::string& session) {
  ControlRequest request;
  request.command = Command::kSessions;
  request.device = session;
  ASSIGN_OR_RETURN(const Json answer, ObjectOf(Ask(options, request), "session"));
  if (options.json) {
    PrintJson(answer);
  } else {
    PrintSession(answer);
  }
  return absl::OkStatus();
}

void AddPathCommands(CLI::App& app, PathCommandOptions& options,
                     std::function<absl::Status()>& run) {
  options.ask.socket = kControlSocket;
  CLI::App* path = app.add_subcommand("path", "List and change the ways to a server");
  path->require_subcommand(1);
  CLI::App* list = path->add_subcommand("list", "Paths of all sessions, or of one");
  CLI::App* add = path->add_subcommand("add", "One more path, used as soon as it is up");
  CLI::App* remove =
      path->add_subcommand("remove", "Take a path away; its IO goes over the others");
  CLI::App* weight = path->add_subcommand("weight", "A path's share of the IO");
  for (CLI::App* command : {list, add, remove, weight}) {
    AddAskOptions(*command, options.ask);
    command->add_option("session", options.session, kSessionHelp)->required(command != list);
  }
  add->add_option("path", options.path, "[SRC@]DST[:PORT]")->required();
  for (CLI::App* command : {remove, weight}) {
    command->add_option("path", options.path, "Its number, or [SRC@]DST[:PORT]")->required();
  }
  const CLI::Range weights(0u, kPathWeightMax);
  const char* what = "0 to 1000, others have 100; 0: only if no other path is up";
  add->add_option("--weight", options.weight, what)->check(weights)->capture_default_str();
  weight->add_option("weight", options.weight, what)->check(weights)->required();
  add->add_flag("--no-wait", options.no_wait, "Add it even if it cannot be connected yet");
  remove->add_flag("--force", options.force, "Even if no other path is up: IO waits for one");
  list->callback([&options, &run] { run = [&options] { return List(options); }; });
  const auto changes = [&options, &run](CLI::App* command, Command kind) {
    command->callback(
        [&options, &run, kind] { run = [&options, kind] { return Change(options, kind); }; });
  };
  changes(add, Command::kAddPath);
  changes(remove, Command::kRemovePath);
  changes(weight, Command::kWeighPath);
}

}  // namespace ibnbd::client
