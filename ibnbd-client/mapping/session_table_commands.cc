// SPDX-License-Identifier: Apache-2.0
// Commands about a session: what it has, and what is to be different.  See session_table.h.
#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/mapping/session_table.h"

namespace ibnbd::client {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(20);
constexpr std::uint32_t kTakeBackMs = 5000;  // Of a path that never came up: nothing is in flight.

std::vector<ibnbd_path_info> PathsOf(ibnbd_session* session) {
  std::vector<ibnbd_path_info> paths;
  for (std::uint32_t i = 0;; ++i) {
    ibnbd_path_info path = {};
    path.struct_size = sizeof(path);
    if (ibnbd_session_get_path_info(session, i, &path) != 0) return paths;
    paths.push_back(path);
  }
}

// Of a path whose first attempts decide.
absl::Status AwaitPath(ibnbd_session* session, std::uint32_t id, std::uint32_t timeout_ms) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(timeout_ms);
  while (true) {
    const std::vector<ibnbd_path_info> paths = PathsOf(session);
    const auto path = std::find_if(paths.begin(), paths.end(),
                                   [id](const ibnbd_path_info& other) { return other.id == id; });
    if (path == paths.end()) return absl::CancelledError("it was removed meanwhile");
    if (path->state == IBNBD_PATH_UP) return absl::OkStatus();
    if (path->connect_failures > 0) return absl::UnavailableError(path->last_error);
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "it is not up after ", absl::FormatDuration(absl::Milliseconds(timeout_ms))));
    }
    absl::SleepFor(kLookEvery);
  }
}

void CopyPath(const std::string& text, char (&into)[160]) {
  const std::size_t size = std::min(text.size(), sizeof(into) - 1);
  std::copy_n(text.begin(), size, into);
}

}  // namespace

SessionReport SessionTable::ReportOf(const SessionKey& key, ibnbd_session* session) const {
  SessionReport report;
  report.key = key;
  report.name = NameOf(key);
  report.open = session != nullptr;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = settings_.find(key);
    report.settings = found == settings_.end() ? FreshSettings(key) : found->second;
  }
  if (session != nullptr) {
    report.info.struct_size = sizeof(report.info);
    (void)ibnbd_session_get_info(session, &report.info);  // Zeroes otherwise.
    report.paths = PathsOf(session);
    return report;
  }
  for (const PathSetting& setting : report.settings.paths) {
    ibnbd_path_info path = {};
    path.id = static_cast<std::uint32_t>(report.paths.size());
    path.weight = setting.weight;
    CopyPath(CanonicalPath(setting.path, PortOf(key), Names::kRefused).value_or(setting.path),
             path.path);
    report.paths.push_back(path);
  }
  return report;
}

SessionReport SessionTable::Report(const SessionKey& key) {
  ibnbd_session* const session = Pin(key);
  SessionReport report = ReportOf(key, session);
  if (session != nullptr) Release(key);
  return report;
}

absl::Status SessionTable::WithSession(const SessionKey& key,
                                       const std::function<absl::Status(ibnbd_session*)>& live,
                                       const std::function<absl::Status()>& settled) {
  ibnbd_session* session = Pin(key);
  if (session == nullptr) {
    const EntryPtr entry = EntryOf(key);
    const Turn turn(*this, *entry);
    session = Pin(key);
    if (session == nullptr) return settled();
  }
  const absl::Cleanup release = [this, &key] { Release(key); };
  return live(session);
}

void SessionTable::Remember(const SessionKey& key, ibnbd_session* session) {
  {
    absl::MutexLock lock(&mutex_);
    if (settings_.contains(key)) return;
  }
  SessionSettings settings;
  for (const ibnbd_path_info& path : PathsOf(session)) {
    if (path.state == IBNBD_PATH_CLOSING) continue;
    settings.paths.push_back({path.path, path.weight, path.id});
  }
  ibnbd_session_info info = {};
  info.struct_size = sizeof(info);
  if (settings.paths.empty() || ibnbd_session_get_info(session, &info) != 0) return;
  settings.policy = info.policy;
  settings.dead_after_ms = info.dead_after_ms;
  absl::MutexLock lock(&mutex_);
  settings_.try_emplace(key, std::move(settings));
}

// Somebody else has wished it, too.
void SessionTable::KeepPath(const SessionKey& key, ibnbd_session* session,
                            const std::string& path) {
  const SessionReport report = ReportOf(key, session);
  const auto index = FindPath(report, path);
  if (!index.ok()) return;
  Change(key, [id = report.paths[*index].id](SessionSettings& settings) {
    for (PathSetting& setting : settings.paths) {
      if (setting.id == id) setting.told_by = 0;
    }
  });
}

void SessionTable::TakeBack(const SessionKey& key, const Told& told, Entry& entry) {
  SessionSettings now;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = settings_.find(key);
    if (found == settings_.end()) return;
    if (told.begun && entry.users == 1) {  // It goes itself.
      settings_.erase(found);
      return;
    }
    now = found->second;
  }
  for (const PathSetting& path : now.paths) {
    if (path.told_by != told.by) continue;
    const int error = ibnbd_session_remove_path(entry.session, path.id, kTakeBackMs);
    if (error == 0 || error == -ETIMEDOUT) ForgetPath(key, path.id);
  }
  const bool policy = now.policy_told_by == told.by;
  const bool dead_after = now.dead_after_told_by == told.by;
  if (policy) (void)ibnbd_session_set_policy(entry.session, told.policy_before);
  if (dead_after) (void)ibnbd_session_set_dead_after(entry.session, told.dead_after_ms_before);
  Change(key, [&](SessionSettings& settings) {
    if (policy) settings.policy = told.policy_before;
    if (dead_after) settings.dead_after_ms = told.dead_after_ms_before;
  });
}

void SessionTable::Abandon(const SessionKey& key, const Told& told) {
  const EntryPtr entry = EntryOf(key);
  const Turn turn(*this, *entry);
  TakeBack(key, told, *entry);
  Leave(key, *entry);
}

void SessionTable::DropTwins(ibnbd_session* session, SessionSettings* settings) {
  const std::vector<ibnbd_path_info> paths = PathsOf(session);
  for (std::size_t i = 1; i < paths.size(); ++i) {
    const auto is_twin = [&](const ibnbd_path_info& other) {
      return std::string_view(other.path) == paths[i].path;
    };
    if (std::none_of(paths.begin(), paths.begin() + static_cast<std::ptrdiff_t>(i), is_twin)) {
      continue;
    }
    if (ibnbd_session_remove_path(session, paths[i].id, kTakeBackMs) == -EBUSY) continue;
    std::erase_if(settings->paths,
                  [&](const PathSetting& setting) { return setting.id == paths[i].id; });
  }
}

void SessionTable::ForgetPath(const SessionKey& key, std::uint32_t id) {
  Change(key, [id](SessionSettings& settings) {
    std::erase_if(settings.paths, [id](const PathSetting& other) { return other.id == id; });
  });
}

absl::Status SessionTable::AddLivePath(const SessionKey& key, ibnbd_session* session,
                                       const std::string& path, std::uint32_t weight,
                                       std::uint32_t wait_ms, std::uint64_t told_by) {
  std::uint32_t id = 0;
  if (const int error = ibnbd_session_add_path(session, path.c_str(), weight, &id)) {
    return ApiStatus(error);
  }
  // Before we wait: others may be removed meanwhile, and this one is what the session has then.
  Change(key, [&](SessionSettings& settings) {
    settings.paths.push_back({path, weight, id, told_by});
  });
  if (wait_ms == 0) return absl::OkStatus();
  const absl::Status up = AwaitPath(session, id, wait_ms);
  if (up.ok()) return up;
  const int error = ibnbd_session_remove_path(session, id, kTakeBackMs);
  if (error == -EBUSY) return Annotate(up, "it stays, as the session's last one");
  if (error == 0 || error == -ETIMEDOUT) ForgetPath(key, id);
  return up;
}

absl::Status SessionTable::AddPath(const SessionKey& key, const std::string& path,
                                   std::uint32_t weight, bool wait, std::uint32_t timeout_ms) {
  const std::string what = absl::StrCat("add path ", path, " to session ", NameOf(key));
  const auto live = [&](ibnbd_session* session) {
    return AddLivePath(key, session, path, weight, wait ? timeout_ms : 0, 0);
  };
  const auto settled = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string canonical,
                     CanonicalPath(path, PortOf(key), Names::kRefused));
    const SessionReport report = ReportOf(key, nullptr);
    if (FindPath(report, canonical).ok()) return absl::AlreadyExistsError("it is there already");
    if (report.paths.size() >= kPathsMax) {
      return absl::ResourceExhaustedError(absl::StrCat("it has ", kPathsMax, " paths"));
    }
    ChangeSettled(key, [&](SessionSettings& settings) {
      settings.paths.push_back({path, weight});
    });
    return absl::OkStatus();
  };
  return Annotate(WithSession(key, live, settled), what);
}

absl::Status SessionTable::RemovePath(const SessionKey& key, const std::string& path, bool force,
                                      std::uint32_t timeout_ms) {
  const std::string what = absl::StrCat("remove path ", path, " of session ", NameOf(key));
  const auto check = [&](const SessionReport& report, std::size_t index) -> absl::Status {
    if (report.paths.size() == 1) {
      return absl::FailedPreconditionError(
          "it is the last one: add another one first, or unmap the session's devices");
    }
    const auto up = [](const ibnbd_path_info& other) { return other.state == IBNBD_PATH_UP; };
    if (!force && up(report.paths[index]) &&
        std::count_if(report.paths.begin(), report.paths.end(), up) == 1) {
      return absl::FailedPreconditionError(
          "no other one is up: IO would wait for one; --force if that is meant");
    }
    return absl::OkStatus();
  };
  const auto live = [&](ibnbd_session* session) -> absl::Status {
    const SessionReport report = ReportOf(key, session);
    ASSIGN_OR_RETURN(const std::size_t index, FindPath(report, path));
    RETURN_IF_ERROR(check(report, index));
    const std::uint32_t id = report.paths[index].id;
    const int error = ibnbd_session_remove_path(session, id, timeout_ms);
    const absl::Status status = error == 0 ? absl::OkStatus() : ApiStatus(error);
    if (error == 0 || error == -ETIMEDOUT) {  // It will be.
      ForgetPath(key, id);
    }
    return status;
  };
  const auto settled = [&]() -> absl::Status {
    const SessionReport report = ReportOf(key, nullptr);
    ASSIGN_OR_RETURN(const std::size_t index, FindPath(report, path));
    RETURN_IF_ERROR(check(report, index));
    ChangeSettled(key, [index](SessionSettings& settings) {
      settings.paths.erase(settings.paths.begin() + static_cast<std::ptrdiff_t>(index));
    });
    return absl::OkStatus();
  };
  return Annotate(WithSession(key, live, settled), what);
}

absl::Status SessionTable::SetPathWeight(const SessionKey& key, const std::string& path,
                                         std::uint32_t weight) {
  const std::string what = absl::StrCat("weight of path ", path, " of session ", NameOf(key));
  const auto live = [&](ibnbd_session* session) -> absl::Status {
    const SessionReport report = ReportOf(key, session);
    ASSIGN_OR_RETURN(const std::size_t index, FindPath(report, path));
    const std::uint32_t id = report.paths[index].id;
    if (const int error = ibnbd_session_set_path_weight(session, id, weight)) {
      return ApiStatus(error);
    }
    Change(key, [id, weight](SessionSettings& settings) {
      for (PathSetting& setting : settings.paths) {
        if (setting.id == id) setting.weight = weight;
      }
    });
    return absl::OkStatus();
  };
  const auto settled = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::size_t index, FindPath(ReportOf(key, nullptr), path));
    ChangeSettled(key, [&](SessionSettings& settings) { settings.paths[index].weight = weight; });
    return absl::OkStatus();
  };
  return Annotate(WithSession(key, live, settled), what);
}

absl::Status SessionTable::Set(const SessionKey& key, const SessionWishes& wishes) {
  const auto settled = [&] {
    ChangeSettled(key, [&](SessionSettings& settings) {
      settings.policy = wishes.policy.value_or(settings.policy);
      settings.dead_after_ms = wishes.dead_after_ms.value_or(settings.dead_after_ms);
    });
    return absl::OkStatus();
  };
  return Annotate(WithSession(
                      key,
                      [&](ibnbd_session* session) {
                        Told told;  // By a command, which nobody takes back.
                        return Tell(key, session, wishes, &told);
                      },
                      settled),
                  absl::StrCat("set session ", NameOf(key)));
}

}  // namespace ibnbd::client
