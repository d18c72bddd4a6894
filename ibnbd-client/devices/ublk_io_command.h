// SPDX-License-Identifier: Apache-2.0
// A command to a ublk device about one of its requests, as an entry of an io_uring.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <cstring>

#include "ibnbd-client/devices/ublk_abi.h"

namespace ibnbd::client {

// `device_fd` is /dev/ublkcN.  The user data is left as it was.
inline void PrepareUblkIoCommand(io_uring_sqe* sqe, int device_fd, std::uint32_t op,
                                 const ublksrv_io_cmd& command) {
  static_assert(sizeof(command) <= 16, "what an entry of 64 bytes has room for");
  io_uring_prep_rw(IORING_OP_URING_CMD, sqe, device_fd, nullptr, 0, 0);
  sqe->cmd_op = op;
  std::memcpy(sqe->cmd, &command, sizeof(command));
}

}  // namespace ibnbd::client
