// SPDX-License-Identifier: Apache-2.0
// Begins to take a ublk device over, as a daemon does, and is killed before it is done (decision
// 0009): ibnbd-half-taker ID QUEUES, with the commands of so many queues.
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "ibnbd-client/devices/ublk_control.h"
#include "ibnbd-client/devices/ublk_io_command.h"

using ibnbd::client::UblkControl;

namespace {

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "ibnbd-half-taker: %s\n", what);
  std::exit(1);
}

void FetchQueue(io_uring& ring, int device, const ublksrv_ctrl_dev_info& info,
                std::uint16_t queue) {
  static char buffer[1];
  for (std::uint16_t tag = 0; tag < info.queue_depth; ++tag) {
    ublksrv_io_cmd command{};
    command.q_id = queue;
    command.tag = tag;
    command.addr = reinterpret_cast<std::uintptr_t>(buffer);
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    const std::uint32_t op = ibnbd::client::UblkIoOp(UBLK_IO_FETCH_REQ, true);
    ibnbd::client::PrepareUblkIoCommand(sqe, device, op, command);
    io_uring_cqe* cqe = nullptr;
    if (io_uring_submit(&ring) != 1 || io_uring_peek_cqe(&ring, &cqe) == 0) Fail("fetch");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) Fail("ID and QUEUES are wanted");
  const auto id = static_cast<std::uint32_t>(std::atoi(argv[1]));
  const auto control = UblkControl::Open();
  if (!control.ok()) Fail("no ublk");
  const auto info = (*control)->GetInfo(id);
  if (!info.ok()) Fail("no such device");
  while (true) {  // Its process is being buried.
    const absl::Status status = (*control)->StartRecovery(id);
    if (status.ok()) break;
    if (!absl::IsUnavailable(status)) Fail("it cannot be taken over");
  }
  char path[32];
  std::snprintf(path, sizeof(path), "/dev/ublkc%u", id);
  const int device = ::open(path, O_RDWR);
  if (device < 0) Fail(path);
  if (::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, device, UBLKSRV_CMD_BUF_OFFSET) == MAP_FAILED) {
    Fail("map");
  }
  io_uring ring;
  if (io_uring_queue_init(8, &ring, 0) < 0) Fail("io_uring");
  for (int queue = 0; queue < std::atoi(argv[2]); ++queue) {
    FetchQueue(ring, device, *info, static_cast<std::uint16_t>(queue));
  }
  ::raise(SIGKILL);
}
