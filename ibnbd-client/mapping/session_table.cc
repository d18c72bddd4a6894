// SPDX-License-Identifier: Apache-2.0
// See session_table.h.
#include "ibnbd-client/mapping/session_table.h"

#include <utility>

#include "absl/strings/str_cat.h"
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

}  // namespace

SessionTable::SessionTable(DeviceLoops& loops, std::string name, std::string memory)
    : loops_(loops), name_(std::move(name)), memory_(std::move(memory)) {}

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
                                                     std::uint32_t timeout_ms, bool retry) {
  const std::shared_ptr<Entry> entry = EntryOf(uri, name);
  absl::MutexLock lock(&entry->opening);
  if (entry->session == nullptr) {
    ASSIGN_OR_RETURN(entry->session,
                     Open(ServerOf(uri), name.empty() ? name_ : name, timeout_ms, retry));
  }
  ++entry->users;
  return entry->session;
}

absl::StatusOr<ibnbd_session*> SessionTable::Open(const std::string& server,
                                                  const std::string& name, std::uint32_t timeout_ms,
                                                  bool retry) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  if (!name.empty()) options.name = name.c_str();
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

void SessionTable::CloseAll() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, entry] : entries_) {
    absl::MutexLock opening(&entry->opening);
    if (entry->session != nullptr) loops_.RemoveSession(entry->session);
  }
  loops_.Stop();
  for (const auto& [key, entry] : entries_) {
    absl::MutexLock opening(&entry->opening);
    if (entry->session != nullptr) (void)ibnbd_session_close(entry->session, 0);
    entry->session = nullptr;
    entry->users = 0;
  }
}

}  // namespace ibnbd::client
