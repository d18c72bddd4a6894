// SPDX-License-Identifier: Apache-2.0
// /dev/ublkbN: adding it or taking it over, starting its queues on the loops, stopping it.  See
// kernel_device.h.
#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/devices/first_read.h"
#include "ibnbd-client/devices/kernel_device.h"
#include "ibnbd-client/devices/ublk_control.h"
#include "ibnbd-client/devices/ublk_half_taken.h"
#include "ibnbd-client/devices/ublk_mark.h"
#include "ibnbd-client/devices/ublk_queue.h"

namespace ibnbd::client {
namespace {

// What a tag's buffer holds.  Larger requests are split by the block layer, which then has several
// in flight; depth x this is the memory of a queue.
constexpr std::uint32_t kIoSizeMax = 128 * 1024;
// Of what waits for other threads and for the block layer, not for the server.
constexpr std::int64_t kEndRecoveryMs = 30'000;
// How long the kernel may take to notice that a process is gone.
constexpr absl::Duration kQuiesceTime = absl::Seconds(10);
// For the kernel to take away a device none of whose IOs waits.
constexpr std::int64_t kRemoveMs = 5000;

std::uint8_t ShiftOf(std::uint32_t size) {
  return static_cast<std::uint8_t>(std::bit_width(std::max(size, 512u)) - 1);
}

ublk_params ParamsFor(const ibnbd_device_info& info, std::uint32_t io_size_max) {
  ublk_params params{};
  params.types = UBLK_PARAM_TYPE_BASIC;
  ublk_param_basic& basic = params.basic;
  const auto has = [&info](std::uint32_t flag) { return (info.flags & flag) != 0; };
  if (has(IBNBD_DEVICE_READ_ONLY)) basic.attrs |= UBLK_ATTR_READ_ONLY;
  if (has(IBNBD_DEVICE_WRITE_CACHE)) basic.attrs |= UBLK_ATTR_VOLATILE_CACHE;
  if (has(IBNBD_DEVICE_FUA)) basic.attrs |= UBLK_ATTR_FUA;
  basic.logical_bs_shift = ShiftOf(info.logical_block_size);
  basic.physical_bs_shift = std::max(ShiftOf(info.physical_block_size), basic.logical_bs_shift);
  basic.io_min_shift = basic.physical_bs_shift;
  basic.io_opt_shift = basic.physical_bs_shift;
  basic.max_sectors = io_size_max / 512;
  basic.dev_sectors = info.size / 512;
  if (!has(IBNBD_DEVICE_READ_ONLY) && (info.discard_max != 0 || info.write_zeroes_max != 0)) {
    params.types |= UBLK_PARAM_TYPE_DISCARD;
    ublk_param_discard& discard = params.discard;
    discard.discard_alignment = info.discard_alignment;
    discard.discard_granularity = std::max(info.discard_granularity, info.logical_block_size);
    discard.max_discard_sectors = info.discard_max / 512;
    discard.max_write_zeroes_sectors = info.write_zeroes_max / 512;
    discard.max_discard_segments = 1;
  }
  return params;
}

class UblkDevice final : public KernelDevice {
 public:
  UblkDevice(DeviceLoops& loops, const OpenVolume& volume, const DeviceMark& mark,
             std::unique_ptr<UblkControl> control)
      : loops_(loops), volume_(volume), mark_(mark), control_(std::move(control)) {}
  ~UblkDevice() override { CHECK(queues_.empty() || !started_ || left_); }

  absl::Status Add(const KernelDeviceOptions& options);
  absl::Status Adopt(int index);
  // Undoes what Add() or Adopt() began, which failed.  Returns why, and whether something is left.
  absl::Status GiveUp(const absl::Status& why);

  [[nodiscard]] std::string node() const override { return absl::StrCat("/dev/ublkb", id_); }
  [[nodiscard]] int index() const override { return static_cast<int>(id_); }
  absl::Status Resize(std::uint64_t size_bytes) override {
    return control_->UpdateSize(id_, size_bytes);
  }
  absl::Status Stop(std::int64_t timeout_ms) override;

 private:
  absl::Status CreateQueues(const ublksrv_ctrl_dev_info& info);
  absl::Status StartQueues();
  absl::Status AfterStart(const absl::Status& status) const;
  bool WaitForQueues(absl::Time deadline);
  absl::Status WaitUntilQuiesced() const;
  absl::Status StartRecovery();
  absl::Status Leave(const absl::Status& why);

  DeviceLoops& loops_;
  const OpenVolume volume_;
  const DeviceMark mark_;
  const std::unique_ptr<UblkControl> control_;
  std::uint32_t id_ = 0;
  bool added_ = false;
  bool started_ = false;  // The queues have commands with the kernel, or had.
  bool left_ = false;     // To the kernel, whose commands refer to the queues.
  UniqueFd char_device_;
  std::vector<std::unique_ptr<UblkQueue>> queues_;
};

absl::Status UblkDevice::Add(const KernelDeviceOptions& options) {
  ublksrv_ctrl_dev_info info{};
  info.dev_id = static_cast<std::uint32_t>(options.index);
  info.queue_depth = static_cast<std::uint16_t>(
      std::clamp<std::uint32_t>(options.queue_depth, 1, UBLK_MAX_QUEUE_DEPTH));
  info.nr_hw_queues = static_cast<std::uint16_t>(loops_.count());
  // Whole blocks, and no more than one message carries.
  const std::uint32_t block = std::max(volume_.info.logical_block_size, 4096u);
  info.max_io_buf_bytes =
      std::max(std::min(kIoSizeMax, volume_.info.io_size_max) / block * block, block);
  info.ublksrv_pid = ::getpid();
  info.ublksrv_flags = UblkFlagsOf(mark_);
  if (options.survives_us) info.flags |= UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
  info.flags |= control_->features() & kUblkFlagIoctlEncode;
  RETURN_IF_ERROR(control_->AddDevice(&info));
  added_ = true;
  id_ = info.dev_id;
  RETURN_IF_ERROR(control_->SetParams(id_, ParamsFor(volume_.info, info.max_io_buf_bytes)));
  if (options.before_use) RETURN_IF_ERROR(options.before_use(index()));
  RETURN_IF_ERROR(CreateQueues(info));
  RETURN_IF_ERROR(StartQueues());
  // Partition tables are read meanwhile.
  const absl::Status status = AfterStart(control_->StartDevice(id_, options.start_timeout_ms));
  if (!absl::IsDeadlineExceeded(status)) return status;
  return Annotate(status, "read the partition table; does the server's disk hang?");
}

absl::Status UblkDevice::Adopt(int index) {
  id_ = static_cast<std::uint32_t>(index);
  RETURN_IF_ERROR(WaitUntilQuiesced());
  ASSIGN_OR_RETURN(const ublk_params params, control_->GetParams(id_));
  if (params.basic.dev_sectors * 512 > volume_.info.size) {
    return absl::FailedPreconditionError(
        absl::StrCat("take over ", node(), ": it has ", params.basic.dev_sectors * 512,
                     " bytes, the volume only ", volume_.info.size));
  }
  ASSIGN_OR_RETURN(const ublksrv_ctrl_dev_info info, control_->GetInfo(id_));
  RETURN_IF_ERROR(CreateQueues(info));
  RETURN_IF_ERROR(GiveProcessToHalfTakenQueues(info, control_->ioctl_encoded()));
  // Whoever is killed from here to the last queue's commands leaves more such work: nothing slow.
  RETURN_IF_ERROR(StartRecovery());
  RETURN_IF_ERROR(StartQueues());
  return AfterStart(control_->EndRecovery(id_, kEndRecoveryMs));
}

// The kernel closes what a process had open a little after its end.
absl::Status UblkDevice::StartRecovery() {
  const absl::Time deadline = absl::Now() + kQuiesceTime;
  while (true) {
    const absl::Status status = control_->StartRecovery(id_);
    if (!absl::IsUnavailable(status) || absl::Now() >= deadline) return status;
    absl::SleepFor(absl::Milliseconds(2));
  }
}

absl::Status UblkDevice::WaitUntilQuiesced() const {
  const absl::Time deadline = absl::Now() + kQuiesceTime;
  while (true) {
    ASSIGN_OR_RETURN(const ublksrv_ctrl_dev_info info, control_->GetInfo(id_));
    if (!UblkFlagsAre(info.ublksrv_flags, mark_)) {
      return absl::FailedPreconditionError(
          absl::StrCat("take over ", node(), ": it is another volume's"));
    }
    if ((info.flags & UBLK_F_USER_RECOVERY) == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("take over ", node(), ": it is not one that waits for a new server"));
    }
    if (info.state == UBLK_S_DEV_QUIESCED) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::FailedPreconditionError(
          absl::StrCat("take over ", node(), ": process ", info.ublksrv_pid, " serves it"));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
}

absl::Status UblkDevice::CreateQueues(const ublksrv_ctrl_dev_info& info) {
  UblkQueueOptions options{};
  options.depth = info.queue_depth;
  options.io_size_max = info.max_io_buf_bytes;
  options.ioctl_encoded = control_->ioctl_encoded();
  options.session = volume_.session;
  options.device = volume_.device;
  std::vector<std::unique_ptr<UblkQueue>> queues;
  for (std::uint16_t i = 0; i < info.nr_hw_queues; ++i) {
    const std::uint32_t place = i % loops_.count();
    options.index = i;
    options.queue = ibnbd_session_queue(volume_.session, place);
    ASSIGN_OR_RETURN(auto queue, UblkQueue::Create(loops_.loop(place), options));
    queues.push_back(std::move(queue));
  }
  queues_ = std::move(queues);
  return absl::OkStatus();
}

absl::Status UblkDevice::StartQueues() {
  const std::string path = absl::StrCat("/dev/ublkc", id_);
  char_device_.Reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!char_device_.valid()) return ErrnoStatus(errno, path);
  for (const auto& queue : queues_) RETURN_IF_ERROR(queue->Attach(char_device_.get()));
  started_ = true;
  loops_.CallAll([this](std::uint32_t loop) {
    for (std::uint32_t i = loop; i < queues_.size(); i += loops_.count()) queues_[i]->Start();
  });
  return absl::OkStatus();
}

// If the kernel took no commands, that is the reason, not that it did not start.
absl::Status UblkDevice::AfterStart(const absl::Status& status) const {
  if (status.ok()) return status;
  for (const auto& queue : queues_) {
    if (const int error = queue->first_error(); error != 0) {
      return ErrnoStatus(error, absl::StrCat("fetch from ", node()));
    }
  }
  return status;
}

bool UblkDevice::WaitForQueues(absl::Time deadline) {
  return std::all_of(queues_.begin(), queues_.end(), [deadline](const auto& queue) {
    return queue->ended().WaitForNotificationWithDeadline(deadline);
  });
}

absl::Status UblkDevice::Stop(std::int64_t timeout_ms) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(timeout_ms);
  // For as long as we have it open, its number is not given again.
  if (!char_device_.valid()) return RemoveLeftUblkDevice(index(), mark_);
  RETURN_IF_ERROR(control_->StopDevice(id_, timeout_ms));
  if (!WaitForQueues(deadline)) {
    return absl::DeadlineExceededError(
        absl::StrCat("stop ", node(), ": the kernel has not given its requests back"));
  }
  queues_.clear();
  char_device_.Reset();
  const std::int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
  RETURN_IF_ERROR(control_->DeleteDevice(id_, std::max<std::int64_t>(left_ms, 100)));
  added_ = false;
  return absl::OkStatus();
}

absl::Status UblkDevice::GiveUp(const absl::Status& why) {
  if (!added_) {  // Not ours to delete: whoever finds out what is wrong may still take it over.
    if (!started_) return why;
    // IOs that are under way are answered by nobody now: the next process gets them again.
    loops_.CallAll([this](std::uint32_t loop) {
      for (std::uint32_t i = loop; i < queues_.size(); i += loops_.count()) queues_[i]->Abandon();
    });
    return Leave(why);
  }
  absl::Status ended;
  if (started_) {
    // The kernel may be starting it: then it reads, waits for the answer, and does nothing else
    // with the device.  A read of a closed volume fails.
    ibnbd_device_close(volume_.device, 0);
    ended = Stop(kRemoveMs);
  } else {  // Nothing of ours may refer to the device when it is deleted.
    queues_.clear();
    char_device_.Reset();
    ended = control_->DeleteDevice(id_, kRemoveMs);
  }
  if (ended.ok()) return why;
  LOG_ERROR(ended.message());
  // The queues stay on their loops and fail whatever comes, so that the kernel can end it some
  // time.
  return queues_.empty() ? why : Leave(why);
}

absl::Status UblkDevice::Leave(const absl::Status& why) {
  left_ = true;
  for (auto& queue : queues_) (void)queue.release();
  (void)char_device_.Take();
  return LeftBehind(why);
}

absl::StatusOr<std::unique_ptr<UblkDevice>> NewDevice(DeviceLoops& loops, const OpenVolume& volume,
                                                      const DeviceMark& mark) {
  ASSIGN_OR_RETURN(std::unique_ptr<UblkControl> control, UblkControl::Open());
  return std::make_unique<UblkDevice>(loops, volume, mark, std::move(control));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KernelDevice>> StartUblkDevice(DeviceLoops& loops,
                                                              const OpenVolume& volume,
                                                              const KernelDeviceOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<UblkDevice> device, NewDevice(loops, volume, options.mark));
  RETURN_IF_ERROR(ReadFirstBlock(loops, volume, options.start_timeout_ms));
  StartingVolumes none;
  StartingVolumes& starting = options.starting != nullptr ? *options.starting : none;
  RETURN_IF_ERROR(starting.Add(volume.device));
  absl::Status status = device->Add(options);
  if (status.ok() && starting.Keep(volume.device)) return device;
  if (status.ok()) status = absl::UnavailableError("this process is about to end");
  status = device->GiveUp(status);
  starting.Remove(volume.device);
  return status;
}

absl::StatusOr<std::unique_ptr<KernelDevice>> AdoptUblkDevice(DeviceLoops& loops,
                                                              const OpenVolume& volume,
                                                              const KernelDeviceOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<UblkDevice> device, NewDevice(loops, volume, options.mark));
  if (const absl::Status status = device->Adopt(options.index); !status.ok()) {
    return device->GiveUp(status);
  }
  return device;
}

}  // namespace ibnbd::client
