// SPDX-License-Identifier: Apache-2.0
// See ublk_half_taken.h.  To the driver a thread is a process.
#include "ibnbd-client/devices/ublk_half_taken.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "ibnbd-client/devices/ublk_io_command.h"

namespace ibnbd::client {
namespace {

constexpr absl::Duration kOpenTime = absl::Seconds(10);

// The place of the data that nobody will see: the queues stand still, or nearly (from Linux 6.15
// on a request may come), and then there must be nothing to be written to.
struct Nowhere {
  explicit Nowhere(std::size_t wanted)
      : size(wanted),
        address(::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Nowhere() {
    if (address != MAP_FAILED) ::munmap(address, size);
  }
  Nowhere(const Nowhere&) = delete;
  Nowhere& operator=(const Nowhere&) = delete;
  const std::size_t size;
  void* const address;
};

struct Commands {
  io_uring& ring;
  const int device_fd;
  const std::uint32_t op;
  const void* const data;
};

void PrepareFetch(io_uring_sqe* sqe, const Commands& commands, std::uint16_t queue,
                  std::uint16_t tag) {
  ublksrv_io_cmd command{};
  command.q_id = queue;
  command.tag = tag;
  command.addr = reinterpret_cast<std::uintptr_t>(commands.data);
  PrepareUblkIoCommand(sqe, commands.device_fd, commands.op, command);
}

// Whether the driver took it: what it refuses it refuses at once, what it takes it keeps.
absl::StatusOr<bool> Fetch(const Commands& commands, std::uint16_t queue, std::uint16_t tag) {
  PrepareFetch(io_uring_get_sqe(&commands.ring), commands, queue, tag);
  if (const int error = io_uring_submit(&commands.ring); error < 0) {
    return ErrnoStatus(error, "io_uring");
  }
  io_uring_cqe* cqe = nullptr;
  if (io_uring_peek_cqe(&commands.ring, &cqe) != 0) return true;
  io_uring_cqe_seen(&commands.ring, cqe);
  return false;
}

// A process that is dying has it open for a while.
absl::StatusOr<UniqueFd> OpenDevice(const std::string& path) {
  const absl::Time deadline = absl::Now() + kOpenTime;
  while (true) {
    UniqueFd device(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (device.valid()) return device;
    if (errno != EBUSY || absl::Now() >= deadline) return ErrnoStatus(errno, path);
    absl::SleepFor(absl::Milliseconds(2));
  }
}

absl::Status FetchAll(const ublksrv_ctrl_dev_info& info, std::uint32_t op, io_uring& ring,
                      const Nowhere& nowhere) {
  const std::string path = absl::StrCat("/dev/ublkc", info.dev_id);
  ASSIGN_OR_RETURN(const UniqueFd device, OpenDevice(path));
  const Commands commands{ring, device.get(), op, nowhere.address};
  const auto last = static_cast<std::uint16_t>(info.queue_depth - 1);
  for (std::uint16_t queue = 0; queue < info.nr_hw_queues; ++queue) {
    // One that lacks a process lacks the last command, if any: they are fetched in order.
    ASSIGN_OR_RETURN(const bool lacks, Fetch(commands, queue, last));
    if (!lacks) continue;
    for (std::uint16_t tag = 0; tag < last; ++tag) {
      RETURN_IF_ERROR(Fetch(commands, queue, tag).status());
    }
    LOG_INFO(path, ": queue ", queue, " had no process");
  }
  return absl::OkStatus();
}

absl::Status RunOnce(const ublksrv_ctrl_dev_info& info, bool ioctl_encoded) {
  io_uring ring;
  if (const int error = io_uring_queue_init(64, &ring, 0); error < 0) {
    return ErrnoStatus(error, "io_uring");
  }
  const std::uint32_t op = UblkIoOp(UBLK_IO_FETCH_REQ, ioctl_encoded);
  const Nowhere nowhere(std::max<std::size_t>(info.max_io_buf_bytes, 4096));
  const absl::Status status = nowhere.address == MAP_FAILED ? ErrnoStatus(ENOMEM, "mmap")
                                                            : FetchAll(info, op, ring, nowhere);
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
