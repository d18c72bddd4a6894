// SPDX-License-Identifier: Apache-2.0
// See ask_daemon.h.
#include "ibnbd-client/ask_daemon.h"

#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/control_socket.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

// The daemon bounds what it does by the request's time-out; taking a device from the kernel comes
// on top.
constexpr absl::Duration kGrace = absl::Seconds(20);

// A device by the name that the daemon knows it by.  Links are followed here: whoever follows them
// may wait for a disk, which may be a device of the daemon's.
std::string Followed(const std::string& device) {
  if (absl::StrContains(device, "://") || !absl::StrContains(device, '/')) return device;
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(device, error);
  return error ? device : path.string();
}

}  // namespace

void AddAskOptions(CLI::App& command, AskOptions& options) {
  command.add_option("--socket", options.socket, "The daemon's")->capture_default_str();
  command.add_option("--timeout", options.timeout_s, "Seconds to wait for the server")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  command.add_flag("--json", options.json, "Print JSON");
}

absl::StatusOr<Json> Ask(const AskOptions& options, ControlRequest request) {
  request.timeout_ms = options.timeout_s * 1000;
  request.device = Followed(request.device);
  ASSIGN_OR_RETURN(const UniqueFd daemon, ConnectControl(options.socket));
  const absl::Time deadline = absl::Now() + 2 * absl::Milliseconds(request.timeout_ms) + kGrace;
  RETURN_IF_ERROR(WriteAll(daemon.get(), FormatRequest(request), deadline, "ask the daemon"));
  ASSIGN_OR_RETURN(const std::string line,
                   ReadLine(daemon.get(), kAnswerSizeMax, deadline, "the daemon's answer"));
  return ParseAnswer(line);
}

absl::StatusOr<Json> ObjectOf(const absl::StatusOr<Json>& answer, const char* key) {
  if (!answer.ok()) return answer.status();
  const auto found = answer->find(key);
  if (found == answer->end() || !found->is_object()) {
    return absl::InternalError(absl::StrCat("the daemon's answer: no ", key, " in it"));
  }
  return *found;
}

absl::StatusOr<Json> ArrayOf(const absl::StatusOr<Json>& answer, const char* key) {
  if (!answer.ok()) return answer.status();
  const auto found = answer->find(key);
  if (found == answer->end() || !found->is_array()) {
    return absl::InternalError(absl::StrCat("the daemon's answer: no ", key, " in it"));
  }
  return *found;
}

void PrintJson(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

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

std::string DurationMember(const Json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_number_unsigned() || at->get<std::uint64_t>() == 0) return "-";
  return DurationText(static_cast<std::int64_t>(at->get<std::uint64_t>()));
}

}  // namespace ibnbd::client
