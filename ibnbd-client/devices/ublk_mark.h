// SPDX-License-Identifier: Apache-2.0
// The mark of a ublk device: `ublksrv_flags`, 64 bits that the driver keeps for whoever added the
// device.  The upper half is the owner's, the lower one the volume's.  Devices of daemons before
// this had the whole owner, and no volume: they are known by that.
#pragma once

#include <cstdint>

#include "ibnbd-client/devices/kernel_device.h"

namespace ibnbd::client {

inline std::uint64_t UblkFlagsOf(const DeviceMark& mark) {
  if (mark.owner == 0 || mark.volume == 0) return mark.owner;
  return (mark.owner >> 32 << 32) | ((mark.volume ^ mark.volume >> 32) & 0xffffffff);
}

inline bool UblkFlagsAre(std::uint64_t flags, const DeviceMark& mark) {
  if (flags == mark.owner) return true;  // Of an unknown volume.
  if (mark.owner == 0) return false;
  return mark.volume == 0 ? flags >> 32 == mark.owner >> 32 : flags == UblkFlagsOf(mark);
}

}  // namespace ibnbd::client
