// SPDX-License-Identifier: Apache-2.0
// See ublk_control.h.
#include "ibnbd-client/devices/ublk_control.h"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

constexpr const char* kControlPath = "/dev/ublk-control";
// Of commands that change a few fields in the kernel.
constexpr std::int64_t kShortMs = 5000;
// For the last user of a device that was deleted to close it; then its number is free.
constexpr std::int64_t kLastUserMs = 2000;

std::uint64_t AddressOf(const void* object) { return reinterpret_cast<std::uintptr_t>(object); }

ublksrv_ctrl_cmd CommandFor(std::uint32_t id) {
  ublksrv_ctrl_cmd command{};
  command.dev_id = id;
  command.queue_id = 0xffff;  // None.
  return command;
}

// Not in the sense of GetInfo(), which finds a deleted device until its last user has closed it.
bool IsDeleted(std::uint32_t id) {
  const std::filesystem::path all = "/sys/class/ublk-char";
  std::error_code error;
  return std::filesystem::exists(all, error) &&
         !std::filesystem::exists(all / absl::StrCat("ublkc", id), error) && !error;
}

absl::Status Refused(int error, const char* what, std::uint32_t id) {
  if (error == -ETIME) {
    return absl::DeadlineExceededError(absl::StrCat(what, " ublk", id, ": no answer in time"));
  }
  return ErrnoStatus(error, absl::StrCat(what, " ublk", id));
}

}  // namespace

absl::StatusOr<std::unique_ptr<UblkControl>> UblkControl::Open() {
  UniqueFd fd(::open(kControlPath, O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno != ENOENT && errno != ENXIO) return ErrnoStatus(errno, kControlPath);
    return absl::NotFoundError(absl::StrCat(
        kControlPath,
        " is not there: load the module (modprobe ublk_drv; Linux 6.0 or later), or use --as nbd"));
  }
  std::unique_ptr<UblkControl> control(new UblkControl(std::move(fd)));
  std::uint64_t features = 0;
  const int result = control->RunWith(kUblkGetFeatures, CommandFor(0xffffffff), &features);
  if (result == 0) control->features_ = features | kUblkFlagIoctlEncode;
  if (result == -EPERM || result == -EACCES) return ErrnoStatus(result, kControlPath);
  return control;  // Others: a kernel before 6.5, which cannot be asked.
}

// A ring per command: they are few, and one that is given up goes with its ring.
int UblkControl::Run(std::uint32_t op, const ublksrv_ctrl_cmd& command,
                     std::int64_t timeout_ms) const {
  io_uring ring;
  io_uring_params params{};
  params.flags = IORING_SETUP_SQE128;
  if (const int error = io_uring_queue_init_params(4, &ring, &params); error < 0) return error;
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  std::memset(sqe, 0, 2 * sizeof(*sqe));
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->fd = fd_.get();
  sqe->cmd_op = op;
  std::memcpy(sqe->cmd, &command, sizeof(command));
  int result = io_uring_submit(&ring);
  if (result > 0) {
    __kernel_timespec timeout{.tv_sec = timeout_ms / 1000,
                              .tv_nsec = timeout_ms % 1000 * 1'000'000};
    io_uring_cqe* cqe = nullptr;
    do {
      result = io_uring_wait_cqe_timeout(&ring, &cqe, &timeout);
    } while (result == -EINTR);
    if (result == 0) result = cqe->res;
  }
  io_uring_queue_exit(&ring);
  return result;
}

// A command that is given up may still run, in a worker of the kernel that waits for a lock, and
// use its memory whenever it comes to it: then the memory is the kernel's for good, a few bytes of
// it.
template <typename T>
int UblkControl::RunWith(std::uint32_t op, ublksrv_ctrl_cmd command, T* object) const {
  auto shared = std::make_unique<T>(*object);
  command.addr = AddressOf(shared.get());
  command.len = sizeof(T);
  const int result = Run(op, command, kShortMs);
  if (result == -ETIME) {
    (void)shared.release();
  } else {
    *object = *shared;
  }
  return result;
}

std::uint32_t UblkControl::Op(unsigned plain) const {
  return ioctl_encoded() ? UblkControlOp(plain) : plain;
}

absl::Status UblkControl::AddDevice(ublksrv_ctrl_dev_info* info) {
  const int result = RunWith(Op(UBLK_CMD_ADD_DEV), CommandFor(info->dev_id), info);
  if (result == -EEXIST) {
    return absl::AlreadyExistsError(
        absl::StrCat("/dev/ublkb", info->dev_id, " is there already; leave the number away"));
  }
  // It may be there yet; a daemon's is then removed by the next one, as nobody wrote it down.
  if (result == -ETIME) return absl::DeadlineExceededError("add a ublk device: no answer in time");
  return result == 0 ? absl::OkStatus() : ErrnoStatus(result, "add a ublk device");
}

absl::Status UblkControl::SetParams(std::uint32_t id, ublk_params params) {
  params.len = sizeof(params);
  const int result = RunWith(Op(UBLK_CMD_SET_PARAMS), CommandFor(id), &params);
  return result == 0 ? absl::OkStatus() : Refused(result, "set parameters of", id);
}

absl::StatusOr<ublk_params> UblkControl::GetParams(std::uint32_t id) {
  ublk_params params{};
  params.len = sizeof(params);
  const bool encoded = (features_ & kUblkFlagIoctlEncode) != 0;
  const int result =
      RunWith(encoded ? kUblkGetParams : UBLK_CMD_GET_PARAMS, CommandFor(id), &params);
  if (result != 0) return Refused(result, "ask for parameters of", id);
  return params;
}

absl::StatusOr<ublksrv_ctrl_dev_info> UblkControl::GetInfo(std::uint32_t id) {
  ublksrv_ctrl_dev_info info{};
  const bool encoded = (features_ & kUblkFlagIoctlEncode) != 0;
  const int result =
      RunWith(encoded ? kUblkGetDeviceInfo : UBLK_CMD_GET_DEV_INFO, CommandFor(id), &info);
  if (result == -ENODEV) return absl::NotFoundError(absl::StrCat("there is no ublk", id));
  if (result != 0) return Refused(result, "ask for", id);
  return info;
}

absl::Status UblkControl::StartDevice(std::uint32_t id, std::int64_t timeout_ms) {
  ublksrv_ctrl_cmd command = CommandFor(id);
  command.data[0] = static_cast<std::uint64_t>(::getpid());
  const int result = Run(Op(UBLK_CMD_START_DEV), command, timeout_ms);
  return result == 0 ? absl::OkStatus() : Refused(result, "start", id);
}

absl::Status UblkControl::StartRecovery(std::uint32_t id) {
  const int result = Run(Op(UBLK_CMD_START_USER_RECOVERY), CommandFor(id), kShortMs);
  return result == 0 ? absl::OkStatus() : Refused(result, "take over", id);
}

absl::Status UblkControl::EndRecovery(std::uint32_t id, std::int64_t timeout_ms) {
  ublksrv_ctrl_cmd command = CommandFor(id);
  command.data[0] = static_cast<std::uint64_t>(::getpid());
  const int result = Run(Op(UBLK_CMD_END_USER_RECOVERY), command, timeout_ms);
  return result == 0 ? absl::OkStatus() : Refused(result, "go on with", id);
}

absl::Status UblkControl::UpdateSize(std::uint32_t id, std::uint64_t size_bytes) {
  if ((features_ & kUblkFlagUpdateSize) == 0) {
    return absl::UnimplementedError(absl::StrCat(
        "resize ublk", id,
        ": this kernel cannot (Linux 6.16 can); 'ibnbd-client remap' adopts the new size"));
  }
  ublksrv_ctrl_cmd command = CommandFor(id);
  command.data[0] = size_bytes / 512;
  const int result = Run(kUblkUpdateSize, command, kShortMs);
  return result == 0 ? absl::OkStatus() : Refused(result, "resize", id);
}

absl::Status UblkControl::StopDevice(std::uint32_t id, std::int64_t timeout_ms) {
  const int result = Run(Op(UBLK_CMD_STOP_DEV), CommandFor(id), timeout_ms);
  return result == 0 || result == -ENODEV ? absl::OkStatus() : Refused(result, "stop", id);
}

absl::Status UblkControl::DeleteDevice(std::uint32_t id, std::int64_t timeout_ms) {
  const std::int64_t wait_ms = std::min(timeout_ms, kLastUserMs);
  int result = Run(Op(UBLK_CMD_DEL_DEV), CommandFor(id), wait_ms);
  if (result == -ETIME && !IsDeleted(id)) {  // It waits for other commands.
    result = Run(Op(UBLK_CMD_DEL_DEV), CommandFor(id), timeout_ms - wait_ms);
  }
  if (result == -ETIME && IsDeleted(id)) {
    LOG_INFO("ublk", id, " is deleted; its number is free when its last user closes it");
    return absl::OkStatus();
  }
  return result == 0 || result == -ENODEV ? absl::OkStatus() : Refused(result, "delete", id);
}

}  // namespace ibnbd::client
