// SPDX-License-Identifier: Apache-2.0
// What a device table does in the background: it takes over the devices of its predecessor, and
// asks servers for the sizes of their volumes.  See device_table.h.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/mapping/device_table.h"

namespace ibnbd::client {
namespace {

constexpr absl::Duration kRefreshEvery = absl::Seconds(5);
constexpr absl::Duration kNoteEvery = absl::Seconds(1);
constexpr std::int64_t kLossSlackMs = 1500;  // Of two looks at the same loss.
constexpr std::uint32_t kRefreshMs = 1000;
constexpr absl::Duration kRetryMin = absl::Milliseconds(200);
constexpr absl::Duration kRetryMax = absl::Seconds(10);
constexpr absl::Duration kServeOthers = absl::Seconds(15);
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

// Of a record that cannot be read the volume is not known.
DeviceMark DeviceTable::MarkOf(const Slot& slot) const {
  if (!slot.record.unread.empty()) return {sessions_.client_id(), 0};
  return client::MarkOf(sessions_.client_id(), slot.record.request);
}

absl::StatusOr<bool> DeviceTable::IsLeft(const Slot& slot) const {
  const int index = slot.record.request.index;
  const DeviceMark mark = MarkOf(slot);
  return slot.record.request.kind == DeviceKind::kUblk ? UblkDeviceIsLeft(index, mark)
                                                       : NbdDeviceIsLeft(index, mark);
}

// Whether another record is about the same device.
bool DeviceTable::SharesDevice(const Slot& slot) const {
  const MapRequest& mine = slot.record.request;
  return std::any_of(slots_.begin(), slots_.end(), [&](const SlotPtr& other) {
    const MapRequest& its = other->record.request;
    return other.get() != &slot && !other->record.node.empty() && its.kind == mine.kind &&
           its.index == mine.index;
  });
}

// Whether it is, and might be right: nobody serves the device for this one.  Then nobody writes to
// it, or takes it away, before it is known which.  Of a slot that is claimed, or not busy.
bool DeviceTable::IsContested(const Slot& slot) const {
  const bool is_served = slot.volume != nullptr && slot.volume->IsConnected();
  return !is_served && SharesDevice(slot);
}

// What was not written down was not announced, and nobody uses it.  As long as it cannot be read
// which device a record is about, it could be any.
void DeviceTable::RemoveUnknown(const std::vector<SlotPtr>& known) {
  std::vector<int> ublk;
  std::vector<int> nbd;
  std::vector<std::string> nodes;
  {
    absl::MutexLock lock(&mutex_);
    for (const SlotPtr& slot : known) {
      if (slot->record.request.index < 0) return;
      nodes.push_back(slot->record.node);
      const bool is_ublk = slot->record.request.kind == DeviceKind::kUblk;
      (is_ublk ? ublk : nbd).push_back(slot->record.request.index);
    }
  }
  RemoveUnknownUblkDevices(sessions_.client_id(), ublk);
  RemoveUnknownNbdDevices(sessions_.client_id(), nbd);
  names_.RemoveStale(&nodes);
}

void DeviceTable::Restore(const TableRecords& records, std::int64_t last_ms) {
  sessions_.Restore(records.sessions);
  std::vector<SlotPtr> slots;
  for (const DeviceRecord& record : records.devices) {
    auto slot = std::make_shared<Slot>();
    slot->record = record;
    slot->record.request.timeout_ms = kTakeOverMs;
    // Since when its IOs wait must not begin anew if we are killed before they have been given to
    // the server: as long as it is not open, it is lost.
    if (slot->record.past && slot->record.past->lost_at_ms == 0) {
      slot->record.past->lost_at_ms = last_ms;
    }
    slot->untried = record.unread.empty();
    slot->problem = slot->untried ? "not taken over yet" : WhyUnread(record);
    if (!slot->untried) LOG_ERROR(record.node, " is not served: ", slot->problem);
    slots.push_back(std::move(slot));
  }
  {  // All of them, before one is taken over that another one may be about as well.
    absl::MutexLock lock(&mutex_);
    slots_ = slots;
  }
  for (const SlotPtr& slot : slots) {
    if (slot->record.unread.empty()) threads_.emplace_back([this, slot] { TakeOver(slot); });
  }
  noted_ = Save().ok();  // Before anybody notes that we were alive.
  RemoveUnknown(slots);
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
    if (IsLeftBehind(status)) return EndProcess(slot);
    if (!SleepFor(pause)) return;
    pause = std::min(2 * pause, kRetryMax);
  }
}

// By the way that is always taken: the next one takes all devices over, if there is somebody who
// starts it.  The other devices are served for a while first, in case that it comes to the same
// point again.
void DeviceTable::EndProcess(const SlotPtr& slot) {
  if (::getenv("NOTIFY_SOCKET") == nullptr) {
    LOG_ERROR(slot->record.node, " is not served before this daemon is started again");
    return;
  }
  if (!SleepFor(kServeOthers)) return;
  {
    absl::MutexLock lock(&mutex_);
    if (slot->gone) return;
  }
  LOG_ERROR("ends, for the next process to take over what this one cannot");
  ::kill(::getpid(), SIGTERM);
}

absl::Status DeviceTable::TryTakeOver(const SlotPtr& slot) {
  {
    absl::MutexLock lock(&mutex_);
    if (slot->gone) return absl::OkStatus();
    if (slot->busy) return absl::UnavailableError("a command about it is under way");
    if (slot->volume != nullptr) return absl::OkStatus();  // It was mapped again.
    slot->busy = true;
  }
  const auto left = IsLeft(*slot);
  if (left.ok() && !*left) {
    LOG_WARN(slot->record.node, " is gone; it was ", slot->record.request.uri.ToString());
    Drop(slot);
    SaveOrLog();
    return absl::OkStatus();
  }
  absl::Status status = left.status();
  const bool is_contested = [&] {
    absl::MutexLock lock(&mutex_);
    return IsContested(*slot);
  }();
  if (status.ok() && is_contested) {
    status = absl::FailedPreconditionError(
        "another record is about this device, too: unmap the wrong one, by its URI");
  }
  if (status.ok()) status = Start(slot, true);
  if (IsLeftBehind(status)) {
    status = LeftBehind(absl::Status(
        status.code(), absl::StrCat(status.message(),
                                    "; only another process of the daemon can take it over now")));
  }
  absl::MutexLock lock(&mutex_);
  slot->busy = false;
  slot->untried = false;
  slot->problem = std::string(status.message());
  if (status.ok()) LOG_INFO("took over ", slot->record.node);
  return status;
}

// What it was, for a device that is taken over: its IOs have waited since its server was lost.
std::optional<ibnbd_device_info> DeviceTable::PastOf(const Slot& slot) const {
  if (!slot.record.past) return std::nullopt;
  ibnbd_device_info was = slot.record.past->info;
  was.struct_size = sizeof(was);
  const std::string& name = slot.record.request.uri.export_name;
  if (name.size() >= sizeof(was.name)) return std::nullopt;
  std::memcpy(was.name, name.c_str(), name.size() + 1);
  was.volume_id = slot.record.request.volume_id;
  was.writer_epoch = slot.record.request.writer_epoch;
  const std::int64_t since_ms = slot.record.past->lost_at_ms;
  const std::int64_t now_ms = ms_since_boot_();
  was.held_ms =
      since_ms == 0 ? 0 : static_cast<std::uint64_t>(std::max<std::int64_t>(now_ms - since_ms, 0));
  return was;
}

void DeviceTable::SetPast(Slot& slot, const VolumePast& past) {
  slot.record.past = past;
  // An epoch that the server does not tell now, it may tell the next time.
  const auto epoch = static_cast<std::uint16_t>(past.info.writer_epoch);
  if (epoch != 0) slot.record.request.writer_epoch = epoch;
}

// True if it is news.
bool DeviceTable::NotePast(Slot& slot) const {
  if (slot.busy || slot.gone || slot.volume == nullptr) return false;
  const auto now = slot.volume->Describe();
  // Of a volume that was not open in this life nothing is known that is newer.
  if (!now.ok() || (now->state != IBNBD_STATE_OPEN && !slot.record.past)) return false;
  const ibnbd_device_info& was = slot.record.past ? slot.record.past->info : *now;
  const auto epoch = static_cast<std::uint16_t>(now->writer_epoch);
  const auto held_ms = static_cast<std::int64_t>(now->held_ms);
  const std::int64_t lost_at_ms =
      held_ms == 0 ? 0 : std::max<std::int64_t>(ms_since_boot_() - held_ms, 1);
  const bool same = slot.record.past && was.size == now->size &&
                    (epoch == 0 || epoch == slot.record.request.writer_epoch) &&
                    std::equal(std::begin(was.server_instance), std::end(was.server_instance),
                               std::begin(now->server_instance)) &&
                    std::abs(slot.record.past->lost_at_ms - lost_at_ms) <= kLossSlackMs;
  if (same) return false;
  SetPast(slot, {*now, lost_at_ms});
  return true;
}

void DeviceTable::NotePasts() {
  bool news = false;
  {
    absl::MutexLock lock(&mutex_);
    for (const SlotPtr& slot : slots_) news |= NotePast(*slot);
  }
  if (!news && noted_) return;
  const absl::Status saved = Save();
  if (!saved.ok() && noted_) LOG_ERROR(saved.message());  // Once.
  noted_ = saved.ok();
}

void DeviceTable::StartRefreshing(std::function<void()> alive) {
  // Alive means that what is written down is right, but for the last second.  First: a session that
  // does not answer must not make it look as if all had been dead.
  threads_.emplace_back([this, alive = std::move(alive)] {
    do {
      if (noted_) alive();
      NotePasts();
    } while (SleepFor(kNoteEvery));
  });
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
    bool connected = true;
    {
      absl::MutexLock lock(&mutex_);
      if (slot->busy || slot->gone || slot->volume == nullptr || ending_) continue;
      connected = slot->volume->IsConnected();
      const auto info = slot->volume->Describe();
      if (connected && (!info.ok() || info->state != IBNBD_STATE_OPEN)) continue;
      slot->busy = true;
    }
    const absl::Status status =
        connected ? slot->volume->Refresh(kRefreshMs) : slot->volume->Reconnect();
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
