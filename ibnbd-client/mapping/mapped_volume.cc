// SPDX-License-Identifier: Apache-2.0
// See mapped_volume.h.
#include "ibnbd-client/mapping/mapped_volume.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/fnv.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

// For the kernel to let go of a device none of whose IOs is under way.
constexpr std::int64_t kStopMs = 10'000;

// For how long a block device that was taken over gives us what it had given to another process:
// ublk does so at once, nbd when its request time-out is over.
std::uint32_t ResendMs(DeviceKind kind, const std::string& node) {
  if (kind == DeviceKind::kUblk) return 2000;
  std::uint32_t timeout_ms = 0;
  std::ifstream(
      absl::StrCat("/sys/block/", node.substr(node.rfind('/') + 1), "/queue/io_timeout")) >>
      timeout_ms;
  return (timeout_ms != 0 ? timeout_ms : 30'000) + 1000;
}

}  // namespace

const char* NameOf(DeviceKind kind) { return kind == DeviceKind::kUblk ? "ublk" : "nbd"; }

std::string NodeOf(DeviceKind kind, int index) {
  return absl::StrCat(kind == DeviceKind::kUblk ? "/dev/ublkb" : "/dev/nbd", index);
}

// Of what is written down with the device and does not change as long as that is there.  A kernel
// server's volume has no number: then from its name.
DeviceMark MarkOf(std::uint64_t owner, const MapRequest& request) {
  if (request.volume_id != 0) return {owner, request.volume_id};
  const std::string name = absl::StrCat(request.uri.host, "/", request.uri.export_name);
  return {owner, Fnv1a(std::as_bytes(std::span(name)))};
}

absl::StatusOr<std::unique_ptr<MappedVolume>> MappedVolume::Map(DeviceLoops& loops,
                                                                SessionTable& sessions,
                                                                const MapRequest& request,
                                                                const Options& options) {
  std::unique_ptr<MappedVolume> volume(new MappedVolume(loops, sessions, request));
  if (absl::Status status = volume->Open(options); !status.ok()) {
    const absl::Status annotated = Annotate(status, absl::StrCat("map ", request.uri.ToString()));
    volume->CloseDevice();
    if (IsLeftBehind(status)) return LeftBehind(annotated);
    if (volume->session_ != nullptr) {
      sessions.Abandon(KeyOf(request.uri, request.session_name), volume->told_);
    }
    return annotated;
  }
  return volume;
}

MappedVolume::~MappedVolume() { CHECK(kernel_device_ == nullptr); }

absl::Status MappedVolume::Open(const Options& how) {
  const SessionHaste haste = how.was     ? SessionHaste::kNone
                             : how.adopt ? SessionHaste::kRetry
                                         : SessionHaste::kFirstTry;
  ASSIGN_OR_RETURN(session_,
                   sessions_.Acquire(KeyOf(request_.uri, request_.session_name), request_.wishes,
                                     request_.timeout_ms, haste, &told_));
  RETURN_IF_ERROR(OpenDevice(how));
  RETURN_IF_ERROR(StartKernelDevice(how));
  if (!how.was) return absl::OkStatus();
  const int error = ibnbd_device_settle(device_, ResendMs(request_.kind, kernel_device_->node()));
  if (error != 0) LOG_ERROR(ApiStatus(error).message());  // It is closed, or the session is stuck.
  return absl::OkStatus();
}

absl::Status MappedVolume::OpenDevice(const Options& how) {
  ibnbd_device_options options = IBNBD_DEVICE_OPTIONS_INIT;
  options.access = request_.access;
  options.open_timeout_ms = request_.timeout_ms;
  options.fail_after_ms = request_.fail_after_ms;
  options.writer_epoch = request_.writer_epoch;
  if (!how.was) {
    const char* name = request_.uri.export_name.c_str();
    const int error = ibnbd_device_open(session_, name, &options, &device_);
    return error == 0 ? absl::OkStatus() : ApiStatus(error);
  }
  ibnbd_device_info was = *how.was;
  // It may have grown, and nobody came to write it down.
  was.size = std::max(was.size, SizeOfBlockDevice(NodeOf(request_.kind, request_.index)));
  const int error = ibnbd_device_resume(session_, &was, &options, &device_);
  if (error == -EINVAL && how.was_refused) how.was_refused();
  return error == 0 ? absl::OkStatus() : ApiStatus(error);
}

absl::Status MappedVolume::StartKernelDevice(const Options& how) {
  ASSIGN_OR_RETURN(const ibnbd_device_info info, Describe());
  OpenVolume volume{session_, device_, info};
  if (request_.volume_id != 0 && volume.info.volume_id != request_.volume_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the export is another volume now: its id is ", VolumeIdText(volume.info.volume_id),
        ", that of the device is ", VolumeIdText(request_.volume_id)));
  }
  if (request_.access == IBNBD_READ_ONLY) volume.info.flags |= IBNBD_DEVICE_READ_ONLY;
  KernelDeviceOptions options;
  options.queue_depth = request_.queue_depth;
  options.index = request_.index;
  options.survives_us = request_.survives_us;
  MapRequest marked = request_;
  if (!how.adopt) marked.volume_id = info.volume_id;  // As it will be written down.
  options.mark = MarkOf(sessions_.client_id(), marked);
  options.start_timeout_ms = request_.timeout_ms;
  options.starting = how.starting;
  if (how.before_use) {
    options.before_use = [&how, &volume](int index) { return how.before_use(index, volume.info); };
  }
  const bool ublk = request_.kind == DeviceKind::kUblk;
  const auto start = how.adopt ? (ublk ? AdoptUblkDevice : AdoptNbdDevice)
                               : (ublk ? StartUblkDevice : StartNbdDevice);
  ASSIGN_OR_RETURN(kernel_device_, start(loops_, volume, options));
  volume_id_ = volume.info.volume_id;
  // One that was left may be smaller than the volume is now.
  device_size_ = how.adopt ? SizeOfBlockDevice(kernel_device_->node()) : volume.info.size;
  return absl::OkStatus();
}

absl::StatusOr<ibnbd_device_info> MappedVolume::Describe() const {
  ibnbd_device_info info{};
  info.struct_size = sizeof(info);
  if (const int error = ibnbd_device_get_info(device_, &info)) return ApiStatus(error);
  return info;
}

absl::Status MappedVolume::Refresh(std::uint32_t timeout_ms) {
  if (const int error = ibnbd_device_refresh(device_, timeout_ms)) {
    return Annotate(ApiStatus(error), absl::StrCat("resize ", node()));
  }
  ASSIGN_OR_RETURN(const ibnbd_device_info info, Describe());
  const std::uint64_t size = info.size;
  if (size == device_size_) return absl::OkStatus();
  RETURN_IF_ERROR(kernel_device_->Resize(size));
  LOG_INFO(node(), " has ", size, " bytes now, it had ", device_size_);
  device_size_ = size;
  return absl::OkStatus();
}

absl::Status MappedVolume::Unmap(std::uint32_t timeout_ms) {
  if (!device_closed_) {
    device_closed_ = true;
    if (const int error = ibnbd_device_close(device_, timeout_ms); error != 0) {
      LOG_WARN("unmap ", node(), ": ", ApiStatus(error).message());
    }
  }
  RETURN_IF_ERROR(kernel_device_->Stop(kStopMs));
  kernel_device_.reset();
  CloseDevice();
  sessions_.Release(KeyOf(request_.uri, request_.session_name));
  session_ = nullptr;
  return absl::OkStatus();
}

absl::Status MappedVolume::SetFailAfter(std::int64_t fail_after_ms) {
  const int error = ibnbd_device_set_fail_after(device_, fail_after_ms);
  return error == 0 ? absl::OkStatus() : ApiStatus(error);
}

absl::StatusOr<std::vector<ibnbd_io_info>> MappedVolume::ListIos(std::uint32_t timeout_ms) const {
  std::vector<ibnbd_io_info> ios;
  const int error = ibnbd_device_list_ios(
      device_, timeout_ms,
      [](void* opaque, const struct ibnbd_io_info* info) {
        static_cast<std::vector<ibnbd_io_info>*>(opaque)->push_back(*info);
        return 0;
      },
      &ios);
  if (error != 0) return ApiStatus(error);
  return ios;
}

void MappedVolume::CloseDevice() {
  // What was outstanding came back from the kernel device's end, or was never there.
  if (device_ != nullptr && !device_closed_) ibnbd_device_close(device_, 1000);
  device_ = nullptr;
}

}  // namespace ibnbd::client
