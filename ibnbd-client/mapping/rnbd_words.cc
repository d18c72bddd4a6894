// SPDX-License-Identifier: Apache-2.0
// See rnbd_words.h.
#include "ibnbd-client/mapping/rnbd_words.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

constexpr std::size_t kNameMax = 254;  // What the wire has room for.

absl::Status Refuse(absl::string_view word, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(word, ": ", why));
}

struct Path {
  std::string source, server;  // Addresses without brackets; no source: "".
  bool operator==(const Path&) const = default;
};

struct Words {
  RnbdMapping mapping;
  std::vector<Path> paths;
  std::optional<std::uint16_t> port;
};

// One side of a path, "ip:ADDRESS".
absl::StatusOr<std::string> TakeAddress(absl::string_view word, absl::string_view side) {
  if (absl::StartsWith(side, "gid:")) {
    return Refuse(word,
                  "InfiniBand's own addresses (AF_IB) are not spoken here: say the port's IP "
                  "address, ip:ADDRESS");
  }
  absl::string_view address = side;
  if (!absl::ConsumePrefix(&address, "ip:") || address.empty() || absl::StrContains(address, '@') ||
      absl::StrContains(address, ',')) {
    return Refuse(word, "expected path=[ip:SOURCE@]ip:ADDRESS");
  }
  const absl::StatusOr<HostPort> parts = ParseHostPort(address, BareIpv6::kTaken);
  if (!parts.ok()) return Refuse(word, parts.status().message());
  if (parts->port) return Refuse(word, "an address alone is expected: the port is dest_port=");
  return parts->host;
}

// "ip:DST", "ip:SRC@ip:DST", "ip:SRC,ip:DST".
absl::Status TakePath(const std::string& word, absl::string_view path, Words* words) {
  const std::size_t middle = path.find_first_of("@,");
  Path taken;
  if (middle != absl::string_view::npos) {
    ASSIGN_OR_RETURN(taken.source, TakeAddress(word, path.substr(0, middle)));
    path.remove_prefix(middle + 1);
  }
  ASSIGN_OR_RETURN(taken.server, TakeAddress(word, path));
  if (absl::c_linear_search(words->paths, taken)) return Refuse(word, "said twice");
  words->paths.push_back(taken);
  return absl::OkStatus();
}

absl::Status TakePort(const std::string& word, absl::string_view text, Words* words) {
  if (words->port) return Refuse(word, "said twice: all paths lead to the same port here");
  const absl::StatusOr<std::uint16_t> port = ParsePort(text);
  if (!port.ok() || *port == 0) return Refuse(word, "expected a port, 1 to 65535");
  words->port = *port;
  return absl::OkStatus();
}

absl::Status TakeAccess(const std::string& word, absl::string_view mode, ibnbd_access* access) {
  if (mode == "ro") {
    *access = IBNBD_READ_ONLY;
  } else if (mode == "rw") {
    *access = IBNBD_READ_WRITE;
  } else if (mode == "migration") {
    *access = IBNBD_MIGRATION;
  } else {
    return Refuse(word, "expected ro, rw or migration");
  }
  return absl::OkStatus();
}

absl::Status TakeWord(const std::string& word, Words* words) {
  RnbdMapping* mapping = &words->mapping;
  const std::size_t equals = word.find('=');
  const absl::string_view key = absl::string_view(word).substr(0, equals);
  const absl::string_view value = absl::string_view(word).substr(equals + 1);
  if (key == "path") return TakePath(word, value, words);
  if (key == "dest_port") return TakePort(word, value, words);
  if (key == "access_mode") return TakeAccess(word, value, &mapping->access);
  if (key == "nr_poll_queues") {
    if (value == "0") return absl::OkStatus();
    return Refuse(word, "a device has no poll queues here: leave it out");
  }
  std::string* name = nullptr;
  if (key == "sessname") name = &mapping->session_name;
  if (key == "device_path") name = &mapping->uri.export_name;
  if (name == nullptr) {
    return Refuse(word,
                  "expected sessname=, path=, device_path=, dest_port=, access_mode= or "
                  "nr_poll_queues=");
  }
  if (!name->empty()) return Refuse(word, "said twice");
  if (value.empty() || value.size() > kNameMax) return Refuse(word, "expected 1 to 254 bytes");
  if (key == "sessname" && (absl::StrContains(value, '/') || absl::StrContains(value, '.'))) {
    return Refuse(word, "a session's name has no '/' and no '.'");
  }
  *name = std::string(value);
  return absl::OkStatus();
}

}  // namespace

bool IsRnbdWord(const std::string& word) {
  const std::size_t equals = word.find('=');
  const std::size_t scheme = word.find("://");
  return equals != std::string::npos && (scheme == std::string::npos || equals < scheme);
}

absl::StatusOr<RnbdMapping> ParseRnbdWords(std::span<const std::string> words) {
  Words taken;
  for (const std::string& word : words) {
    if (!IsRnbdWord(word)) return Refuse(word, "expected KEY=VALUE, as the words before it");
    RETURN_IF_ERROR(TakeWord(word, &taken));
  }
  RnbdMapping mapping = std::move(taken.mapping);
  if (mapping.session_name.empty()) return absl::InvalidArgumentError("sessname= is missing");
  if (taken.paths.empty()) return absl::InvalidArgumentError("path= is missing");
  if (mapping.uri.export_name.empty()) {
    return absl::InvalidArgumentError("device_path= is missing");
  }
  mapping.uri.scheme = "rdma";
  mapping.uri.host = taken.paths.front().server;
  mapping.uri.port = taken.port.value_or(kDefaultPort);
  mapping.ways.source = taken.paths.front().source;
  taken.paths.erase(taken.paths.begin());
  mapping.ways.more = absl::StrJoin(taken.paths, " ", [](std::string* out, const Path& path) {
    const char* middle = path.source.empty() ? "" : "@";
    absl::StrAppend(out, path.source, middle, path.server);
  });
  return mapping;
}

}  // namespace ibnbd::client
