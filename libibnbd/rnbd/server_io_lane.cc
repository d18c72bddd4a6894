// SPDX-License-Identifier: Apache-2.0
// The device table of a lane; IOs are in server_io_lane_datapath.cc.
#include "rnbd/server_io_lane.h"

#include <utility>

#include "base/check.h"

namespace ibnbd::rnbd {

void IoLane::Install(std::uint32_t device_id, const LaneDevice& device) {
  if (device_id >= slots_.size()) slots_.resize(device_id + 1);
  Slot& slot = slots_[device_id];
  if (slot.device.queue == nullptr) slot.sync_errors_told = 0;
  slot.device = device;
}

void IoLane::Remove(std::uint32_t device_id, absl::AnyInvocable<void()> idle) {
  CHECK_LT(device_id, slots_.size());
  Slot& slot = slots_[device_id];
  // Of the queue nothing is kept but what executing IOs know: they hold no pointer of ours.
  slot.device.queue = nullptr;
  if (slot.executing_count == 0) return idle();
  slot.idle = std::move(idle);
}

}  // namespace ibnbd::rnbd
