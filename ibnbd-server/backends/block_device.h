// SPDX-License-Identifier: Apache-2.0
// What sysfs and the block ioctls say about a block device.  Control threads only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ibnbd {

struct BlockDeviceFacts {
  std::uint64_t size_bytes = 0;
  std::uint32_t logical_block_size = 512;
  std::uint32_t physical_block_size = 512;
  std::uint64_t discard_bytes_max = 0;
  std::uint32_t discard_granularity = 0;
  std::uint32_t discard_alignment = 0;
  bool read_only = false;
  // A name that stays the same over restarts and is another one for another device: wwid, dm uuid,
  // backing file of a loop device, with the partition; the device number where there is nothing
  // better.
  std::string identity;
};

absl::StatusOr<BlockDeviceFacts> ExamineBlockDevice(int fd, dev_t device);
absl::StatusOr<std::uint64_t> BlockDeviceSize(int fd);  // Bytes.

}  // namespace ibnbd
