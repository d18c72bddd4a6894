// SPDX-License-Identifier: Apache-2.0
// A request's way through a ublk queue; see ublk_queue.h.  No allocation, no lock, no log line.
#include <liburing.h>

#include <cerrno>
#include <utility>

#include "ibnbd-client/devices/ublk_io_command.h"
#include "ibnbd-client/devices/ublk_queue.h"

namespace ibnbd::client {
namespace {

// The library's operation; false: one that we do not announce.
bool Translate(const ublksrv_io_desc& request, ibnbd_io* io) {
  io->flags = 0;
  const bool fua = (request.op_flags & UBLK_IO_F_FUA) != 0;
  switch (ublksrv_get_op(&request)) {
    case UBLK_IO_OP_READ:
      io->op = IBNBD_OP_READ;
      return true;
    case UBLK_IO_OP_WRITE:
      io->op = IBNBD_OP_WRITE;
      if (fua) io->flags |= IBNBD_IO_FUA;
      return true;
    case UBLK_IO_OP_FLUSH:
      io->op = IBNBD_OP_FLUSH;
      return true;
    case UBLK_IO_OP_DISCARD:
      io->op = IBNBD_OP_DISCARD;
      return true;
    case UBLK_IO_OP_WRITE_ZEROES:
      io->op = IBNBD_OP_WRITE_ZEROES;
      if (fua) io->flags |= IBNBD_IO_FUA;
      if ((request.op_flags & UBLK_IO_F_NOUNMAP) != 0) io->flags |= IBNBD_IO_NO_UNMAP;
      return true;
    default:
      return false;
  }
}

}  // namespace

void UblkQueue::SendCommand(Tag& tag, std::uint32_t op, int result) {
  ublksrv_io_cmd command{};
  command.q_id = options_.index;
  command.tag = tag.number;
  command.result = result;
  command.addr =
      reinterpret_cast<std::uintptr_t>(memory_) + std::uintptr_t{tag.number} * options_.io_size_max;
  io_uring_sqe* sqe = loop_.GetSqe();
  PrepareUblkIoCommand(sqe, device_fd_, op, command);
  loop_.Bind(sqe, tag);
  ++tags_fetching_;
}

void UblkQueue::OnCommand(Tag& tag, int result) {
  --tags_fetching_;
  if (abandoned_) return;
  if (result != UBLK_IO_RES_OK) {  // UBLK_IO_RES_ABORT: the device stops.
    int none = 0;
    if (result != UBLK_IO_RES_ABORT) first_error_.compare_exchange_strong(none, result);
    EndIfDone();
    return;
  }
  const ublksrv_io_desc& request = descriptors_[tag.number];
  ibnbd_io& io = tag.io;
  if (!Translate(request, &io)) {
    Answer(tag, -EOPNOTSUPP);
    return;
  }
  const bool flush = io.op == IBNBD_OP_FLUSH;
  const bool has_data = io.op == IBNBD_OP_READ || io.op == IBNBD_OP_WRITE;
  io.offset = flush ? 0 : request.start_sector * 512;
  io.length = flush ? 0 : std::uint64_t{request.nr_sectors} * 512;
  io.data = has_data ? memory_ + std::size_t{tag.number} * options_.io_size_max : nullptr;
  io.buffer = has_data ? buffer_ : nullptr;
  io.done = &UblkQueue::OnIoDone;
  io.opaque = &tag;
  if (first_parked_ != nullptr) {  // Not past those that wait.
    tag.next_parked = nullptr;
    last_parked_ = last_parked_->next_parked = &tag;
    return;
  }
  SubmitIo(tag);
}

void UblkQueue::SubmitIo(Tag& tag) {
  ++ios_outstanding_;
  const int result = ibnbd_submit(options_.queue, options_.device, &tag.io);
  if (result == 0) {
    loop_.NoteSubmitted();
    return;
  }
  --ios_outstanding_;
  if (result != -EAGAIN) {
    // A device that was closed fails IOs as a disk that is gone does.
    Answer(tag, result == -ENODEV ? -EIO : result);
    return;
  }
  tag.next_parked = nullptr;
  if (first_parked_ == nullptr) {
    first_parked_ = &tag;
  } else {
    last_parked_->next_parked = &tag;
  }
  last_parked_ = &tag;
  loop_.RequestRetry(*this);
}

void UblkQueue::OnTurnEnd() {
  Tag* tag = std::exchange(first_parked_, nullptr);
  while (tag != nullptr) {
    Tag* next = std::exchange(tag->next_parked, nullptr);
    SubmitIo(*tag);
    tag = next;
  }
}

void UblkQueue::OnIoDone(ibnbd_io* io, int result) {
  Tag& tag = *static_cast<Tag*>(io->opaque);
  UblkQueue& queue = *tag.queue;
  --queue.ios_outstanding_;
  if (queue.abandoned_) return;
  queue.Answer(tag, result);
}

// The kernel wants the byte count of what has data, and takes our errno for the block layer's.
void UblkQueue::Answer(Tag& tag, int result) {
  const bool has_data = tag.io.op == IBNBD_OP_READ || tag.io.op == IBNBD_OP_WRITE;
  if (result == 0 && has_data) result = static_cast<int>(tag.io.length);
  if (result == -ECANCELED) result = -EIO;  // Fenced off.
  SendCommand(tag, commit_op_, result);
}

}  // namespace ibnbd::client
