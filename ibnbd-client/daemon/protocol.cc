// SPDX-License-Identifier: Apache-2.0
// See protocol.h.
#include "ibnbd-client/daemon/protocol.h"

#include <array>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-client/text.h"
#include "nbd-bridge/loss_policy.h"

namespace ibnbd::client {
namespace {

constexpr std::array<std::pair<Command, const char*>, 8> kCommands{{{Command::kMap, "map"},
                                                                    {Command::kUnmap, "unmap"},
                                                                    {Command::kRemap, "remap"},
                                                                    {Command::kResize, "resize"},
                                                                    {Command::kSet, "set"},
                                                                    {Command::kShow, "show"},
                                                                    {Command::kIos, "ios"},
                                                                    {Command::kList, "list"}}};
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
constexpr std::array<std::pair<std::uint32_t, const char*>, 5> kPathStates{
    {{IBNBD_PATH_CONNECTING, "connecting"},
     {IBNBD_PATH_UP, "up"},
     {IBNBD_PATH_DRAINING, "draining"},
     {IBNBD_PATH_PAUSING, "pausing"},
     {IBNBD_PATH_CLOSING, "closing"}}};
constexpr std::uint32_t kTimeoutMsMax = 24 * 3600 * 1000;
constexpr std::int64_t kFailAfterMsMax = std::numeric_limits<std::int32_t>::max();
constexpr std::uint32_t kQueueDepthMax = 4096;
constexpr std::uint32_t kIndexMax = 1u << 20;

template <typename Table, typename Value>
const char* NameIn(const Table& table, Value value) {
  for (const auto& [candidate, name] : table) {
    if (candidate == value) return name;
  }
  return "?";
}

// The members of an object, each of them checked; the first fault is kept.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  std::string Text(const char* key, bool required = false) {
    const Json* value = Find(key, required);
    if (value == nullptr) return "";
    if (!value->is_string()) return Fault(key, "is no string"), "";
    return value->get<std::string>();
  }
  bool Flag(const char* key) {
    const Json* value = Find(key, false);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return Fault(key, "is neither true nor false"), false;
    return value->get<bool>();
  }
  std::int64_t Number(const char* key, std::int64_t otherwise, std::int64_t min, std::int64_t max) {
    const Json* value = Find(key, false);
    if (value == nullptr || value->is_null()) return otherwise;
    const bool fits =
        value->is_number_unsigned()
            ? value->get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}
            : value->is_number_integer();
    if (!fits) return Fault(key, "is no integer"), otherwise;
    const auto number = value->get<std::int64_t>();
    if (number < min || number > max) return Fault(key, "is out of range"), otherwise;
    return number;
  }
  template <typename Table>
  auto Choice(const char* key, const Table& table, decltype(table[0].first) otherwise) {
    using Value = std::decay_t<decltype(table[0].first)>;
    const Json* found = Find(key, false);
    if (found == nullptr) return Value{otherwise};
    const std::string text = Text(key);
    for (const auto& [value, name] : table) {
      if (text == name) return Value{value};
    }
    Fault(key, absl::StrCat("is \"", Printable(text), "\", which is unknown"));
    return Value{otherwise};
  }
  void Fault(const char* key, const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("\"", key, "\" ", what));
  }
  [[nodiscard]] const absl::Status& status() const { return status_; }

 private:
  const Json* Find(const char* key, bool required) {
    const auto at = object_.find(key);
    if (at != object_.end()) return &*at;
    if (required) Fault(key, "is missing");
    return nullptr;
  }
  const Json& object_;
  absl::Status status_;
};

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

std::string Dump(const Json& json) {
  // Names come from a server: what is not UTF-8 in them is replaced.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
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
  map.ways = {fields.Text("source"), fields.Text("paths")};
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
  RETURN_IF_ERROR(fields.status());
  return map;
}

void Put(const MapRequest& map, Json* json) {
  (*json)["uri"] = map.uri.ToString();
  if (!map.session_name.empty()) (*json)["session_name"] = map.session_name;
  if (!map.ways.source.empty()) (*json)["source"] = map.ways.source;
  if (!map.ways.more.empty()) (*json)["paths"] = map.ways.more;
  (*json)["as"] = NameIn(kKinds, map.kind);
  (*json)["access"] = NameIn(kAccesses, map.access);
  (*json)["fail_after_ms"] = map.fail_after_ms;
  (*json)["queue_depth"] = map.queue_depth;
  (*json)["index"] = map.index;
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
  } else if (request.command != Command::kList) {
    request.device = fields.Text("device", true);
  }
  if (request.command == Command::kSet) {
    if (!object.contains("fail_after_ms")) fields.Fault("fail_after_ms", "is missing");
    request.fail_after_ms = fields.Number("fail_after_ms", -1, -1, kFailAfterMsMax);
  }
  RETURN_IF_ERROR(fields.status());
  return request;
}

std::string FormatRequest(const ControlRequest& request) {
  Json json = {{"command", NameIn(kCommands, request.command)}, {"timeout_ms", request.timeout_ms}};
  if (request.command == Command::kMap) {
    Put(request.map, &json);
  } else if (request.command != Command::kList) {
    json["device"] = request.device;
    json["force"] = request.force;
    if (request.command == Command::kSet) json["fail_after_ms"] = request.fail_after_ms;
  }
  return Dump(json) + "\n";
}

Json ToJson(const DeviceReport& report) {
  const MapRequest& map = report.record.request;
  Json json = {{"device", report.record.node}};
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
  json["session"] = {{"address", report.session.address},
                     {"connected", report.session.connected != 0},
                     {"queues", report.session.queue_count},
                     {"queue_depth", report.session.queue_depth},
                     {"io_size_max", report.session.io_size_max},
                     {"reconnects", report.session.reconnects},
                     {"heartbeat_rtt_ns", report.session.heartbeat_rtt_ns}};
  for (const ibnbd_path_info& path : report.paths) {
    json["session"]["paths"].push_back(ToJson(path));
  }
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

std::string FormatState(const DaemonState& state) {
  Json devices = Json::array();
  for (const DeviceRecord& record : state.devices) {
    Json json = {{"device", record.node}};
    Put(record.request, &json);
    json["volume_id"] = VolumeIdText(record.request.volume_id);
    devices.push_back(json);
  }
  return Json({{"version", 1}, {"client_id", VolumeIdText(state.client_id)}, {"devices", devices}})
             .dump(1, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

absl::StatusOr<DaemonState> ParseState(const std::string& text) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(text, "state"));
  Fields fields(object);
  if (fields.Number("version", 0, 1, 1) != 1) {
    return absl::InvalidArgumentError("state: \"version\" is not 1");
  }
  DaemonState state;
  if (!absl::SimpleHexAtoi(fields.Text("client_id", true), &state.client_id) ||
      state.client_id == 0) {
    fields.Fault("client_id", "is no hexadecimal number, or 0");
  }
  RETURN_IF_ERROR(fields.status());
  const auto devices = object.find("devices");
  if (devices == object.end() || !devices->is_array()) {
    return absl::InvalidArgumentError("state: no \"devices\"");
  }
  for (const Json& entry : *devices) {
    if (!entry.is_object()) return absl::InvalidArgumentError("state: a device is no object");
    Fields members(entry);
    DeviceRecord record;
    record.node = members.Text("device", true);
    ASSIGN_OR_RETURN(record.request, MapFrom(members));
    if (record.request.index < 0) members.Fault("index", "is missing");
    RETURN_IF_ERROR(members.status());
    record.request.survives_us = true;
    state.devices.push_back(std::move(record));
  }
  return state;
}

}  // namespace ibnbd::client
