// SPDX-License-Identifier: Apache-2.0
// One volume, from the server to the block device: session, open device, kernel device, made in
// this order and taken down in the opposite one, so that nothing half-made is left when a step
// fails.  One thread at a time, one that may wait.
#pragma once

#include <ibnbd/ibnbd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "ibnbd-client/devices/kernel_device.h"
#include "ibnbd-client/mapping/session_table.h"

namespace ibnbd::client {

enum class DeviceKind { kUblk, kNbd };
const char* NameOf(DeviceKind kind);             // "ublk", "nbd"
std::string NodeOf(DeviceKind kind, int index);  // "/dev/ublkb0", "/dev/nbd0"

struct MapRequest;
// What marks the device of a request, whose volume_id is known, in the kernel.
DeviceMark MarkOf(std::uint64_t owner, const MapRequest& request);

struct MapRequest {
  Uri uri;                   // With an export.
  std::string session_name;  // Of the session that it belongs to; "": that of the table.
  SessionWishes wishes;      // Of that session, until it has been told.
  DeviceKind kind = DeviceKind::kUblk;
  ibnbd_access access = IBNBD_READ_WRITE;
  std::int64_t fail_after_ms = -1;  // Loss policy; -1: IOs are held for ever.
  std::uint32_t queue_depth = 128;
  int index = -1;               // The N wanted.
  bool survives_us = false;     // See KernelDeviceOptions.
  std::uint64_t volume_id = 0;  // The one that it must be; 0: any.
  // In which nobody else may have written since (ibnbd_device_info); 0: it does not matter.
  std::uint16_t writer_epoch = 0;
  std::uint32_t timeout_ms = 30'000;
};

class MappedVolume {
 public:
  struct Options {
    bool adopt = false;  // Device request.index is there, left by another process.
    // What the volume was there: it is taken over at once, whether the server is there or not.
    // Without, when the server has answered.
    std::optional<ibnbd_device_info> was = std::nullopt;
    std::function<void()> was_refused = nullptr;  // It cannot have been that.
    StartingVolumes* starting = nullptr;          // See KernelDeviceOptions.
    // Called when it is known which device of which volume it is, before anybody can use it.
    std::function<absl::Status(int index, const ibnbd_device_info& volume)> before_use = nullptr;
  };
  // `loops` and `sessions` outlive it.
  static absl::StatusOr<std::unique_ptr<MappedVolume>> Map(DeviceLoops& loops,
                                                           SessionTable& sessions,
                                                           const MapRequest& request,
                                                           const Options& options);
  ~MappedVolume();  // Requires: Unmap() succeeded, or there was never a device.

  [[nodiscard]] const MapRequest& request() const { return request_; }
  [[nodiscard]] std::string node() const { return kernel_device_->node(); }
  [[nodiscard]] int index() const { return kernel_device_->index(); }
  [[nodiscard]] ibnbd_session* session() const { return session_; }
  // Fails if the session is so busy with itself that it does not answer; its IOs may well go on.
  [[nodiscard]] absl::StatusOr<ibnbd_device_info> Describe() const;
  [[nodiscard]] std::uint64_t volume_id() const { return volume_id_; }
  // The size that the block device has.
  [[nodiscard]] std::uint64_t device_size() const { return device_size_; }

  // Whether the kernel still gives us the block device's IOs; makes it so again.  See KernelDevice.
  [[nodiscard]] bool IsConnected() const { return kernel_device_->IsConnected(); }
  absl::Status Reconnect() { return kernel_device_->Reconnect(); }
  // Asks the server for the volume's size and passes it on to the block device.
  absl::Status Refresh(std::uint32_t timeout_ms);
  absl::Status SetFailAfter(std::int64_t fail_after_ms);
  absl::StatusOr<std::vector<ibnbd_io_info>> ListIos(std::uint32_t timeout_ms) const;
  // Returns within `timeout_ms` plus a little, whatever the server does: IOs that it has not
  // answered by then fail.  On failure call it again; nothing else may be done with the volume.
  absl::Status Unmap(std::uint32_t timeout_ms);

 private:
  MappedVolume(DeviceLoops& loops, SessionTable& sessions, const MapRequest& request)
      : loops_(loops), sessions_(sessions), request_(request) {}
  absl::Status Open(const Options& options);
  absl::Status OpenDevice(const Options& options);
  absl::Status StartKernelDevice(const Options& options);
  void CloseDevice();

  DeviceLoops& loops_;
  SessionTable& sessions_;
  const MapRequest request_;
  ibnbd_session* session_ = nullptr;
  SessionTable::Told told_;
  ibnbd_device* device_ = nullptr;
  bool device_closed_ = false;
  std::uint64_t volume_id_ = 0;
  std::uint64_t device_size_ = 0;
  std::unique_ptr<KernelDevice> kernel_device_;
};

}  // namespace ibnbd::client
