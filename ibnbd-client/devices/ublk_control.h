// SPDX-License-Identifier: Apache-2.0
// Commands to /dev/ublk-control: adds, starts, stops and deletes ublk devices.  Each command has a
// deadline of its own, after which it is given up; the kernel ends it when it can.  Any thread but
// a loop's; one instance belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "ibnbd-client/devices/ublk_abi.h"

namespace ibnbd::client {

class UblkControl {
 public:
  // NotFound, saying how to load the module.
  static absl::StatusOr<std::unique_ptr<UblkControl>> Open();

  [[nodiscard]] std::uint64_t features() const { return features_; }  // UBLK_F_...
  [[nodiscard]] bool ioctl_encoded() const { return (features_ & kUblkFlagIoctlEncode) != 0; }

  // `info` says what is wanted, dev_id -1: any; is changed to what there is now.
  absl::Status AddDevice(ublksrv_ctrl_dev_info* info);
  absl::Status SetParams(std::uint32_t id, ublk_params params);
  absl::StatusOr<ublk_params> GetParams(std::uint32_t id);
  absl::StatusOr<ublksrv_ctrl_dev_info> GetInfo(std::uint32_t id);
  // Returns when all queues have fetched and the block device is there.
  absl::Status StartDevice(std::uint32_t id, std::int64_t timeout_ms);
  absl::Status StartRecovery(std::uint32_t id);
  absl::Status EndRecovery(std::uint32_t id, std::int64_t timeout_ms);
  absl::Status UpdateSize(std::uint32_t id, std::uint64_t size_bytes);
  // The block device goes away; IOs that are under way must be answered meanwhile.  OK, too, if
  // there is no such device.
  absl::Status StopDevice(std::uint32_t id, std::int64_t timeout_ms);
  // Requires that this process does not have /dev/ublkcN open.  OK, too, if there is no such
  // device, and if somebody still has the stopped block device open: a file system that is mounted,
  // for one. Then its number is not free yet, and the kernel goes on by itself.
  absl::Status DeleteDevice(std::uint32_t id, std::int64_t timeout_ms);

 private:
  explicit UblkControl(UniqueFd fd) : fd_(std::move(fd)) {}
  // 0 or a negative errno; -ETIME: given up.
  int Run(std::uint32_t op, const ublksrv_ctrl_cmd& command, std::int64_t timeout_ms) const;
  // With an object that the kernel reads, and may write.
  template <typename T>
  int RunWith(std::uint32_t op, ublksrv_ctrl_cmd command, T* object) const;
  [[nodiscard]] std::uint32_t Op(unsigned plain) const;

  UniqueFd fd_;
  std::uint64_t features_ = 0;
};

}  // namespace ibnbd::client
