// SPDX-License-Identifier: Apache-2.0
// A queue's beginning and end; see ublk_queue.h.  The middle is ublk_queue_datapath.cc.
#include "ibnbd-client/devices/ublk_queue.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"

namespace ibnbd::client {

absl::StatusOr<std::unique_ptr<UblkQueue>> UblkQueue::Create(bridge::EventLoop& loop,
                                                             const UblkQueueOptions& options) {
  std::unique_ptr<UblkQueue> queue(new UblkQueue(loop, options));
  RETURN_IF_ERROR(queue->AllocateBuffers());
  return queue;
}

UblkQueue::UblkQueue(bridge::EventLoop& loop, const UblkQueueOptions& options)
    : loop_(loop),
      options_(options),
      fetch_op_(UblkIoOp(UBLK_IO_FETCH_REQ, options.ioctl_encoded)),
      commit_op_(UblkIoOp(UBLK_IO_COMMIT_AND_FETCH_REQ, options.ioctl_encoded)),
      tags_(std::make_unique<Tag[]>(options.depth)) {
  for (std::uint16_t i = 0; i < options.depth; ++i) {
    tags_[i].queue = this;
    tags_[i].number = i;
  }
}

absl::Status UblkQueue::AllocateBuffers() {
  const std::size_t size = std::size_t{options_.depth} * options_.io_size_max;
  if (const int error = ibnbd_buffer_alloc(options_.session, size, &buffer_)) {
    return Annotate(ApiStatus(error), absl::StrCat("buffers of a ublk queue, ", size, " bytes"));
  }
  memory_ = static_cast<std::byte*>(ibnbd_buffer_data(buffer_));
  return absl::OkStatus();
}

absl::Status UblkQueue::Attach(int device_fd) {
  device_fd_ = device_fd;
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t wanted = options_.depth * sizeof(ublksrv_io_desc);
  descriptors_size_ = (wanted + page - 1) / page * page;
  const std::size_t offset =
      UBLKSRV_CMD_BUF_OFFSET + options_.index * UBLK_MAX_QUEUE_DEPTH * sizeof(ublksrv_io_desc);
  void* mapped = ::mmap(nullptr, descriptors_size_, PROT_READ, MAP_SHARED | MAP_POPULATE,
                        device_fd_, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) return ErrnoStatus(errno, "map a ublk queue");
  descriptors_ = static_cast<const ublksrv_io_desc*>(mapped);
  return absl::OkStatus();
}

UblkQueue::~UblkQueue() {
  CHECK(abandoned_ || (tags_fetching_ == 0 && ios_outstanding_ == 0));
  if (descriptors_ != nullptr) {
    ::munmap(const_cast<ublksrv_io_desc*>(descriptors_), descriptors_size_);
  }
  ibnbd_buffer_free(buffer_);
}

void UblkQueue::Start() {
  loop_.Add(*this);
  for (std::uint16_t i = 0; i < options_.depth; ++i) SendCommand(tags_[i], fetch_op_, 0);
}

void UblkQueue::Abandon() {
  abandoned_ = true;
  first_parked_ = nullptr;
  if (!left_) loop_.Remove(*this);
  left_ = true;
}

void UblkQueue::EndIfDone() {
  if (tags_fetching_ != 0 || ios_outstanding_ != 0 || first_parked_ != nullptr || left_) return;
  left_ = true;
  loop_.Remove(*this);
  ended_.Notify();
}

}  // namespace ibnbd::client
