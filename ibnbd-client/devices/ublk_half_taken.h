// SPDX-License-Identifier: Apache-2.0
// What a process leaves that is killed while it takes a ublk device over (decision 0009).
#pragma once

#include "absl/status/status.h"
#include "ibnbd-client/devices/ublk_abi.h"

namespace ibnbd::client {

// Before UBLK_CMD_START_USER_RECOVERY, of a device that is quiesced.  A queue that lacks a process
// gets one, which ends at once: then all queues have one that is dead, and the device may be taken
// over as one whose process was killed.  In the ordinary case, where none lacks one, nothing
// happens.  Linux before 6.16 would refuse for ever, or crash, as soon as it looks at the process
// that a queue does not have.
absl::Status GiveProcessToHalfTakenQueues(const ublksrv_ctrl_dev_info& info, bool ioctl_encoded);

}  // namespace ibnbd::client
