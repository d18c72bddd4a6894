// SPDX-License-Identifier: Apache-2.0
// See session_table.h.
#include "ibnbd-client/mapping/session_table.h"

#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"

namespace ibnbd::client {
namespace {

// Kernel devices have as many IOs at once as their queues are deep, each device of its own.
constexpr std::uint32_t kIoDepthMax = 4096;
// All IO has come back when a session is closed; this is for saying good-bye.
constexpr std::uint32_t kCloseMs = 1000;

std::string ServerOf(Uri uri) {
  uri.export_name.clear();
  return uri.ToString();
}

// All but the URI's own, from anywhere.
std::set<std::string> PathsOf(const Uri& uri, const Ways& ways) {
  std::set<std::string> paths = absl::StrSplit(ways.more, ' ', absl::SkipEmpty());
  if (!ways.source.empty()) {
    const bool v6 = absl::StrContains(uri.host, ':');
    paths.insert(
        absl::StrCat(ways.source, "@", v6 ? "[" : "", uri.host, v6 ? "]:" : ":", uri.port));
  }
  return paths;
}

// One server may be known by several addresses: each session with it is a client of its own.
std::uint64_t IdFor(std::uint64_t client_id, const std::string& server) {
  std::uint64_t hash = 0xcbf29ce484222325u ^ client_id;  // FNV-1a.
  for (const char c : server) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return std::max<std::uint64_t>(hash, 1);
}

std::string NameFor(std::uint64_t id) {
  char host[HOST_NAME_MAX + 1] = "localhost";
  (void)::gethostname(host, sizeof(host) - 1);
  std::string name = absl::StrCat(host, "-", absl::Hex(id & 0xffffffff, absl::kZeroPad8));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '.' || c == '/'; }, '-');
  return name;
}

}  // namespace

SessionTable::SessionTable(DeviceLoops& loops, std::string name, std::uint64_t client_id,
                           std::string memory)
    : loops_(loops), name_(std::move(name)), client_id_(client_id), memory_(std::move(memory)) {}

SessionTable::~SessionTable() {
  for (const auto& [key, entry] : entries_) {
    absl::MutexLock lock(&entry->opening);
    CHECK(entry->users == 0);
  }
}

// Entries stay: they are few, and somebody may wait for one.
std::shared_ptr<SessionTable::Entry> SessionTable::EntryOf(const Uri& uri,
                                                           const std::string& name) {
  absl::MutexLock lock(&mutex_);
  std::shared_ptr<Entry>& entry = entries_[{ServerOf(uri), name}];
  if (entry == nullptr) entry = std::make_shared<Entry>();
  return entry;
}

absl::StatusOr<ibnbd_session*> SessionTable::Acquire(const Uri& uri, const std::string& name,
                                                     const Ways& ways, std::uint32_t timeout_ms,
                                                     bool retry) {
  const std::shared_ptr<Entry> entry = EntryOf(uri, name);
  absl::MutexLock lock(&entry->opening);
  if (entry->session == nullptr) {
    ASSIGN_OR_RETURN(entry->session,
                     Open(ServerOf(uri), name.empty() ? name_ : name, ways, timeout_ms, retry));
    entry->paths = PathsOf(uri, ways);
  } else {
    RETURN_IF_ERROR(AddPaths(*entry, PathsOf(uri, ways)));
  }
  ++entry->users;
  return entry->session;
}

absl::Status SessionTable::AddPaths(Entry& entry, const std::set<std::string>& paths) {
  constexpr std::uint32_t kWeight = 100;
  for (const std::string& path : paths) {
    if (entry.paths.contains(path)) continue;
    if (const int error = ibnbd_session_add_path(entry.session, path.c_str(), kWeight, nullptr)) {
      return ApiStatus(error);
    }
    entry.paths.insert(path);
  }
  return absl::OkStatus();
}

absl::StatusOr<ibnbd_session*> SessionTable::Open(const std::string& server,
                                                  const std::string& name, const Ways& ways,
                                                  std::uint32_t timeout_ms, bool retry) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  std::string own_name = name;
  if (client_id_ != 0) {
    options.client_id = IdFor(client_id_, absl::StrCat(server, " ", name));
    if (name.empty()) own_name = NameFor(options.client_id);
  }
  if (!own_name.empty()) options.name = own_name.c_str();
  if (!ways.source.empty()) options.source = ways.source.c_str();
  if (!ways.more.empty()) options.paths = ways.more.c_str();
  options.queue_count = loops_.count();
  options.io_depth_max = kIoDepthMax;
  options.bounce_bytes = 0;  // All IO is on registered memory.
  if (!memory_.empty()) options.memory = memory_.c_str();
  options.connect_timeout_ms = timeout_ms;
  if (retry) options.flags |= IBNBD_SESSION_RETRY;
  ibnbd_session* session = nullptr;
  if (const int error = ibnbd_session_open(server.c_str(), &options, &session)) {
    return ApiStatus(error);
  }
  loops_.AddSession(session);
  return session;
}

void SessionTable::Release(const Uri& uri, const std::string& name) {
  const std::shared_ptr<Entry> entry = EntryOf(uri, name);
  absl::MutexLock lock(&entry->opening);
  CHECK(entry->users > 0);
  if (--entry->users != 0) return;
  loops_.RemoveSession(entry->session);
  if (ibnbd_session_close(entry->session, kCloseMs) != 0) LOG_WARN(ibnbd_error_message());
  entry->session = nullptr;
}

}  // namespace ibnbd::client
