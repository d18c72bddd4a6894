// SPDX-License-Identifier: Apache-2.0
// The sessions of a device table's devices, by whatever people call them.  See device_table.h.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "ibnbd-client/mapping/device_table.h"

namespace ibnbd::client {
namespace {

// "tcp://host", "tcp://host:1234", "host", "host:1234" are the same server.
bool IsServer(const std::string& selector, const SessionKey& key) {
  const std::string scheme = key.server.substr(0, key.server.find("://"));
  const auto uri = ParseUri(selector, scheme);
  return uri.ok() && uri->export_name.empty() && KeyOf(*uri, "").server == key.server;
}

}  // namespace

SessionKey DeviceTable::KeyOf(const Slot& slot) {
  return client::KeyOf(slot.record.request.uri, slot.record.request.session_name);
}

bool DeviceTable::HasSession(const Slot& slot) { return !slot.record.request.uri.host.empty(); }

absl::StatusOr<SessionKey> DeviceTable::FindSession(const std::string& selector) {
  absl::MutexLock lock(&mutex_);
  if (const auto slot = Find(selector); slot.ok() && HasSession(**slot)) return KeyOf(**slot);
  std::set<SessionKey> all;
  for (const SlotPtr& slot : slots_) {
    if (HasSession(*slot)) all.insert(KeyOf(*slot));
  }
  std::vector<SessionKey> found;
  for (const SessionKey& key : all) {
    if (selector == sessions_.NameOf(key) || IsServer(selector, key)) found.push_back(key);
  }
  if (found.size() == 1) return found.front();
  const auto name = [this](std::string* out, const SessionKey& key) {
    absl::StrAppend(out, sessions_.NameOf(key), " with ", key.server);
  };
  if (!found.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("session ", selector, ": there are several, ",
                                                   absl::StrJoin(found, ", ", name),
                                                   ": name one by a device of it"));
  }
  if (all.empty()) {
    return absl::NotFoundError(
        absl::StrCat("session ", selector, ": there is none, because nothing is mapped"));
  }
  return absl::NotFoundError(absl::StrCat("session ", selector,
                                          ": neither a session nor a device; there is ",
                                          absl::StrJoin(all, ", ", name)));
}

SessionReport DeviceTable::ReportOfSession(const SessionKey& key) {
  SessionReport report = sessions_.Report(key);
  absl::MutexLock lock(&mutex_);
  for (const SlotPtr& slot : slots_) {
    if (KeyOf(*slot) == key && !slot->record.node.empty()) {
      report.devices.push_back(slot->record.node);
    }
  }
  return report;
}

absl::StatusOr<SessionReport> DeviceTable::ShowSession(const std::string& selector) {
  ASSIGN_OR_RETURN(const SessionKey key, FindSession(selector));
  return ReportOfSession(key);
}

absl::StatusOr<SessionReport> DeviceTable::ChangeSession(const std::string& selector,
                                                         const ChangeFn& change) {
  ASSIGN_OR_RETURN(const SessionKey key, FindSession(selector));
  const absl::Status changed = change(sessions_, key);
  const absl::Status saved = Save();  // Also what will be, after all: a path that takes its time.
  RETURN_IF_ERROR(changed);
  if (!saved.ok()) return Annotate(saved, "done, but the next daemon will not know");
  return ReportOfSession(key);
}

std::vector<SessionReport> DeviceTable::ListSessions() {
  std::set<SessionKey> keys;
  {
    absl::MutexLock lock(&mutex_);
    for (const SlotPtr& slot : slots_) {
      if (!slot->record.node.empty() && HasSession(*slot)) keys.insert(KeyOf(*slot));
    }
  }
  std::vector<SessionReport> reports;
  for (const SessionKey& key : keys) reports.push_back(ReportOfSession(key));
  return reports;
}

}  // namespace ibnbd::client
