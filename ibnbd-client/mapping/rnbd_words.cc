// SPDX-License-Identifier: Apache-2.0
// See rnbd_words.h.
#include "ibnbd-client/mapping/rnbd_words.h"

#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

constexpr std::size_t kNameMax = 254;  // What the wire has room for.

absl::Status Refuse(absl::string_view word, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(word, ": ", why));
}

absl::Status TakePath(const std::string& word, absl::string_view path, Uri* uri) {
  if (!uri->host.empty()) return Refuse(word, "a second path: a session has one here");
  if (absl::StartsWith(path, "gid:")) {
    return Refuse(word, "GIDs are not spoken here: say the port's IP address, path=ip:ADDRESS");
  }
  if (absl::StrContains(path, '@') || absl::StrContains(path, ',')) {
    return Refuse(word,
                  "a source address cannot be chosen here: say the server's alone, "
                  "path=ip:ADDRESS");
  }
  if (!absl::ConsumePrefix(&path, "ip:") || path.empty()) {
    return Refuse(word, "expected path=ip:ADDRESS");
  }
  uri->host = std::string(path);
  return absl::OkStatus();
}

absl::Status TakePort(const std::string& word, absl::string_view text, Uri* uri) {
  const absl::StatusOr<std::uint16_t> port = ParsePort(text);
  if (!port.ok() || *port == 0) return Refuse(word, "expected a port, 1 to 65535");
  uri->port = *port;
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

absl::Status TakeWord(const std::string& word, RnbdMapping* mapping) {
  const std::size_t equals = word.find('=');
  const absl::string_view key = absl::string_view(word).substr(0, equals);
  const absl::string_view value = absl::string_view(word).substr(equals + 1);
  if (key == "path") return TakePath(word, value, &mapping->uri);
  if (key == "dest_port") return TakePort(word, value, &mapping->uri);
  if (key == "access_mode") return TakeAccess(word, value, &mapping->access);
  if (key == "nr_poll_queues") {
    if (value == "0") return absl::OkStatus();
    return Refuse(word, "there are no poll queues here: leave it out");
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
  RnbdMapping mapping;
  mapping.uri.scheme = "rdma";
  for (const std::string& word : words) {
    if (!IsRnbdWord(word)) return Refuse(word, "expected KEY=VALUE, as the words before it");
    RETURN_IF_ERROR(TakeWord(word, &mapping));
  }
  if (mapping.session_name.empty()) return absl::InvalidArgumentError("sessname= is missing");
  if (mapping.uri.host.empty()) return absl::InvalidArgumentError("path= is missing");
  if (mapping.uri.export_name.empty()) {
    return absl::InvalidArgumentError("device_path= is missing");
  }
  return mapping;
}

}  // namespace ibnbd::client
