// SPDX-License-Identifier: Apache-2.0
// A volume as a block device of this host's kernel: /dev/ublkbN or /dev/nbdN.  Made and taken away
// on threads that may wait (the daemon's workers), never on a loop; IOs run on the loops alone.
#pragma once

#include <ibnbd/ibnbd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ibnbd-client/devices/device_loops.h"
#include "ibnbd-client/devices/starting_volumes.h"

namespace ibnbd::client {

// Queue i of the session is polled by loop i.  Both outlive the device.
struct OpenVolume {
  ibnbd_session* session;
  ibnbd_device* device;
  ibnbd_device_info info;  // What it was when it was opened.
};

// Whose a device is, and of which volume.  The kernel keeps it with the device, so that whoever
// comes to it by its number, after a restart or late, knows whether it is still the same device.
struct DeviceMark {
  std::uint64_t owner = 0;   // A number that the daemon keeps over restarts; 0: nobody's.
  std::uint64_t volume = 0;  // One that tells the owner's volumes apart; 0: any of them.
};

struct KernelDeviceOptions {
  std::uint32_t queue_depth = 128;  // Per queue, 1..4096: kernel IOs at once.
  int index = -1;                   // The N wanted; -1: the kernel chooses.
  // The device outlives this process, for AdoptUblkDevice() or AdoptNbdDevice() of the next one:
  // IOs wait meanwhile.  Otherwise it ends with us, and IOs fail.
  bool survives_us = false;
  DeviceMark mark;
  // Of ublk: how long the first reads of a new device may take, and where it is noted meanwhile.
  std::int64_t start_timeout_ms = 30'000;
  StartingVolumes* starting = nullptr;
  // Called when N is known and before anybody can use the device: its place to be written down.
  // An error ends the device again.
  std::function<absl::Status(int index)> before_use;
};

class KernelDevice {
 public:
  virtual ~KernelDevice() = default;  // Requires: Stop() succeeded.

  [[nodiscard]] virtual std::string node() const = 0;  // "/dev/ublkb0"
  [[nodiscard]] virtual int index() const = 0;
  // The size the kernel is told.  Unimplemented: this kernel cannot; remap.
  virtual absl::Status Resize(std::uint64_t size_bytes) = 0;
  // Whether the kernel still gives us its IOs.  Never waits.
  [[nodiscard]] virtual bool IsConnected() const { return true; }
  // Makes it so again, when it is not.  FailedPrecondition: it is not our device any more.
  virtual absl::Status Reconnect() { return absl::OkStatus(); }
  // Takes the device from the kernel.  Requires that the volume was closed (ibnbd_device_close()),
  // so that every IO comes back, whatever the server does: then this takes milliseconds.  After
  // `timeout_ms`: DeadlineExceeded, saying what is left behind.  OK, too, if it is not our device
  // any more: then it is not touched.
  virtual absl::Status Stop(std::int64_t timeout_ms) = 0;
};

// Whether number N is taken: also by a device that was taken away and is still open somewhere.
bool UblkNumberIsTaken(int index);
// What the kernel says of a block device: its size in bytes; 0: there is none.
std::uint64_t SizeOfBlockDevice(const std::string& node);

// Of a start that failed: the kernel has not let go of the device, and uses the session's memory.
// The volume is closed, and its session must stay for as long as the process.
bool IsLeftBehind(const absl::Status& status);
absl::Status LeftBehind(absl::Status status);

// "ublk" needs Linux 6.0 and the module ublk_drv; "nbd" the module nbd.
absl::StatusOr<std::unique_ptr<KernelDevice>> StartUblkDevice(DeviceLoops& loops,
                                                              const OpenVolume& volume,
                                                              const KernelDeviceOptions& options);
absl::StatusOr<std::unique_ptr<KernelDevice>> StartNbdDevice(DeviceLoops& loops,
                                                             const OpenVolume& volume,
                                                             const KernelDeviceOptions& options);
// Takes over device `options.index`, whose process is gone.  FailedPrecondition: it is not what was
// left, and it was not touched.
absl::StatusOr<std::unique_ptr<KernelDevice>> AdoptUblkDevice(DeviceLoops& loops,
                                                              const OpenVolume& volume,
                                                              const KernelDeviceOptions& options);
absl::StatusOr<std::unique_ptr<KernelDevice>> AdoptNbdDevice(DeviceLoops& loops,
                                                             const OpenVolume& volume,
                                                             const KernelDeviceOptions& options);

// Whether device N is there, `mark`'s, and may be adopted.  False, too, for one whose process died
// before it was started: it is taken away.
absl::StatusOr<bool> UblkDeviceIsLeft(int index, const DeviceMark& mark);
absl::StatusOr<bool> NbdDeviceIsLeft(int index, const DeviceMark& mark);
// Takes away what a process of `owner` was making when it died: its devices but for `known`, which
// were written down.
void RemoveUnknownUblkDevices(std::uint64_t owner, std::span<const int> known);
void RemoveUnknownNbdDevices(std::uint64_t owner, std::span<const int> known);
// Takes device N away, which another process left, with the IOs that wait for it.  OK if it is not
// there, or is not `mark`'s: then it is not touched.
absl::Status RemoveLeftUblkDevice(int index, const DeviceMark& mark);
absl::Status RemoveLeftNbdDevice(int index, const DeviceMark& mark);

}  // namespace ibnbd::client
