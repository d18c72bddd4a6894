// SPDX-License-Identifier: Apache-2.0
// What <linux/ublk_cmd.h> says since the kernels that Debian 12 has headers of: numbers of the
// kernel's user-space interface, each with the release it came with.
#pragma once

#include <linux/ublk_cmd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace ibnbd::client {

// Commands as ioctl numbers, Linux 6.4.  The plain ones may be switched off since.
inline constexpr std::uint64_t kUblkFlagIoctlEncode = 1ull << 6;

inline constexpr std::uint32_t UblkControlOp(unsigned plain) {
  return static_cast<std::uint32_t>(_IOWR('u', plain, ublksrv_ctrl_cmd));
}
inline constexpr std::uint32_t UblkIoOp(unsigned plain, bool ioctl_encoded) {
  return ioctl_encoded ? static_cast<std::uint32_t>(_IOWR('u', plain, ublksrv_io_cmd)) : plain;
}
// These two only read.
inline constexpr std::uint32_t kUblkGetDeviceInfo =
    static_cast<std::uint32_t>(_IOR('u', UBLK_CMD_GET_DEV_INFO, ublksrv_ctrl_cmd));
inline constexpr std::uint32_t kUblkGetParams =
    static_cast<std::uint32_t>(_IOR('u', UBLK_CMD_GET_PARAMS, ublksrv_ctrl_cmd));
// Linux 6.5.
inline constexpr std::uint32_t kUblkGetFeatures =
    static_cast<std::uint32_t>(_IOR('u', 0x13, ublksrv_ctrl_cmd));
// Linux 6.16: data[0] is the new size in sectors.
inline constexpr std::uint64_t kUblkFlagUpdateSize = 1ull << 10;
inline constexpr std::uint32_t kUblkUpdateSize =
    static_cast<std::uint32_t>(_IOWR('u', 0x15, ublksrv_ctrl_cmd));

}  // namespace ibnbd::client
