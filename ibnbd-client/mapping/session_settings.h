// SPDX-License-Identifier: Apache-2.0
// What a session with a server has been told, by commands and with the volumes that were mapped
// over it: its paths, which of them IOs take, how long the server may be silent.  Written down with
// the devices, so that the next process's session is the same.  Pure functions; but
// FindPath(), and CanonicalPath() if it may, ask for the address of a name, which may take long.
#pragma once

#include <ibnbd/ibnbd.h>

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/socket_address.h"

namespace ibnbd::client {

inline constexpr std::uint32_t kPathWeightDefault = 100;
inline constexpr std::uint32_t kPathWeightMax = 1000;
inline constexpr std::size_t kPathsMax = 8;

struct SessionKey {
  std::string server;  // "tcp://10.0.0.2:1234", of the URIs of its volumes.
  std::string name;    // As given with the first volume; "": that of the process.
  auto operator<=>(const SessionKey&) const = default;
};
SessionKey KeyOf(Uri uri, const std::string& name);

struct PathSetting {
  static constexpr std::uint32_t kNoId = ~0u;
  std::string path;  // "[SRC@]DST[:PORT]", as it was given: a name stays a name.
  std::uint32_t weight = kPathWeightDefault;
  std::uint32_t id = kNoId;   // Of the library, while the session is open.
  std::uint64_t told_by = 0;  // SessionTable::Told::by; 0: somebody else wants it, too.
};

struct SessionSettings {
  std::vector<PathSetting> paths;  // All; at least one.
  std::uint32_t policy = IBNBD_POLICY_ADAPTIVE;
  std::uint32_t dead_after_ms = 0;  // 0: the default.
  // Who said so last, as above.
  std::uint64_t policy_told_by = 0, dead_after_told_by = 0;
};

// How a session reaches its server.
struct Ways {
  std::string source;  // The local address to come from, on the way that the URI says; "": any.
  std::string more;    // Other ways, "[SRC@]DST[:PORT]", separated by spaces.
  bool operator==(const Ways&) const = default;
};

// What a volume's mapping says about its session; what is not said stays as it is.
struct SessionWishes {
  Ways ways;
  std::optional<std::uint32_t> policy;
  std::optional<std::uint32_t> dead_after_ms;
};

// What is written down.
struct SessionRecord {
  SessionKey key;
  SessionSettings settings;
};

// What is shown.
struct SessionReport {
  SessionKey key;
  std::string name;  // As the server knows it.
  bool open = false;
  SessionSettings settings;
  struct ibnbd_session_info info {};   // Open ones only.
  std::vector<ibnbd_path_info> paths;  // Of one that is not open: as it will begin.
  std::vector<std::string> devices;    // Nodes.
};

SessionSettings FreshSettings(const SessionKey& key, const std::string& source = "");
// Those that the wishes name; the URI's own only if they say where it comes from.
std::vector<std::string> WishedPaths(const SessionKey& key, const Ways& ways);
std::uint16_t PortOf(const SessionKey& key);
// What the library calls the path: "10.0.0.2:1234", "10.1.0.1@10.1.0.2:1234"; if names are refused,
// with those as they are, "hostb:1234", as it does for as long as it does not know them either.
absl::StatusOr<std::string> CanonicalPath(const std::string& path, std::uint16_t default_port,
                                          Names names);
// Its index.  `selector`: its id, or the path in any spelling.
absl::StatusOr<std::size_t> FindPath(const SessionReport& report, const std::string& selector);

}  // namespace ibnbd::client
