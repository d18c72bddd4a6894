// SPDX-License-Identifier: Apache-2.0
// See protocol.h.
#include "ibnbd-client/daemon/protocol.h"

#include <array>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/text.h"
#include "nbd-bridge/loss_policy.h"
#include "nbd-bridge/session_words.h"

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
constexpr std::uint32_t kTimeoutMsMax = 24 * 3600 * 1000;
constexpr std::int64_t kFailAfterMsMax = std::numeric_limits<std::int32_t>::max();
constexpr std::uint32_t kQueueDepthMax = 4096;
constexpr std::uint32_t kIndexMax = 1u << 20;
constexpr std::uint32_t kDeadAfterMsMin = 1000;
constexpr std::uint32_t kDeadAfterMsMax = 3'600'000;

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
  // Nothing if it is not there.
  std::optional<std::int64_t> MaybeNumber(const char* key, std::int64_t min, std::int64_t max) {
    if (Find(key, false) == nullptr) return std::nullopt;
    return Number(key, min, min, max);
  }
  std::optional<std::uint32_t> MaybeNumber32(const char* key, std::uint32_t max) {
    const auto number = MaybeNumber(key, 0, max);
    if (!number.has_value()) return std::nullopt;
    return static_cast<std::uint32_t>(*number);
  }
  // Of what the library takes: 0, the default, or no less than a second.
  std::optional<std::uint32_t> MaybeDeadAfter(const char* key) {
    const auto ms = MaybeNumber32(key, kDeadAfterMsMax);
    if (ms.has_value() && *ms != 0 && *ms < kDeadAfterMsMin) Fault(key, "is out of range");
    return ms;
  }
  std::optional<std::uint32_t> MaybePolicy(const char* key) {
    const std::string name = Text(key);
    if (name.empty()) return std::nullopt;
    const auto policy = bridge::ParsePathPolicy(name);
    if (policy.ok()) return *policy;
    Fault(key, absl::StrCat("is \"", Printable(name), "\", which is unknown"));
    return std::nullopt;
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

namespace {

Json ToJson(const SessionRecord& record) {
  Json paths = Json::array();
  for (const PathSetting& setting : record.settings.paths) {
    paths.push_back({{"path", setting.path}, {"weight", setting.weight}});
  }
  return {{"server", record.key.server},
          {"name", record.key.name},
          {"policy", bridge::PathPolicyName(record.settings.policy)},
          {"dead_after_ms", record.settings.dead_after_ms},
          {"paths", paths}};
}

absl::StatusOr<PathSetting> PathSettingFrom(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("state: a path is no object");
  Fields fields(json);
  PathSetting setting;
  setting.path = fields.Text("path", true);
  setting.weight = fields.MaybeNumber32("weight", kPathWeightMax).value_or(setting.weight);
  RETURN_IF_ERROR(fields.status());
  // They become a list that is separated by spaces.
  if (setting.path.empty() || setting.path.find(' ') != std::string::npos) {
    return absl::InvalidArgumentError("state: a path is empty, or has a space in it");
  }
  return setting;
}

absl::StatusOr<SessionRecord> SessionRecordFrom(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("state: a session is no object");
  Fields fields(json);
  SessionRecord record;
  const auto server = ParseUri(fields.Text("server", true));
  record.key.name = fields.Text("name");
  record.settings.policy = fields.MaybePolicy("policy").value_or(IBNBD_POLICY_ADAPTIVE);
  record.settings.dead_after_ms = fields.MaybeDeadAfter("dead_after_ms").value_or(0);
  RETURN_IF_ERROR(fields.status());
  if (!server.ok()) return Annotate(server.status(), "state: a session");
  record.key = KeyOf(*server, record.key.name);
  const auto paths = json.find("paths");
  if (paths == json.end() || !paths->is_array() || paths->empty() || paths->size() > kPathsMax) {
    return absl::InvalidArgumentError("state: a session without \"paths\", or with too many");
  }
  for (const Json& path : *paths) {
    ASSIGN_OR_RETURN(PathSetting setting, PathSettingFrom(path));
    record.settings.paths.push_back(std::move(setting));
  }
  return record;
}

absl::StatusOr<DeviceRecord> DeviceRecordFrom(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("state: a device is no object");
  Fields members(json);
  DeviceRecord record;
  record.node = members.Text("device", true);
  ASSIGN_OR_RETURN(record.request, MapFrom(members));
  if (record.request.index < 0) members.Fault("index", "is missing");
  RETURN_IF_ERROR(members.status());
  record.request.survives_us = true;
  return record;
}

absl::Status ReadDevices(const Json& object, std::vector<DeviceRecord>* into) {
  const auto entries = object.find("devices");
  if (entries == object.end() || !entries->is_array()) {
    return absl::InvalidArgumentError("state: no \"devices\"");
  }
  for (const Json& entry : *entries) {
    ASSIGN_OR_RETURN(DeviceRecord record, DeviceRecordFrom(entry));
    into->push_back(std::move(record));
  }
  return absl::OkStatus();
}

// A daemon that knew none wrote none: their paths stand with the devices.  What cannot be read is
// left out: its devices are better taken over by the way of their URI than not at all.
absl::Status ReadSessions(const Json& object, std::vector<SessionRecord>* into) {
  const auto entries = object.find("sessions");
  if (entries == object.end()) return absl::OkStatus();
  if (!entries->is_array()) return absl::InvalidArgumentError("state: no \"sessions\"");
  for (const Json& entry : *entries) {
    absl::StatusOr<SessionRecord> record = SessionRecordFrom(entry);
    if (record.ok()) {
      into->push_back(*std::move(record));
      continue;
    }
    LOG_WARN("state: the settings of a session are lost, its paths are those of ",
             "its devices' URIs: ", record.status().message());
  }
  return absl::OkStatus();
}

}  // namespace

std::string FormatState(const DaemonState& state) {
  Json devices = Json::array();
  for (const DeviceRecord& record : state.records.devices) {
    Json json = {{"device", record.node}};
    Put(record.request, &json);
    json["volume_id"] = VolumeIdText(record.request.volume_id);
    devices.push_back(json);
  }
  Json sessions = Json::array();
  for (const SessionRecord& record : state.records.sessions) sessions.push_back(ToJson(record));
  return Json({{"version", 1},
               {"client_id", VolumeIdText(state.client_id)},
               {"devices", devices},
               {"sessions", sessions}})
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
  RETURN_IF_ERROR(ReadDevices(object, &state.records.devices));
  RETURN_IF_ERROR(ReadSessions(object, &state.records.sessions));
  return state;
}

}  // namespace ibnbd::client
