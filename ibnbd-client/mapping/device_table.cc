// SPDX-License-Identifier: Apache-2.0
// See device_table.h.  What runs in the background is device_table_threads.cc.
#include "ibnbd-client/mapping/device_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/mapping/device_users.h"

namespace ibnbd::client {
namespace {

// For udev to have looked at a new device.
constexpr absl::Duration kUdevTime = absl::Seconds(5);
constexpr std::uint32_t kUnwantedMs = 1000;  // For IOs of one that nobody was told of.

absl::Status AskerHasLeft(const std::string& uri) {
  return absl::CancelledError(absl::StrCat("map ", uri, ": who asked has left"));
}

std::string WhatIs(DeviceKind kind, ibnbd_access access) {
  const char* how = access == IBNBD_READ_ONLY   ? "read-only"
                    : access == IBNBD_MIGRATION ? "for migration"
                                                : "read-write";
  return absl::StrCat(NameOf(kind), ", ", how);
}

// Whether what is mapped is what is wanted.
absl::Status WillDo(const DeviceRecord& there, const MapRequest& wanted) {
  const MapRequest& is = there.request;
  const std::string what =
      absl::StrCat("map ", wanted.uri.ToString(), ": it is mapped already, as ", there.node);
  if (!there.unread.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ", whose record this daemon cannot read"));
  }
  if (is.kind != wanted.kind || is.access != wanted.access) {
    return absl::AlreadyExistsError(absl::StrCat(what, " (", WhatIs(is.kind, is.access), "), not ",
                                                 WhatIs(wanted.kind, wanted.access)));
  }
  if (wanted.index >= 0 && wanted.index != is.index) {
    return absl::AlreadyExistsError(
        absl::StrCat(what, ", not ", NodeOf(wanted.kind, wanted.index)));
  }
  return absl::OkStatus();
}

}  // namespace

DeviceTable::DeviceTable(DeviceLoops& loops, SessionTable& sessions, DeviceNames names, SaveFn save,
                         ClockFn ms_since_boot)
    : loops_(loops),
      sessions_(sessions),
      names_(std::move(names)),
      save_(std::move(save)),
      ms_since_boot_(std::move(ms_since_boot)) {}

DeviceTable::~DeviceTable() { CHECK(threads_.empty()); }

absl::StatusOr<DeviceTable::SlotPtr> DeviceTable::Find(const std::string& selector) {
  const auto uri = ParseUri(selector);
  const std::string text = uri.ok() ? uri->ToString() : selector;
  std::vector<SlotPtr> found;
  for (const SlotPtr& slot : slots_) {
    const bool is_it = text == slot->record.node || text == slot->record.request.uri.ToString();
    if (is_it) found.push_back(slot);
  }
  if (found.empty()) return absl::NotFoundError(absl::StrCat(selector, ": not mapped"));
  if (found.size() == 1) return found.front();
  for (const SlotPtr& slot : found) {
    if (!slot->busy && !IsContested(*slot)) return slot;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      selector, ": ", found[0]->record.request.uri.ToString(), " and ",
      found[1]->record.request.uri.ToString(), " are both mapped as it: name one by its URI"));
}

absl::StatusOr<DeviceTable::SlotPtr> DeviceTable::Claim(const std::string& selector,
                                                        std::uint32_t timeout_ms) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SlotPtr slot, Find(selector));
  const auto free = [&slot] { return !slot->busy; };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&free), absl::Milliseconds(timeout_ms))) {
    return absl::UnavailableError(
        absl::StrCat(selector, ": another command about it is under way"));
  }
  if (slot->gone) return absl::NotFoundError(absl::StrCat(selector, ": not mapped"));
  slot->busy = true;
  return slot;
}

// Not one of which only its device is known.
absl::StatusOr<DeviceTable::SlotPtr> DeviceTable::ClaimReadable(const std::string& selector,
                                                                std::uint32_t timeout_ms) {
  ASSIGN_OR_RETURN(SlotPtr slot, Claim(selector, timeout_ms));
  if (slot->record.unread.empty()) return slot;
  Unclaim(slot);
  return absl::FailedPreconditionError(absl::StrCat(selector, ": ", slot->problem));
}

void DeviceTable::Unclaim(const SlotPtr& slot) {
  absl::MutexLock lock(&mutex_);
  slot->busy = false;
}

void DeviceTable::Drop(const SlotPtr& slot) {
  const std::string& node = slot->record.node;
  {
    absl::MutexLock lock(&mutex_);
    slot->gone = true;
    slot->busy = false;
    slots_.erase(std::remove(slots_.begin(), slots_.end(), slot), slots_.end());
    const SessionKey key = KeyOf(*slot);
    bool key_is_used = false;
    bool node_is_used = node.empty();  // By who got its number meanwhile: the name is that one's.
    for (const SlotPtr& other : slots_) {
      key_is_used |= KeyOf(*other) == key;
      node_is_used |= other->record.node == node;
    }
    if (!key_is_used) sessions_.Forget(key);
    if (!node_is_used) names_.Remove(node);
  }
  if (!node.empty()) DeviceNames::Announce(node);
}

// A place for a volume that is not mapped yet, claimed; or, if that will do, the device that is
// there, which is not.
absl::StatusOr<DeviceTable::SlotPtr> DeviceTable::Reserve(const MapRequest& request,
                                                          bool if_needed) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(request.timeout_ms);
  const std::string uri = request.uri.ToString();
  absl::MutexLock lock(&mutex_);
  while (true) {
    const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const SlotPtr& slot) {
      return slot->record.request.uri.ToString() == uri;
    });
    if (found == slots_.end()) break;
    const SlotPtr slot = *found;
    if (!if_needed) {
      return absl::AlreadyExistsError(
          slot->record.node.empty()
              ? absl::StrCat("map ", uri, ": another command maps it just now")
              : absl::StrCat("map ", uri, ": it is mapped already, as ", slot->record.node));
    }
    if (!slot->busy) {
      if (IsContested(*slot)) {
        return absl::FailedPreconditionError(
            absl::StrCat("map ", uri, ": it is mapped already, but its device ", slot->record.node,
                         " is another mapping's, too: unmap the wrong one, by its URI"));
      }
      RETURN_IF_ERROR(WillDo(slot->record, request));
      return slot;
    }
    const auto free = [&slot] { return !slot->busy; };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&free), deadline)) {
      return absl::UnavailableError(
          absl::StrCat("map ", uri, ": another command about it is under way"));
    }
  }
  auto slot = std::make_shared<Slot>();
  slot->record.request = request;
  slot->busy = true;
  slots_.push_back(slot);
  return slot;
}

// Of a slot that is claimed.
absl::Status DeviceTable::Start(const SlotPtr& slot, bool adopt) {
  MappedVolume::Options options;
  options.adopt = adopt;
  if (adopt) options.was = PastOf(*slot);
  options.starting = &starting_;
  options.was_refused = [&] {  // The server will say what it is.
    absl::MutexLock lock(&mutex_);
    slot->record.past.reset();
  };
  options.before_use = [&](int index, const ibnbd_device_info& volume) {
    return WriteDown(slot, index, volume);
  };
  const MapRequest request = slot->record.request;
  ASSIGN_OR_RETURN(auto volume, MappedVolume::Map(loops_, sessions_, request, options));
  {
    absl::MutexLock lock(&mutex_);
    slot->volume = std::move(volume);
    slot->problem.clear();
  }
  if (adopt) WriteName(*slot);
  DeviceNames::Announce(slot->record.node);
  return absl::OkStatus();
}

void DeviceTable::WriteName(const Slot& slot) {
  const absl::Status named = names_.Write(slot.record.node, slot.record.request.uri);
  if (!named.ok()) LOG_WARN("no stable name for ", slot.record.node, ": ", named.message());
}

// Before the device can be used: what nobody has written down, nobody would go on with.
absl::Status DeviceTable::WriteDown(const SlotPtr& slot, int index,
                                    const ibnbd_device_info& volume) {
  {
    absl::MutexLock lock(&mutex_);
    slot->record.node = NodeOf(slot->record.request.kind, index);
    slot->record.request.index = index;
    slot->record.request.volume_id = volume.volume_id;
    SetPast(*slot, {volume, 0});
    // The session has been told: what it has is written down with it, and may change.
    slot->record.request.wishes = {};
  }
  WriteName(*slot);
  return Save();
}

absl::StatusOr<DeviceReport> DeviceTable::MapInto(const SlotPtr& slot, const WantedFn& wanted) {
  absl::Status status = Start(slot, false);
  const bool is_unwanted = status.ok() && wanted && !wanted();
  if (is_unwanted) status = UnmapUnwanted(slot);
  if (!status.ok()) {
    Drop(slot);
    SaveOrLog();
    return status;
  }
  LOG_INFO("mapped ", slot->record.request.uri.ToString(), " as ", slot->record.node);
  absl::MutexLock lock(&mutex_);
  slot->busy = false;
  return ReportOf(*slot);
}

// OK: it stays, somebody uses it already.
absl::Status DeviceTable::UnmapUnwanted(const SlotPtr& slot) {
  const absl::Status left = AskerHasLeft(slot->record.request.uri.ToString());
  const absl::Time deadline = absl::Now() + kUdevTime;
  absl::Status away;
  do {  // udev looks at what is new.
    away = TakeAway(*slot, kUnwantedMs, false);
  } while (!away.ok() && absl::Now() < deadline && SleepFor(absl::Milliseconds(100)));
  if (away.ok()) {
    LOG_INFO(left.message(), "; ", slot->record.node, " is unmapped");
    return left;
  }
  LOG_WARN(left.message(), ", but ", slot->record.node, " stays: ", away.message());
  return absl::OkStatus();
}

// A device that is in use must not wait for the session behind one that is not mapped yet, which
// wants the server to be there.  The first try of a take-over needs no server, or gives up soon.
absl::Status DeviceTable::WaitForTakeOvers(const MapRequest& request) {
  const SessionKey key = client::KeyOf(request.uri, request.session_name);
  const auto tried = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::none_of(slots_.begin(), slots_.end(), [&key](const SlotPtr& slot) {
      return slot->untried && KeyOf(*slot) == key;
    });
  };
  absl::MutexLock lock(&mutex_);
  if (mutex_.AwaitWithTimeout(absl::Condition(&tried), absl::Milliseconds(request.timeout_ms))) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrCat("map ", request.uri.ToString(),
                                             ": devices of the same server are being taken over"));
}

absl::StatusOr<DeviceReport> DeviceTable::Map(const MapRequest& request, bool if_needed,
                                              const WantedFn& wanted) {
  RETURN_IF_ERROR(WaitForTakeOvers(request));
  // nbd: the device is there a moment before its name is written.
  if (request.kind == DeviceKind::kNbd) names_.RemoveStale(nullptr);
  if (wanted && !wanted()) return AskerHasLeft(request.uri.ToString());
  ASSIGN_OR_RETURN(const SlotPtr slot, Reserve(request, if_needed));
  {
    absl::MutexLock lock(&mutex_);
    if (!slot->record.node.empty()) return ReportOf(*slot);
  }
  return MapInto(slot, wanted);
}

// Of a slot that is claimed.
absl::Status DeviceTable::TakeAway(Slot& slot, std::uint32_t timeout_ms, bool force) {
  const std::string& node = slot.record.node;
  const bool is_contested = [&] {
    absl::MutexLock lock(&mutex_);
    return IsContested(slot);
  }();
  if (!is_contested) {  // Else nothing happens to the device, nor to its users.
    if (const std::string user = force ? "" : UserOf(node); !user.empty()) {
      return absl::UnavailableError(
          absl::StrCat(node, " is ", user, ": end that first, or use --force, which fails its IO"));
    }
    names_.Remove(node);
  }
  if (slot.volume != nullptr) {
    RETURN_IF_ERROR(slot.volume->Unmap(timeout_ms));
    slot.volume.reset();
  } else if (slot.record.request.index >= 0 && !is_contested) {
    const int index = slot.record.request.index;
    const bool ublk = slot.record.request.kind == DeviceKind::kUblk;
    const DeviceMark mark = MarkOf(slot);
    RETURN_IF_ERROR(ublk ? RemoveLeftUblkDevice(index, mark) : RemoveLeftNbdDevice(index, mark));
  }
  DeviceNames::Announce(node);
  return absl::OkStatus();
}

absl::Status DeviceTable::Unmap(const std::string& selector, std::uint32_t timeout_ms, bool force) {
  ASSIGN_OR_RETURN(const SlotPtr slot, Claim(selector, timeout_ms));
  if (absl::Status status = TakeAway(*slot, timeout_ms, force); !status.ok()) {
    Unclaim(slot);
    return Annotate(status, "unmap");
  }
  LOG_INFO("unmapped ", slot->record.node);
  Drop(slot);
  SaveOrLog();
  return absl::OkStatus();
}

// With another device it would leave this one to the other mapping, right or wrong.
absl::Status DeviceTable::MayBeRemapped(const Slot& slot) {
  absl::MutexLock lock(&mutex_);
  if (slot.volume != nullptr || !IsContested(slot)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      slot.record.node, " is another mapping's, too: unmap the wrong one, by its URI"));
}

absl::StatusOr<DeviceReport> DeviceTable::Remap(const std::string& selector,
                                                std::uint32_t timeout_ms, bool force) {
  ASSIGN_OR_RETURN(const SlotPtr slot, ClaimReadable(selector, timeout_ms));
  absl::Status status = MayBeRemapped(*slot);
  if (status.ok()) status = TakeAway(*slot, timeout_ms, force);
  if (!status.ok()) {
    Unclaim(slot);
    return Annotate(status, "remap");
  }
  {
    absl::MutexLock lock(&mutex_);
    MapRequest& request = slot->record.request;
    request.volume_id = 0;  // What the server has now is what is asked for.
    request.writer_epoch = 0;
    request.timeout_ms = timeout_ms;
    // By another mapping, or by somebody who still has what was taken away: then it gets another.
    if (SharesDevice(*slot) ||
        (request.kind == DeviceKind::kUblk && UblkNumberIsTaken(request.index))) {
      request.index = -1;
      slot->record.node.clear();
    }
    slot->untried = false;
  }
  return MapInto(slot, nullptr);
}

absl::StatusOr<DeviceReport> DeviceTable::Refresh(const std::string& selector,
                                                  std::uint32_t timeout_ms) {
  ASSIGN_OR_RETURN(const SlotPtr slot, Claim(selector, timeout_ms));
  const absl::Status status = slot->volume == nullptr ? absl::UnavailableError(slot->problem)
                                                      : slot->volume->Refresh(timeout_ms);
  absl::MutexLock lock(&mutex_);
  slot->busy = false;
  if (!status.ok()) return status;
  return ReportOf(*slot);
}

absl::StatusOr<DeviceReport> DeviceTable::SetFailAfter(const std::string& selector,
                                                       std::int64_t fail_after_ms,
                                                       std::uint32_t timeout_ms) {
  ASSIGN_OR_RETURN(const SlotPtr slot, ClaimReadable(selector, timeout_ms));
  const absl::Status status =
      slot->volume == nullptr ? absl::OkStatus() : slot->volume->SetFailAfter(fail_after_ms);
  {
    absl::MutexLock lock(&mutex_);
    slot->busy = false;
    if (!status.ok()) return status;
    slot->record.request.fail_after_ms = fail_after_ms;
  }
  RETURN_IF_ERROR(Save());  // Or the next process would go by the old one.
  absl::MutexLock lock(&mutex_);
  return ReportOf(*slot);
}

absl::StatusOr<std::vector<ibnbd_io_info>> DeviceTable::ListIos(const std::string& selector,
                                                                std::uint32_t timeout_ms) {
  ASSIGN_OR_RETURN(const SlotPtr slot, Claim(selector, timeout_ms));
  absl::StatusOr<std::vector<ibnbd_io_info>> ios = slot->volume == nullptr
                                                       ? absl::UnavailableError(slot->problem)
                                                       : slot->volume->ListIos(timeout_ms);
  Unclaim(slot);
  if (!ios.ok()) return ios.status();
  std::stable_sort(ios->begin(), ios->end(), [](const ibnbd_io_info& a, const ibnbd_io_info& b) {
    return a.waited_ns > b.waited_ns;
  });
  return ios;
}

DeviceReport DeviceTable::ReportOf(const Slot& slot) const {
  DeviceReport report;
  report.record = slot.record;
  report.problem =
      slot.busy && slot.problem.empty() ? "a command about it is under way" : slot.problem;
  if (slot.busy || slot.volume == nullptr) return report;
  const absl::StatusOr<ibnbd_device_info> info = slot.volume->Describe();
  if (!info.ok()) {
    report.problem = std::string(info.status().message());
    return report;
  }
  if (!slot.volume->IsConnected()) {
    if (report.problem.empty()) report.problem = "the kernel has closed its connection";
    return report;
  }
  report.served = true;
  report.info = *info;
  report.device_size = slot.volume->device_size();
  report.session = sessions_.Report(KeyOf(slot));
  return report;
}

absl::StatusOr<DeviceReport> DeviceTable::Show(const std::string& selector) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const SlotPtr slot, Find(selector));
  return ReportOf(*slot);
}

std::vector<DeviceReport> DeviceTable::List() {
  absl::MutexLock lock(&mutex_);
  std::vector<DeviceReport> reports;
  for (const SlotPtr& slot : slots_) {
    if (!slot->record.node.empty()) reports.push_back(ReportOf(*slot));
  }
  return reports;
}

// Writes down what there is now.
absl::Status DeviceTable::Save() {
  absl::MutexLock saving(&save_mutex_);  // One after the other, the last one last.
  TableRecords records;
  {
    absl::MutexLock lock(&mutex_);
    std::vector<SessionKey> keys;
    for (const SlotPtr& slot : slots_) {
      if (slot->record.node.empty()) continue;
      records.devices.push_back(slot->record);
      keys.push_back(KeyOf(*slot));
    }
    records.sessions = sessions_.RecordsOf(keys);
  }
  return save_(records);
}

// For what is gone: the next process finds that out by itself.
void DeviceTable::SaveOrLog() {
  if (const absl::Status status = Save(); !status.ok()) LOG_ERROR(status.message());
}

}  // namespace ibnbd::client
