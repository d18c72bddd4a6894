// SPDX-License-Identifier: Apache-2.0
// The state file's text.  See protocol.h.
#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/json_fields.h"
#include "ibnbd-client/daemon/protocol.h"
#include "nbd-bridge/session_words.h"

namespace ibnbd::client {
namespace {

constexpr std::uint32_t kUint32Max = std::numeric_limits<std::uint32_t>::max();

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

// Which device it is about: of our own names only.
bool TellsDevice(Fields& fields, DeviceKind kind, DeviceRecord* record) {
  const std::string node = fields.Text("device");
  const std::string stem = NodeOf(kind, 0);
  int index = -1;
  if (node.size() < stem.size() || !absl::SimpleAtoi(node.substr(stem.size() - 1), &index) ||
      index < 0 || NodeOf(kind, index) != node) {
    return false;
  }
  record->node = node;
  record->request.kind = kind;
  record->request.index = index;
  return true;
}

// Of a record that a later daemon wrote, or that was edited: the device is left alone, and the
// record is kept for a daemon that can read it.
DeviceRecord UnreadRecord(const Json& json, const absl::Status& why) {
  DeviceRecord record;
  record.node = "?";
  record.unread = Dump(json);
  record.unread_because = std::string(why.message());
  if (!json.is_object()) return record;
  Fields fields(json);
  (void)(TellsDevice(fields, DeviceKind::kUblk, &record) ||
         TellsDevice(fields, DeviceKind::kNbd, &record));
  if (const auto uri = ParseUri(fields.Text("uri")); uri.ok()) record.request.uri = *uri;
  record.request.session_name = fields.Text("session_name");
  return record;
}

// By their names in the file.
constexpr std::pair<const char*, std::uint32_t ibnbd_device_info::*> kPastNumbers[] = {
    {"logical_block_size", &ibnbd_device_info::logical_block_size},
    {"physical_block_size", &ibnbd_device_info::physical_block_size},
    {"io_size_max", &ibnbd_device_info::io_size_max},
    {"discard_max", &ibnbd_device_info::discard_max},
    {"discard_granularity", &ibnbd_device_info::discard_granularity},
    {"discard_alignment", &ibnbd_device_info::discard_alignment},
    {"write_zeroes_max", &ibnbd_device_info::write_zeroes_max}};
constexpr std::pair<const char*, std::uint32_t> kPastFlags[] = {
    {"write_cache", IBNBD_DEVICE_WRITE_CACHE},
    {"fua", IBNBD_DEVICE_FUA},
    {"secure_erase", IBNBD_DEVICE_SECURE_ERASE}};

Json ToJson(const VolumePast& past) {
  const absl::string_view instance(reinterpret_cast<const char*>(past.info.server_instance),
                                   sizeof(past.info.server_instance));
  Json json = {{"size", past.info.size},
               {"server_instance", absl::BytesToHexString(instance)},
               {"lost_at_ms", past.lost_at_ms}};
  for (const auto& [name, member] : kPastNumbers) json[name] = past.info.*member;
  for (const auto& [name, flag] : kPastFlags) json[name] = (past.info.flags & flag) != 0;
  return json;
}

// The library checks whether it makes sense.
absl::StatusOr<VolumePast> VolumePastFrom(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("it is no object");
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  Fields fields(json);
  VolumePast past;
  past.info.size = static_cast<std::uint64_t>(fields.Number("size", 0, 0, kMax));
  past.lost_at_ms = fields.Number("lost_at_ms", 0, 0, kMax);
  for (const auto& [name, member] : kPastNumbers) {
    past.info.*member = fields.MaybeNumber32(name, kUint32Max).value_or(0);
  }
  for (const auto& [name, flag] : kPastFlags) past.info.flags |= fields.Flag(name) ? flag : 0;
  const std::string text = fields.Text("server_instance", true);
  constexpr std::size_t kSize = sizeof(past.info.server_instance);
  if (text.size() != 2 * kSize || !std::all_of(text.begin(), text.end(), absl::ascii_isxdigit)) {
    fields.Fault("server_instance", "is no instance");
  }
  RETURN_IF_ERROR(fields.status());
  std::memcpy(past.info.server_instance, absl::HexStringToBytes(text).data(), kSize);
  return past;
}

// Without it the device is taken over when the server has answered.
std::optional<VolumePast> MaybePast(const Json& device) {
  const auto json = device.find("was");
  if (json == device.end()) return std::nullopt;
  absl::StatusOr<VolumePast> past = VolumePastFrom(*json);
  if (past.ok()) return *std::move(past);
  LOG_WARN("state: what a volume was cannot be read: ", past.status().message());
  return std::nullopt;
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
  record.past = MaybePast(json);
  return record;
}

absl::Status ReadDevices(const Json& object, std::vector<DeviceRecord>* into) {
  const auto entries = object.find("devices");
  if (entries == object.end() || !entries->is_array()) {
    return absl::InvalidArgumentError("state: no \"devices\"");
  }
  for (const Json& entry : *entries) {
    absl::StatusOr<DeviceRecord> record = DeviceRecordFrom(entry);
    into->push_back(record.ok() ? *std::move(record) : UnreadRecord(entry, record.status()));
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
    if (!record.unread.empty()) {
      devices.push_back(Json::parse(record.unread, nullptr, false));
      continue;
    }
    Json json = {{"device", record.node}};
    Put(record.request, &json);
    json["volume_id"] = VolumeIdText(record.request.volume_id);
    json["writer_epoch"] = record.request.writer_epoch;
    if (record.past) json["was"] = ToJson(*record.past);
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
