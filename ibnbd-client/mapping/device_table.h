// SPDX-License-Identifier: Apache-2.0
// What the daemon serves: the mapped volumes by the name of their block device.  Calls come from
// the workers of the control socket, and wait: for a server, for the kernel, for another call about
// the same device, each for a bounded time.  Calls about different devices do not meet.
//
// The table writes down what it serves, before anybody can use it and after each change, so that
// the next process can take the devices over, at whatever point this one dies; until it has managed
// to, such a device is listed with the reason.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ibnbd-client/mapping/device_names.h"
#include "ibnbd-client/mapping/mapped_volume.h"

namespace ibnbd::client {

// A volume as its device was served last.
struct VolumePast {
  ibnbd_device_info info{};     // The name is the request's.
  std::int64_t lost_at_ms = 0;  // Since boot: since when its server is away; 0: it was not.
};

// What is written down.
struct DeviceRecord {
  MapRequest request;  // index: the device's; volume_id, writer_epoch: the volume's.
  std::string node;
  std::optional<VolumePast> past;
  // As it was found, if this daemon cannot read it: another one may.  Then no more than the node,
  // the kind and the index (-1: not even these, and the node is "?") and the URI are above.
  std::string unread;
  std::string unread_because;
};

// What is shown.
struct DeviceReport {
  DeviceRecord record;
  bool served = false;       // False: it waits to be taken over, or for another call.
  std::string problem;       // Why it is not.
  ibnbd_device_info info{};  // Of what is served.
  std::uint64_t device_size = 0;
  SessionReport session;  // Its devices are not listed.
};

// All of it.
struct TableRecords {
  std::vector<DeviceRecord> devices;
  std::vector<SessionRecord> sessions;  // Of the devices.
};

class DeviceTable {
 public:
  using SaveFn = std::function<absl::Status(const TableRecords&)>;
  // Times are of CLOCK_BOOTTIME: the kernel's devices live as long.
  using ClockFn = std::function<std::int64_t()>;

  DeviceTable(DeviceLoops& loops, SessionTable& sessions, DeviceNames names, SaveFn save,
              ClockFn ms_since_boot);
  ~DeviceTable();  // Requires StopThreads().

  // `selector` below: "/dev/ublkb0", or the volume's URI.  Links are not followed: that may wait
  // for a disk, which may be one of ours.
  // `if_needed`: one that is mapped already will do, if it is of that kind and access.  `wanted`:
  // if it is false the asker has left, and nothing stays; empty: he never does.
  using WantedFn = std::function<bool()>;
  absl::StatusOr<DeviceReport> Map(const MapRequest& request, bool if_needed,
                                   const WantedFn& wanted);
  // `force`: even if it is in use, whose IOs then fail.
  absl::Status Unmap(const std::string& selector, std::uint32_t timeout_ms, bool force);
  // Takes the device away and makes it again, with the facts that the server has now.
  absl::StatusOr<DeviceReport> Remap(const std::string& selector, std::uint32_t timeout_ms,
                                     bool force);
  // The size that the server has now.
  absl::StatusOr<DeviceReport> Refresh(const std::string& selector, std::uint32_t timeout_ms);
  // The loss policy: -1, or after how long without the server IOs fail; from now on, and for the
  // next process.
  absl::StatusOr<DeviceReport> SetFailAfter(const std::string& selector, std::int64_t fail_after_ms,
                                            std::uint32_t timeout_ms);
  // What is outstanding, the oldest first.
  absl::StatusOr<std::vector<ibnbd_io_info>> ListIos(const std::string& selector,
                                                     std::uint32_t timeout_ms);
  absl::StatusOr<DeviceReport> Show(const std::string& selector);
  std::vector<DeviceReport> List();

  // `selector`: a device as above, or a session: its name, or its server.
  absl::StatusOr<SessionReport> ShowSession(const std::string& selector);
  // `change` is written down if it succeeds.
  using ChangeFn = std::function<absl::Status(SessionTable&, const SessionKey&)>;
  absl::StatusOr<SessionReport> ChangeSession(const std::string& selector, const ChangeFn& change);
  std::vector<SessionReport> ListSessions();

  // Takes over what another process left, which was alive at `last_ms` (0: not known), in the
  // background, for as long as it takes.  Once, first.
  void Restore(const TableRecords& records, std::int64_t last_ms);
  // Looks at the servers' sizes from time to time, and every second at what the next process will
  // want to know; then calls `alive`.
  void StartRefreshing(std::function<void()> alive);
  void StopThreads();
  // The process is about to end, and maps are under way: their volumes are closed, so that nothing
  // in the kernel waits for us.  False: something still does after `timeout_ms`.
  bool EndMaps(std::int64_t timeout_ms) { return starting_.End(timeout_ms); }

 private:
  struct Slot {
    DeviceRecord record;
    bool busy = false;     // A call, or the take-over, works on it; `volume` is its own.
    bool gone = false;     // Unmapped; those who waited for it find this.
    bool untried = false;  // Of a former process, and nobody has tried to take it over yet.
    std::string problem;
    std::unique_ptr<MappedVolume> volume;
  };
  using SlotPtr = std::shared_ptr<Slot>;
  static SessionKey KeyOf(const Slot& slot);
  static bool HasSession(const Slot& slot);

  absl::StatusOr<SlotPtr> Find(const std::string& selector) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<SessionKey> FindSession(const std::string& selector);
  SessionReport ReportOfSession(const SessionKey& key);
  absl::StatusOr<SlotPtr> Claim(const std::string& selector, std::uint32_t timeout_ms);
  absl::StatusOr<SlotPtr> ClaimReadable(const std::string& selector, std::uint32_t timeout_ms);
  void Unclaim(const SlotPtr& slot);
  absl::Status WaitForTakeOvers(const MapRequest& request);
  absl::StatusOr<SlotPtr> Reserve(const MapRequest& request, bool if_needed);
  absl::Status UnmapUnwanted(const SlotPtr& slot);
  absl::Status Start(const SlotPtr& slot, bool adopt);
  void WriteName(const Slot& slot);
  absl::Status MayBeRemapped(const Slot& slot);
  absl::Status TakeAway(Slot& slot, std::uint32_t timeout_ms, bool force);
  absl::StatusOr<DeviceReport> MapInto(const SlotPtr& slot, const WantedFn& wanted);
  void Drop(const SlotPtr& slot);
  DeviceReport ReportOf(const Slot& slot) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WriteDown(const SlotPtr& slot, int index, const ibnbd_device_info& volume);
  [[nodiscard]] std::optional<ibnbd_device_info> PastOf(const Slot& slot) const;
  static void SetPast(Slot& slot, const VolumePast& past);
  bool NotePast(Slot& slot) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NotePasts();
  absl::Status Save();
  void SaveOrLog();
  DeviceMark MarkOf(const Slot& slot) const;
  absl::StatusOr<bool> IsLeft(const Slot& slot) const;
  void RemoveUnknown(const std::vector<SlotPtr>& known);
  bool SharesDevice(const Slot& slot) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsContested(const Slot& slot) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeOver(const SlotPtr& slot);
  absl::Status TryTakeOver(const SlotPtr& slot);
  void EndProcess(const SlotPtr& slot);
  void RefreshAll();
  bool SleepFor(absl::Duration time);  // False: the threads are to end.

  DeviceLoops& loops_;
  SessionTable& sessions_;
  const DeviceNames names_;
  const SaveFn save_;
  const ClockFn ms_since_boot_;
  StartingVolumes starting_;
  // What the next process wants to know is written down.  Restore(), then one thread.
  bool noted_ = true;
  absl::Mutex save_mutex_;  // Before mutex_.
  absl::Mutex mutex_;
  std::vector<SlotPtr> slots_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ibnbd::client
