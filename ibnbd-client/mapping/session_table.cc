// SPDX-License-Identifier: Apache-2.0
// See session_table.h.  Commands about a session are session_table_commands.cc.
#include "ibnbd-client/mapping/session_table.h"

#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/fnv.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"

namespace ibnbd::client {
namespace {

// Kernel devices have as many IOs at once as their queues are deep, each device of its own.
constexpr std::uint32_t kIoDepthMax = 4096;
// After its time-out, for a try to end.
constexpr absl::Duration kAnswerTime = absl::Seconds(1);
// All IO has come back when a session is closed; this is for saying good-bye.
constexpr std::uint32_t kCloseMs = 1000;

// One server may be known by several addresses: each session with it is a client of its own.
std::uint64_t IdFor(std::uint64_t client_id, const std::string& server) {
  const std::uint64_t hash = Fnv1a(std::as_bytes(std::span(server)), kFnvBasis ^ client_id);
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

// In one spelling; names are not looked up.
std::string Spelled(const SessionKey& key, const std::string& path) {
  return CanonicalPath(path, PortOf(key), Names::kRefused).value_or(path);
}

// What `by` says; what was said already stays somebody else's, and becomes his if he changes it.
void SetWishes(const SessionWishes& wishes, std::uint64_t by, SessionSettings* settings) {
  if (wishes.policy) {
    settings->policy_told_by = settings->policy == *wishes.policy ? 0 : by;
    settings->policy = *wishes.policy;
  }
  if (wishes.dead_after_ms) {
    settings->dead_after_told_by = settings->dead_after_ms == *wishes.dead_after_ms ? 0 : by;
    settings->dead_after_ms = *wishes.dead_after_ms;
  }
}

void AddWishes(const SessionKey& key, const SessionWishes& wishes, std::uint64_t by,
               SessionSettings* settings) {
  for (const std::string& path : WishedPaths(key, wishes.ways)) {
    const std::string wanted = Spelled(key, path);
    const auto same = [&](const PathSetting& setting) {
      return setting.path == path || Spelled(key, setting.path) == wanted;
    };
    if (std::any_of(settings->paths.begin(), settings->paths.end(), same)) continue;
    settings->paths.push_back({path, kPathWeightDefault, PathSetting::kNoId, by});
  }
  SetWishes(wishes, by, settings);
}

// Gives the paths the ids that the library will give them, the places in its list, and returns the
// list; without the first one, which the library knows from the URI, unless they are `known`.
std::string Number(bool known, SessionSettings* settings) {
  std::string list;
  std::uint32_t next = 0;
  for (PathSetting& setting : settings->paths) {
    setting.id = next++;
    if (known || setting.id != 0) absl::StrAppend(&list, list.empty() ? "" : " ", setting.path);
  }
  return list;
}

}  // namespace

SessionTable::SessionTable(DeviceLoops& loops, std::string name, std::uint64_t client_id,
                           std::string memory)
    : loops_(loops), name_(std::move(name)), client_id_(client_id), memory_(std::move(memory)) {}

SessionTable::~SessionTable() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, entry] : entries_) CHECK(entry->users == 0);
}

std::string SessionTable::NameOf(const SessionKey& key) const {
  const std::string& name = key.name.empty() ? name_ : key.name;
  if (!name.empty() || client_id_ == 0) return name;
  return NameFor(IdFor(client_id_, absl::StrCat(key.server, " ", name)));
}

SessionTable::EntryPtr SessionTable::EntryOf(const SessionKey& key) {
  absl::MutexLock lock(&mutex_);
  EntryPtr& entry = entries_[key];
  if (entry == nullptr) entry = std::make_shared<Entry>();
  return entry;
}

ibnbd_session* SessionTable::Pin(const SessionKey& key) {
  const EntryPtr entry = EntryOf(key);
  absl::MutexLock lock(&mutex_);
  if (entry->session != nullptr) ++entry->users;
  return entry->session;
}

SessionTable::Turn::Turn(SessionTable& table, Entry& entry, absl::Duration patience)
    : table_(table), entry_(entry) {
  absl::MutexLock lock(&table_.mutex_);
  failures_before_ = entry_.failure.number;
  const auto is_free = [this] { return !entry_.taken; };
  ours_ = table_.mutex_.AwaitWithTimeout(absl::Condition(&is_free), patience);
  if (ours_) entry_.taken = true;
}

SessionTable::Turn::~Turn() {
  absl::MutexLock lock(&table_.mutex_);
  if (ours_) entry_.taken = false;
}

absl::Status SessionTable::Turn::FailureOf(const Ways& ways, std::uint32_t left_ms) const {
  absl::MutexLock lock(&table_.mutex_);
  const auto& failure = entry_.failure;
  const bool same =
      failure.number != failures_before_ && failure.ways == ways && failure.timeout_ms >= left_ms;
  return same ? failure.why : absl::OkStatus();
}

absl::StatusOr<ibnbd_session*> SessionTable::Acquire(const SessionKey& key,
                                                     const SessionWishes& wishes,
                                                     std::uint32_t timeout_ms, SessionHaste haste,
                                                     Told* told) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(timeout_ms);
  const EntryPtr entry = EntryOf(key);
  // Who began at the same time is to have his answer, and to tell it.
  const Turn turn(*this, *entry, absl::Milliseconds(timeout_ms) + kAnswerTime);
  if (!turn.is_ours()) {
    return absl::UnavailableError(
        absl::StrCat("session with ", key.server, ": another command is still opening it"));
  }
  *told = {};
  told->by = ++last_told_;
  if (ibnbd_session* session = Pin(key); session != nullptr) {
    Remember(key, session);
    const absl::Status status = Tell(key, session, wishes, told);
    if (status.ok()) return session;
    TakeBack(key, *told, *entry);
    Leave(key, *entry);
    return status;
  }
  const std::int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
  const auto left_ms = static_cast<std::uint32_t>(std::max<std::int64_t>(left, 1));
  const bool shares = haste == SessionHaste::kFirstTry;
  if (shares) RETURN_IF_ERROR(turn.FailureOf(wishes.ways, left_ms));
  const auto session = Open(key, wishes, left_ms, haste, told);
  absl::MutexLock lock(&mutex_);
  if (session.ok()) {
    entry->session = *session;
    ++entry->users;
  } else if (shares && !absl::IsInvalidArgument(session.status())) {
    entry->failure = {entry->failure.number + 1, wishes.ways, left_ms, session.status()};
  }
  return session;
}

absl::StatusOr<ibnbd_session*> SessionTable::Open(const SessionKey& key,
                                                  const SessionWishes& wishes,
                                                  std::uint32_t timeout_ms, SessionHaste haste,
                                                  Told* told) {
  SessionSettings settings;
  bool known = false;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = settings_.find(key);
    known = found != settings_.end();
    settings = known ? found->second : FreshSettings(key, wishes.ways.source);
  }
  told->begun = !known;
  told->policy_before = settings.policy;
  told->dead_after_ms_before = settings.dead_after_ms;
  AddWishes(key, wishes, told->by, &settings);
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  const std::string own_name = NameOf(key);
  if (client_id_ != 0) {
    options.client_id =
        IdFor(client_id_, absl::StrCat(key.server, " ", key.name.empty() ? name_ : key.name));
  }
  if (!own_name.empty()) options.name = own_name.c_str();
  const std::string paths = Number(known, &settings);
  if (!paths.empty()) options.paths = paths.c_str();
  if (known) {
    options.flags |= IBNBD_SESSION_PATHS_ONLY;
  } else if (!wishes.ways.source.empty()) {
    options.source = wishes.ways.source.c_str();
  }
  options.queue_count = loops_.count();
  options.io_depth_max = kIoDepthMax;
  options.bounce_bytes = 0;  // All IO is on registered memory.
  if (!memory_.empty()) options.memory = memory_.c_str();
  options.connect_timeout_ms = timeout_ms;
  options.dead_after_ms = settings.dead_after_ms;
  if (haste == SessionHaste::kRetry) options.flags |= IBNBD_SESSION_RETRY;
  if (haste == SessionHaste::kNone) options.flags |= IBNBD_SESSION_NO_WAIT;
  ibnbd_session* session = nullptr;
  if (const int error = ibnbd_session_open(key.server.c_str(), &options, &session)) {
    return ApiStatus(error);
  }
  DropTwins(session, &settings);
  for (const PathSetting& setting : settings.paths) {
    if (setting.weight == kPathWeightDefault) continue;
    if (ibnbd_session_set_path_weight(session, setting.id, setting.weight) != 0) {
      LOG_WARN("weight of path ", setting.path, ": ", ibnbd_error_message());
    }
  }
  if (ibnbd_session_set_policy(session, settings.policy) != 0) {
    LOG_WARN("policy of session ", own_name, ": ", ibnbd_error_message());
  }
  {
    absl::MutexLock lock(&mutex_);
    settings_[key] = std::move(settings);
  }
  loops_.AddSession(session);
  return session;
}

absl::Status SessionTable::Tell(const SessionKey& key, ibnbd_session* session,
                                const SessionWishes& wishes, Told* told) {
  Change(key, [&](SessionSettings& settings) {
    told->policy_before = settings.policy;
    told->dead_after_ms_before = settings.dead_after_ms;
  });
  for (const std::string& path : WishedPaths(key, wishes.ways)) {
    const absl::Status added = AddLivePath(key, session, path, kPathWeightDefault, 0, told->by);
    if (!added.ok() && !absl::IsAlreadyExists(added)) return added;
    if (!added.ok()) KeepPath(key, session, path);
  }
  const auto policy = wishes.policy;
  if (policy && ibnbd_session_set_policy(session, *policy) != 0) return ApiStatus(-EINVAL);
  const auto dead_after_ms = wishes.dead_after_ms;
  if (dead_after_ms && ibnbd_session_set_dead_after(session, *dead_after_ms) != 0) {
    if (policy) (void)ibnbd_session_set_policy(session, told->policy_before);
    return ApiStatus(-EINVAL);
  }
  Change(key, [&](SessionSettings& settings) { SetWishes(wishes, told->by, &settings); });
  return absl::OkStatus();
}

void SessionTable::Release(const SessionKey& key) {
  const EntryPtr entry = EntryOf(key);
  {
    // Not the last one: nothing is closed, and whoever has his turn may be waiting for a server
    // or for the address of a name, which is nothing that a report should wait for.
    absl::MutexLock lock(&mutex_);
    CHECK(entry->users > 0);
    if (entry->users > 1) {
      --entry->users;
      return;
    }
  }
  const Turn turn(*this, *entry);
  Leave(key, *entry);
}

void SessionTable::Leave(const SessionKey& key, Entry& entry) {
  ibnbd_session* session = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    CHECK(entry.users > 0);
    if (--entry.users != 0) return;
    session = std::exchange(entry.session, nullptr);
  }
  loops_.RemoveSession(session);
  if (ibnbd_session_close(session, kCloseMs) != 0) LOG_WARN(ibnbd_error_message());
  Change(key, [](SessionSettings& settings) {
    for (PathSetting& setting : settings.paths) setting.id = PathSetting::kNoId;
  });
}

// Those that are open: one that is being opened is waited for by who opens it.
bool SessionTable::AllAlive() {
  absl::MutexLock lock(&mutex_);  // It keeps them open.
  bool all = true;
  for (const auto& [key, entry] : entries_) {
    if (entry->session != nullptr && ibnbd_session_is_alive(entry->session) == 0) all = false;
  }
  return all;
}

void SessionTable::Change(const SessionKey& key, const SettingsFn& change) {
  absl::MutexLock lock(&mutex_);
  if (const auto found = settings_.find(key); found != settings_.end()) change(found->second);
}

void SessionTable::ChangeSettled(const SessionKey& key, const SettingsFn& change) {
  absl::MutexLock lock(&mutex_);
  change(settings_.try_emplace(key, FreshSettings(key)).first->second);
}

void SessionTable::Restore(const std::vector<SessionRecord>& records) {
  absl::MutexLock lock(&mutex_);
  for (const SessionRecord& record : records) settings_[record.key] = record.settings;
}

std::vector<SessionRecord> SessionTable::RecordsOf(const std::vector<SessionKey>& keys) const {
  std::vector<SessionRecord> records;
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, settings] : settings_) {
    // Without a path: it gets its next one just now, and nobody could open it like this.
    if (settings.paths.empty()) continue;
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) records.push_back({key, settings});
  }
  return records;
}

void SessionTable::Forget(const SessionKey& key) {
  absl::MutexLock lock(&mutex_);
  settings_.erase(key);
}

}  // namespace ibnbd::client
