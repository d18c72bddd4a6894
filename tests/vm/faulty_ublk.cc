// SPDX-License-Identifier: Apache-2.0
// Preloaded into a daemon: when the file $IBNBD_FAULTY_UBLK is there, the next command that ends a
// take-over of a ublk device goes to a device that there is not, and the file is removed.
#include <dlfcn.h>
#include <liburing.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "ibnbd-client/devices/ublk_abi.h"

extern "C" int io_uring_submit(io_uring* ring) {
  static const auto real =
      reinterpret_cast<int (*)(io_uring*)>(::dlsym(RTLD_NEXT, "io_uring_submit"));
  static const char* const file = std::getenv("IBNBD_FAULTY_UBLK");
  // Control commands are the first of their rings.
  const bool one = (ring->flags & IORING_SETUP_SQE128) != 0 && ring->sq.sqe_tail == 1;
  io_uring_sqe* sqe = one ? &ring->sq.sqes[0] : nullptr;
  const bool ends_take_over =
      sqe != nullptr && sqe->opcode == IORING_OP_URING_CMD &&
      sqe->cmd_op == ibnbd::client::UblkControlOp(UBLK_CMD_END_USER_RECOVERY);
  if (ends_take_over && file != nullptr && ::unlink(file) == 0) {
    const std::uint32_t nobody = 0xfffff;
    std::memcpy(sqe->cmd + offsetof(ublksrv_ctrl_cmd, dev_id), &nobody, sizeof(nobody));
  }
  return real(ring);
}
