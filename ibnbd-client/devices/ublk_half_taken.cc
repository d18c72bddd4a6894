// SPDX-License-Identifier: Apache-2.0
// See ublk_half_taken.h.  To the driver a thread is a process.
#include "ibnbd-client/devices/ublk_half_taken.h"

#include <fcntl.h>
#include <liburing.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace ibnbd::client {
namespace {

void PrepareFetch(io_uring_sqe* sqe, int device_fd, std::uint32_t op, std::uint16_t queue,
                  std::uint16_t tag) {
  static char nobody_reads_this[1];  // The queues stand still.
  ublksrv_io_cmd command{};
  command.q_id = queue;
  command.tag = tag;
  command.addr = reinterpret_cast<std::uintptr_t>(nobody_reads_this);
  io_uring_prep_rw(IORING_OP_URING_CMD, sqe, device_fd, nullptr, 0, 0);
  sqe->cmd_op = op;
  std::memcpy(sqe->cmd, &command, sizeof(command));
}

// Whether the driver took it: what it refuses it refuses at once, what it takes it keeps.
absl::StatusOr<bool> Fetch(io_uring& ring, int device_fd, std::uint32_t op, std::uint16_t queue,
                           std::uint16_t tag) {
  PrepareFetch(io_uring_get_sqe(&ring), device_fd, op, queue, tag);
  if (const int error = io_uring_submit(&ring); error < 0) return ErrnoStatus(error, "io_uring");
  io_uring_cqe* cqe = nullptr;
  if (io_uring_peek_cqe(&ring, &cqe) != 0) return true;
  io_uring_cqe_seen(&ring, cqe);
  return false;
}

absl::Status FetchAll(const ublksrv_ctrl_dev_info& info, std::uint32_t op, io_uring& ring) {
  const std::string path = absl::StrCat("/dev/ublkc", info.dev_id);
  const UniqueFd device(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!device.valid()) return ErrnoStatus(errno, path);
  for (std::uint16_t queue = 0; queue < info.nr_hw_queues; ++queue) {
    std::uint32_t taken = 0;
    for (std::uint16_t tag = 0; tag < info.queue_depth; ++tag) {
      ASSIGN_OR_RETURN(const bool took, Fetch(ring, device.get(), op, queue, tag));
      taken += took ? 1 : 0;
      // It has a process.  Of one that lacks it the last tag cannot have been fetched.
      if (!took && tag == 0) {
        ASSIGN_OR_RETURN(const bool lacks, Fetch(ring, device.get(), op, queue,
                                                 static_cast<std::uint16_t>(info.queue_depth - 1)));
        if (!lacks) break;
        ++taken;
      }
    }
    if (taken > 0) LOG_WARN(path, " was left half taken over: queue ", queue, " is mended");
  }
  return absl::OkStatus();
}

absl::Status RunOnce(const ublksrv_ctrl_dev_info& info, bool ioctl_encoded) {
  io_uring ring;
  if (const int error = io_uring_queue_init(64, &ring, 0); error < 0) {
    return ErrnoStatus(error, "io_uring");
  }
  const std::uint32_t op = ioctl_encoded ? UblkIoOp(UBLK_IO_FETCH_REQ) : UBLK_IO_FETCH_REQ;
  const absl::Status status = FetchAll(info, op, ring);
  io_uring_queue_exit(&ring);  // The driver gets its commands back.
  return status;
}

}  // namespace

absl::Status GiveProcessToHalfTakenQueues(const ublksrv_ctrl_dev_info& info, bool ioctl_encoded) {
  absl::Status status;
  std::thread process([&] { status = RunOnce(info, ioctl_encoded); });
  process.join();
  return status;
}

}  // namespace ibnbd::client
