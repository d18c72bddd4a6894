// SPDX-License-Identifier: Apache-2.0
// What is said on the control socket, and what is written into the state file: JSON, one object a
// line.
//   {"command":"map","uri":"rdma://10.0.0.2/vol0","as":"ublk",...}  ->  {"device":{...}}
//   {"command":"unmap","device":"/dev/ublkb0","timeout_ms":30000}   ->  {}
//   {"command":"add-path","device":"/dev/ublkb0","path":"10.1.0.2"} ->  {"session":{...}}
//   whatever went wrong                                             ->  {"error":"..."}
// Both directions are hostile until checked: nothing here throws.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ibnbd-client/mapping/device_table.h"

namespace ibnbd::client {

using Json = nlohmann::ordered_json;

// No request or answer is longer; an answer lists some thousand devices.
inline constexpr std::size_t kRequestSizeMax = 16 * 1024;
inline constexpr std::size_t kAnswerSizeMax = 16u << 20;

enum class Command {
  kMap,
  kUnmap,
  kRemap,
  kResize,
  kSet,
  kShow,
  kIos,
  kList,
  kSessions,
  kAddPath,
  kRemovePath,
  kWeighPath
};

struct ControlRequest {
  Command command = Command::kList;
  MapRequest map;          // kMap,
  bool if_needed = false;  // and whether a device that is there already will do.
  // All but kMap and kList: a node, or a URI; of what is about sessions also a session's name or
  // server; kSessions "": all.
  std::string device;
  std::optional<std::int64_t> fail_after_ms;   // kSet: the loss policy.
  std::optional<std::uint32_t> policy;         // kSet: of the session, enum ibnbd_policy,
  std::optional<std::uint32_t> dead_after_ms;  // and its patience.
  std::string path;                            // ...Path: as FindPath() has it, or a new one.
  std::optional<std::uint32_t> weight;         // kAddPath, kWeighPath.
  bool wait = true;                            // kAddPath: until it is up.
  bool force = false;
  std::uint32_t timeout_ms = 30'000;
};

absl::StatusOr<ControlRequest> ParseRequest(const std::string& line);
std::string FormatRequest(const ControlRequest& request);

Json ToJson(const DeviceReport& report);
Json ToJson(const SessionReport& report);
Json ToJson(const ibnbd_path_info& path);
Json ToJson(const ibnbd_io_info& io);
std::string ErrorAnswer(const absl::Status& status);
// The object of an answer, or the error it tells.
absl::StatusOr<Json> ParseAnswer(const std::string& line);

// The state file's.
struct DaemonState {
  std::uint64_t client_id = 0;  // Random, never 0; of all processes that use this file.
  TableRecords records;
};
std::string FormatState(const DaemonState& state);
absl::StatusOr<DaemonState> ParseState(const std::string& text);

}  // namespace ibnbd::client
