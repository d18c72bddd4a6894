// SPDX-License-Identifier: Apache-2.0
// Whether the server's disk answers, asked before the kernel is: what waits for the kernel's read
// cannot be killed.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "ibnbd-client/devices/device_loops.h"
#include "ibnbd-client/devices/kernel_device.h"

namespace ibnbd::client {

// Reads the volume's first block.  DeadlineExceeded after `timeout_ms`, and then the volume is
// closed.  What the disk answers does not matter.
absl::Status ReadFirstBlock(DeviceLoops& loops, const OpenVolume& volume, std::int64_t timeout_ms);

}  // namespace ibnbd::client
