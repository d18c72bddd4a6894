// SPDX-License-Identifier: Apache-2.0
// What a device table does in the background: it takes over the devices of its predecessor, and
// asks servers for the sizes of their volumes.  See device_table.h.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/mapping/device_table.h"

namespace ibnbd::client {
namespace {

constexpr absl::Duration kRefreshEvery = absl::Seconds(5);
constexpr std::uint32_t kRefreshMs = 1000;
constexpr absl::Duration kRetryMin = absl::Milliseconds(200);
constexpr absl::Duration kRetryMax = absl::Seconds(10);
// Of one try: others who want the same server wait for it.
constexpr std::uint32_t kTakeOverMs = 5000;

std::string WhyUnread(const DeviceRecord& record) {
  return absl::StrCat("this daemon cannot read the record of it (", record.unread_because,
                      "): its IOs wait for one that can, or for unmap");
}

}  // namespace

bool DeviceTable::SleepFor(absl::Duration time) {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&ending_), time);
}

absl::StatusOr<bool> DeviceTable::IsLeft(const Slot& slot) const {
  const int index = slot.record.request.index;
  return slot.record.request.kind == DeviceKind::kUblk
             ? UblkDeviceIsLeft(index, sessions_.client_id())
             : NbdDeviceIsLeft(index, sessions_.client_id());
}

// What was not written down was not announced, and nobody uses it.  As long as it cannot be read
// which device a record is about, it could be any.
void DeviceTable::RemoveUnknown() {
  std::vector<int> ublk;
  std::vector<int> nbd;
  {
    absl::MutexLock lock(&mutex_);
    for (const SlotPtr& slot : slots_) {
      if (slot->record.request.index < 0) return;
      const bool is_ublk = slot->record.request.kind == DeviceKind::kUblk;
      (is_ublk ? ublk : nbd).push_back(slot->record.request.index);
    }
  }
  RemoveUnknownUblkDevices(sessions_.client_id(), ublk);
  RemoveUnknownNbdDevices(sessions_.client_id(), nbd);
}

void DeviceTable::Restore(const TableRecords& records) {
  sessions_.Restore(records.sessions);
  for (const DeviceRecord& record : records.devices) {
    auto slot = std::make_shared<Slot>();
    slot->record = record;
    slot->record.request.timeout_ms = kTakeOverMs;
    slot->problem = record.unread.empty() ? "not taken over yet" : WhyUnread(record);
    {
      absl::MutexLock lock(&mutex_);
      slots_.push_back(slot);
    }
    if (!record.unread.empty()) {
      LOG_ERROR(record.node, " is not served: ", slot->problem);
      continue;
    }
    threads_.emplace_back([this, slot] { TakeOver(slot); });
  }
  RemoveUnknown();
}

// Until it works, or the device is gone, or it was unmapped meanwhile.
void DeviceTable::TakeOver(const SlotPtr& slot) {
  absl::Duration pause = kRetryMin;
  std::string last_problem;
  while (true) {
    const absl::Status status = TryTakeOver(slot);
    if (status.ok()) return;
    if (last_problem != status.message()) {
      last_problem = std::string(status.message());
      LOG_WARN(slot->record.node, " waits: ", last_problem);
    }
    if (!SleepFor(pause)) return;
    pause = std::min(2 * pause, kRetryMax);
  }
}

absl::Status DeviceTable::TryTakeOver(const SlotPtr& slot) {
  {
    absl::MutexLock lock(&mutex_);
    if (slot->gone) return absl::OkStatus();
    if (slot->busy) return absl::UnavailableError("a command about it is under way");
    slot->busy = true;
  }
  const auto left = IsLeft(*slot);
  if (left.ok() && !*left) {
    LOG_WARN(slot->record.node, " is gone; it was ", slot->record.request.uri.ToString());
    Drop(slot);
    SaveOrLog();
    return absl::OkStatus();
  }
  const absl::Status status = left.ok() ? Start(slot, true) : left.status();
  absl::MutexLock lock(&mutex_);
  slot->busy = false;
  slot->problem = std::string(status.message());
  if (status.ok()) LOG_INFO("took over ", slot->record.node);
  return status;
}

void DeviceTable::StartRefreshing() {
  threads_.emplace_back([this] {
    while (SleepFor(kRefreshEvery)) RefreshAll();
  });
}

void DeviceTable::RefreshAll() {
  std::vector<SlotPtr> slots;
  {
    absl::MutexLock lock(&mutex_);
    slots = slots_;
  }
  for (const SlotPtr& slot : slots) {
    {
      absl::MutexLock lock(&mutex_);
      if (slot->busy || slot->gone || slot->volume == nullptr || ending_) continue;
      const auto info = slot->volume->Describe();
      if (!info.ok() || info->state != IBNBD_STATE_OPEN) continue;
      slot->busy = true;
    }
    const absl::Status status = slot->volume->Refresh(kRefreshMs);
    absl::MutexLock lock(&mutex_);
    slot->busy = false;
    // Once: it will be the same in five seconds.
    if (slot->problem != status.message()) {
      slot->problem = std::string(status.message());
      if (!status.ok()) LOG_WARN(status.message());
    }
  }
}

void DeviceTable::StopThreads() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace ibnbd::client
