// SPDX-License-Identifier: Apache-2.0
// See protocol.h.
#include "ibnbd-client/daemon/protocol.h"

#include <array>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/json_fields.h"
#include "nbd-bridge/loss_policy.h"

namespace ibnbd::client {
namespace {

constexpr std::array<std::pair<Command, const char*>, 12> kCommands{
    {{Command::kMap, "map"},
     {Command::kUnmap, "unmap"},
     {Command::kRemap, "remap"},
     {Command::kResize, "resize"},
     {Command::kSet, "set"},
     {Command::kShow, "show"},
     {Command::kIos, "ios"},
     {Command::kList, "list"},
     {Command::kSessions, "sessions"},
     {Command::kAddPath, "add-path"},
     {Command::kRemovePath, "remove-path"},
     {Command::kWeighPath, "weigh-path"}}};
constexpr std::array<std::pair<ibnbd_access, const char*>, 3> kAccesses{
    {{IBNBD_READ_ONLY, "ro"}, {IBNBD_READ_WRITE, "rw"}, {IBNBD_MIGRATION, "migration"}}};
constexpr std::array<std::pair<DeviceKind, const char*>, 2> kKinds{
    {{DeviceKind::kUblk, "ublk"}, {DeviceKind::kNbd, "nbd"}}};
constexpr std::array<std::pair<std::uint32_t, const char*>, 6> kOps{
    {{IBNBD_OP_READ, "read"},
     {IBNBD_OP_WRITE, "write"},
     {IBNBD_OP_FLUSH, "flush"},
     {IBNBD_OP_DISCARD, "discard"},
     {IBNBD_OP_SECURE_ERASE, "secure-erase"},
     {IBNBD_OP_WRITE_ZEROES, "write-zeroes"}}};
constexpr std::array<std::pair<std::uint32_t, const char*>, 3> kWaits{
    {{IBNBD_WAITS_FOR_ANSWER, "answer"},
     {IBNBD_WAITS_FOR_TURN, "turn"},
     {IBNBD_WAITS_FOR_SERVER, "server"}}};
constexpr std::array<std::pair<std::uint32_t, const char*>, 6> kPathStates{
    {{0, "waiting"},  // For its session to be opened.
     {IBNBD_PATH_CONNECTING, "connecting"},
     {IBNBD_PATH_UP, "up"},
     {IBNBD_PATH_DRAINING, "draining"},
     {IBNBD_PATH_PAUSING, "pausing"},
     {IBNBD_PATH_CLOSING, "closing"}}};
constexpr std::uint32_t kQueueDepthMax = 4096;
constexpr std::uint32_t kIndexMax = 1u << 20;

template <typename Table, typename Value>
const char* NameIn(const Table& table, Value value) {
  for (const auto& [candidate, name] : table) {
    if (candidate == value) return name;
  }
  return "?";
}

bool IsAboutAPath(Command command) {
  return command == Command::kAddPath || command == Command::kRemovePath ||
         command == Command::kWeighPath;
}

void SettingsFrom(Fields& fields, ControlRequest* request) {
  request->fail_after_ms = fields.MaybeNumber("fail_after_ms", -1, kFailAfterMsMax);
  request->policy = fields.MaybePolicy("policy");
  request->dead_after_ms = fields.MaybeDeadAfter("dead_after_ms");
  if (!request->fail_after_ms && !request->policy && !request->dead_after_ms) {
    fields.Fault("fail_after_ms", "is missing, and so are \"policy\" and \"dead_after_ms\"");
  }
}

const char* StateText(const DeviceReport& report) {
  if (!report.served) return "waiting";
  switch (report.info.state) {
    case IBNBD_STATE_OPEN:
      return "open";
    case IBNBD_STATE_HELD:
      return "held";
    case IBNBD_STATE_FAILING:
      return "failing";
    default:
      return "closed";
  }
}

}  // namespace

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<Json> ParseObject(const std::string& text, const char* what) {
  Json object = Json::parse(text, nullptr, false);
  if (object.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": not JSON"));
  }
  if (!object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": not a JSON object"));
  }
  return object;
}

absl::StatusOr<MapRequest> MapFrom(Fields& fields) {
  MapRequest map;
  const auto uri = ParseUri(fields.Text("uri", true));
  if (fields.status().ok() && !uri.ok()) return uri.status();
  if (uri.ok()) map.uri = *uri;
  if (uri.ok() && map.uri.export_name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(map.uri.ToString(), " names no volume: say ", map.uri.ToString(), "/NAME"));
  }
  map.session_name = fields.Text("session_name");
  map.wishes.ways = {fields.Text("source"), fields.Text("paths")};
  map.wishes.policy = fields.MaybePolicy("policy");
  map.wishes.dead_after_ms = fields.MaybeDeadAfter("dead_after_ms");
  map.kind = fields.Choice("as", kKinds, DeviceKind::kUblk);
  map.access = fields.Choice("access", kAccesses, IBNBD_READ_WRITE);
  map.fail_after_ms = fields.Number("fail_after_ms", -1, -1, kFailAfterMsMax);
  map.queue_depth =
      static_cast<std::uint32_t>(fields.Number("queue_depth", 128, 1, kQueueDepthMax));
  map.index = static_cast<int>(fields.Number("index", -1, -1, kIndexMax));
  map.timeout_ms =
      static_cast<std::uint32_t>(fields.Number("timeout_ms", map.timeout_ms, 1, kTimeoutMsMax));
  const std::string id = fields.Text("volume_id");
  if (!id.empty() && !absl::SimpleHexAtoi(id, &map.volume_id)) {
    fields.Fault("volume_id", "is no hexadecimal number");
  }
  map.writer_epoch = static_cast<std::uint16_t>(fields.Number("writer_epoch", 0, 0, UINT16_MAX));
  RETURN_IF_ERROR(fields.status());
  return map;
}

void Put(const MapRequest& map, Json* json) {
  (*json)["uri"] = map.uri.ToString();
  if (!map.session_name.empty()) (*json)["session_name"] = map.session_name;
  const SessionWishes& wishes = map.wishes;
  if (!wishes.ways.source.empty()) (*json)["source"] = wishes.ways.source;
  if (!wishes.ways.more.empty()) (*json)["paths"] = wishes.ways.more;
  if (wishes.policy) (*json)["policy"] = bridge::PathPolicyName(*wishes.policy);
  if (wishes.dead_after_ms) (*json)["dead_after_ms"] = *wishes.dead_after_ms;
  (*json)["as"] = NameIn(kKinds, map.kind);
  (*json)["access"] = NameIn(kAccesses, map.access);
  (*json)["fail_after_ms"] = map.fail_after_ms;
  (*json)["queue_depth"] = map.queue_depth;
  (*json)["index"] = map.index;
}

absl::StatusOr<ControlRequest> ParseRequest(const std::string& line) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(line, "request"));
  Fields fields(object);
  ControlRequest request;
  (void)fields.Text("command", true);
  request.command = fields.Choice("command", kCommands, Command::kList);
  request.timeout_ms =
      static_cast<std::uint32_t>(fields.Number("timeout_ms", request.timeout_ms, 1, kTimeoutMsMax));
  request.force = fields.Flag("force");
  RETURN_IF_ERROR(fields.status());
  if (request.command == Command::kMap) {
    ASSIGN_OR_RETURN(request.map, MapFrom(fields));
    request.if_needed = fields.Flag("if_needed");
  } else if (request.command != Command::kList) {
    request.device = fields.Text("device", request.command != Command::kSessions);
  }
  if (request.command == Command::kSet) SettingsFrom(fields, &request);
  if (IsAboutAPath(request.command)) {
    request.path = fields.Text("path", true);
    request.weight = fields.MaybeNumber32("weight", kPathWeightMax);
    request.wait = !fields.Flag("no_wait");
    if (request.command == Command::kWeighPath && !request.weight) {
      fields.Fault("weight", "is missing");
    }
  }
  RETURN_IF_ERROR(fields.status());
  return request;
}

std::string FormatRequest(const ControlRequest& request) {
  Json json = {{"command", NameIn(kCommands, request.command)}, {"timeout_ms", request.timeout_ms}};
  if (request.command == Command::kMap) {
    Put(request.map, &json);
    if (request.if_needed) json["if_needed"] = true;
  } else if (request.command != Command::kList) {
    json["device"] = request.device;
    json["force"] = request.force;
    if (request.fail_after_ms) json["fail_after_ms"] = *request.fail_after_ms;
    if (request.policy) json["policy"] = bridge::PathPolicyName(*request.policy);
    if (request.dead_after_ms) json["dead_after_ms"] = *request.dead_after_ms;
    if (!request.path.empty()) json["path"] = request.path;
    if (request.weight) json["weight"] = *request.weight;
    if (!request.wait) json["no_wait"] = true;
  }
  return Dump(json) + "\n";
}

Json ToJson(const DeviceReport& report) {
  const MapRequest& map = report.record.request;
  Json json = {{"device", report.record.node}};
  if (!report.record.unread.empty()) {
    json["uri"] = map.uri.host.empty() ? Json(nullptr) : Json(map.uri.ToString());
    json["state"] = StateText(report);
    json["state_reason"] = report.problem;
    return json;
  }
  Put(map, &json);
  json["link"] = "/dev/" + LinkNameOf(map.uri);
  json["volume_id"] = map.volume_id == 0 ? Json(nullptr) : Json(VolumeIdText(map.volume_id));
  json["on_loss"] = bridge::LossPolicyText(map.fail_after_ms);
  json["state"] = StateText(report);
  const std::string reason = report.problem.empty() ? report.info.state_reason : report.problem;
  json["state_reason"] = reason.empty() ? Json(nullptr) : Json(reason);
  if (!report.served) return json;
  const auto has = [&report](std::uint32_t flag) { return (report.info.flags & flag) != 0; };
  json["size"] = report.device_size;
  json["volume_size"] = report.info.size;
  json["logical_block_size"] = report.info.logical_block_size;
  json["physical_block_size"] = report.info.physical_block_size;
  json["read_only"] = map.access == IBNBD_READ_ONLY || has(IBNBD_DEVICE_READ_ONLY);
  json["write_cache"] = has(IBNBD_DEVICE_WRITE_CACHE);
  json["fua"] = has(IBNBD_DEVICE_FUA);
  json["discard_max"] = report.info.discard_max;
  json["write_zeroes_max"] = report.info.write_zeroes_max;
  json["session"] = ToJson(report.session);
  return json;
}

Json ToJson(const SessionReport& report) {
  Json json = {{"name", report.name}, {"server", report.key.server}};
  if (!report.devices.empty()) json["devices"] = report.devices;
  json["open"] = report.open;
  json["policy"] = bridge::PathPolicyName(report.settings.policy);
  if (report.open) {
    json["dead_after_ms"] = report.info.dead_after_ms;
    json["address"] = report.info.address;
    json["connected"] = report.info.connected != 0;
    json["queues"] = report.info.queue_count;
    json["queue_depth"] = report.info.queue_depth;
    json["io_size_max"] = report.info.io_size_max;
    json["reconnects"] = report.info.reconnects;
    json["heartbeat_rtt_ns"] = report.info.heartbeat_rtt_ns;
  }
  json["paths"] = Json::array();
  for (const ibnbd_path_info& path : report.paths) json["paths"].push_back(ToJson(path));
  return json;
}

Json ToJson(const ibnbd_path_info& path) {
  return {{"id", path.id},
          {"path", path.path},
          {"address", path.address},
          {"state", NameIn(kPathStates, path.state)},
          {"slow", (path.flags & IBNBD_PATH_SLOW) != 0},
          {"weight", path.weight},
          {"inflight", path.inflight},
          {"reads", path.reads},
          {"writes", path.writes},
          {"bytes", path.bytes},
          {"lost", path.lost},
          {"latency_ns", path.latency_ns},
          {"reconnects", path.reconnects},
          {"connect_failures", path.connect_failures},
          {"last_error", path.last_error}};
}

Json ToJson(const ibnbd_io_info& io) {
  return {{"op", NameIn(kOps, io.op)},
          {"offset", io.offset},
          {"length", io.length},
          {"queue", io.queue},
          {"waited_ms", io.waited_ns / 1'000'000},
          {"waits_for", NameIn(kWaits, io.waits_for)}};
}

std::string ErrorAnswer(const absl::Status& status) {
  return Dump({{"error", std::string(status.message())}}) + "\n";
}

absl::StatusOr<Json> ParseAnswer(const std::string& line) {
  ASSIGN_OR_RETURN(Json object, ParseObject(line, "the daemon's answer"));
  Fields fields(object);
  const std::string error = fields.Text("error");
  RETURN_IF_ERROR(fields.status());
  if (!error.empty()) return absl::UnknownError(error);
  return object;
}

}  // namespace ibnbd::client
