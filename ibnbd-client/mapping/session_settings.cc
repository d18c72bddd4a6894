// SPDX-License-Identifier: Apache-2.0
// See session_settings.h.
#include "ibnbd-client/mapping/session_settings.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"

namespace ibnbd::client {

SessionKey KeyOf(Uri uri, const std::string& name) {
  uri.export_name.clear();
  return {uri.ToString(), name};
}

SessionSettings FreshSettings(const SessionKey& key, const std::string& source) {
  SessionSettings settings;
  settings.paths.push_back({absl::StrCat(source, source.empty() ? "" : "@",
                                         key.server.substr(key.server.find("://") + 3))});
  return settings;
}

std::vector<std::string> WishedPaths(const SessionKey& key, const Ways& ways) {
  std::vector<std::string> paths = absl::StrSplit(ways.more, ' ', absl::SkipEmpty());
  if (!ways.source.empty()) {
    paths.insert(paths.begin(), FreshSettings(key, ways.source).paths.front().path);
  }
  return paths;
}

std::uint16_t PortOf(const SessionKey& key) {
  const auto uri = ParseUri(key.server);
  return uri.ok() ? uri->port : kDefaultPort;
}

absl::StatusOr<std::string> CanonicalPath(const std::string& path, std::uint16_t default_port,
                                          Names names) {
  const std::string what = absl::StrCat("path \"", path, "\"");
  const std::size_t at = path.find('@');
  const absl::string_view target =
      absl::string_view(path).substr(at == std::string::npos ? 0 : at + 1);
  const auto to = ParseHostPort(target, BareIpv6::kTaken);
  if (!to.ok()) return Annotate(to.status(), what);
  const std::uint16_t port = to->port.value_or(default_port);
  if (port == 0) return absl::InvalidArgumentError(absl::StrCat(what, ": its port is 0"));
  const auto server = ResolveAddress(to->host, port, names);
  if (!server.ok() && names == Names::kLookedUp) return Annotate(server.status(), what);
  const std::string server_text =
      server.ok() ? server->ToString() : absl::StrCat(to->host, ":", port);
  if (at == std::string::npos) return server_text;
  const auto from = ParseHostPort(absl::string_view(path).substr(0, at), BareIpv6::kTaken);
  if (!from.ok()) return Annotate(from.status(), what);
  if (from->port.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": a source has no port"));
  }
  auto source = ResolveAddress(from->host, 0, names);
  if (!source.ok() && names == Names::kLookedUp) return Annotate(source.status(), what);
  if (!source.ok() || !server.ok()) return absl::StrCat(from->host, "@", server_text);
  if (source->family != server->family) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": source and destination are of different kinds"));
  }
  const auto bare = ParseHostPort(source->ToString());
  return absl::StrCat(bare.ok() ? bare->host : source->ToString(), "@", server_text);
}

absl::StatusOr<std::size_t> FindPath(const SessionReport& report, const std::string& selector) {
  std::uint32_t id = 0;
  const bool is_id = absl::SimpleAtoi(selector, &id);
  const auto find = [&report](const auto& is_it) -> std::optional<std::size_t> {
    const auto path = std::find_if(report.paths.begin(), report.paths.end(), is_it);
    if (path == report.paths.end()) return std::nullopt;
    return path - report.paths.begin();
  };
  std::optional<std::size_t> found;
  if (is_id) {
    found = find([id](const ibnbd_path_info& path) { return path.id == id; });
  } else {
    // As it stands, which may be a name that nobody knows now; then where that leads.
    const std::uint16_t port = PortOf(report.key);
    ASSIGN_OR_RETURN(std::string text, CanonicalPath(selector, port, Names::kRefused));
    const auto has_text = [&](const ibnbd_path_info& path) {
      return text == path.path || selector == path.path;
    };
    found = find(has_text);
    if (!found) {
      text = CanonicalPath(selector, port, Names::kLookedUp).value_or(text);
      found = find(has_text);
    }
  }
  if (found) return *found;
  return absl::NotFoundError(absl::StrCat(
      "session ", report.name, " has no path ", selector, "; it has ",
      absl::StrJoin(report.paths, ", ", [](std::string* out, const ibnbd_path_info& path) {
        absl::StrAppend(out, path.path);
      })));
}

}  // namespace ibnbd::client
