// SPDX-License-Identifier: Apache-2.0
// One IO on the server: from its message to the backend and back.  The message is a copy that the
// client cannot change any more; every field of it is checked here before the backend sees it (B2).
#include <algorithm>

#include "base/canary.h"
#include "base/check.h"
#include "rnbd/server_io_lane.h"

namespace ibnbd::rnbd {

void IoLane::OnRequest(rtrs::ServerRequest& base) {
  IoRequest& request = static_cast<IoRequest&>(base);
  request.io_lane_ = this;
  if (request.told_ != nullptr) [[unlikely]] {
    request.OnAnswerRead();
  }
  proto::RnbdType type{};
  if (proto::DecodeType(request.message(), &type) != nullptr) return request.Complete(-EINVAL);
  if (type != proto::RnbdType::kIo) [[unlikely]] {
    if (control_ == nullptr) return request.Complete(-EINVAL);
    return control_->OnControlMessage(request, type, peer_);
  }
  proto::Io message;
  const proto::IoCarrier carrier{
      static_cast<std::uint32_t>(request.rtrs::ServerRequest::data().size()), request.is_read()};
  const char* reason = proto::DecodeIo(request.message(), carrier, &message);
  const int error = reason == nullptr ? StartIo(request, message) : -EINVAL;
  if (error <= 0) {
    if (error < 0) ReactorCounters::Add(counters_.errors, 1);
    request.Complete(error);
  }
}

// 1: it is with the backend.  Otherwise it is done, with 0 or a negative errno.
int IoLane::StartIo(IoRequest& request, const proto::Io& message) {
  const std::uint32_t device_id = message.device_id.get();
  if (device_id >= slots_.size()) return -ENOTCONN;
  Slot& slot = slots_[device_id];
  BackendQueue* queue = slot.device.queue;
  if (queue == nullptr) return -ENOTCONN;
  const int result = Prepare(request, message, slot.device);
  if (result <= 0) return result;
  if (!BeginSync(request, slot)) return -EIO;
  request.device_id_ = device_id;
  ++slot.executing_count;
  queue->Submit(request);  // May complete, and so end the request, before it returns.
  return 1;
}

// False: a write with PREFLUSH, which must not be begun, because of what came before it.
bool IoLane::BeginSync(IoRequest& request, Slot& slot) {
  const BackendIo& io = request;
  request.sync_ = IoRequest::Sync::kNone;
  const QueueErrors* errors = slot.device.errors.get();
  if (errors == nullptr) return true;
  if (io.op == BackendOp::kFlush || io.preflush) {
    // What another flush is told while both execute is true of this one, too.
    request.sync_ = IoRequest::Sync::kAll;
    request.sync_errors_ = std::max(slot.sync_errors_told, errors->told.value());
    return !io.preflush || EndSync(request, slot, 0) == 0;
  }
  if (io.fua || request.flush_after_) {
    request.sync_ = IoRequest::Sync::kItself;
    request.sync_errors_ = errors->device->count();
  }
  return true;
}

// What the IO has to say about what it made stable.  Only who asked for all that came before takes
// note: a FUA write that fails is repeated, and means nothing to who flushes.  A reader has nothing
// to lose, and is not the one who had to be told.
int IoLane::EndSync(IoRequest& request, Slot& slot, int error) {
  const std::uint64_t count = slot.device.errors->device->count();
  if (count == request.sync_errors_) return error;
  if (request.sync_ == IoRequest::Sync::kAll) {
    slot.sync_errors_told = std::max(slot.sync_errors_told, count);
    request.told_ = slot.device.errors;
    request.told_count_ = count;
    request.told_a_writer_ = !slot.device.read_only;
  }
  return error != 0 ? error : -EIO;
}

void IoRequest::OnAnswerRead() {
  told_->told.Raise(told_count_);
  if (told_a_writer_) told_->device->Tell(told_count_);
  told_.reset();
}

int IoLane::Prepare(IoRequest& request, const proto::Io& message, const LaneDevice& device) {
  const Geometry& geometry = device.geometry;
  BackendIo& io = request;
  io.fua = io.preflush = io.no_unmap = false;
  request.flush_after_ = false;
  if (message.op() == proto::IoOp::kFlush) {
    if (!geometry.write_cache) return 0;  // What has been answered is stable.
    if (IBNBD_CANARY(3)) return 0;        // Only then.
    io.op = BackendOp::kFlush;
    io.offset = 0;
    io.length = 0;
    io.data = {};
    return 1;
  }
  // DecodeIo() has seen to it that none of this overflows.
  io.offset = message.sector.get() * kSectorSize;
  io.length = message.bi_size.get();
  if (((io.offset | io.length) & (geometry.logical_block_size - 1)) != 0) return -EINVAL;
  if (io.length > geometry.size_bytes || io.offset > geometry.size_bytes - io.length)
    return -EINVAL;
  if (message.op() == proto::IoOp::kRead) {
    io.op = BackendOp::kRead;
    io.data = request.rtrs::ServerRequest::data();
    io.registered_buffer = request.rtrs::ServerRequest::registered_buffer();
    return 1;
  }
  return PrepareWrite(request, message, device);
}

int IoLane::PrepareWrite(IoRequest& request, const proto::Io& message, const LaneDevice& device) {
  if (device.read_only) return -EPERM;
  const Geometry& geometry = device.geometry;
  BackendIo& io = request;
  const std::uint32_t flags = message.flags();
  const bool fua = (flags & proto::kIoFua) != 0 && geometry.write_cache;
  io.fua = fua && geometry.fua;
  request.flush_after_ = fua && !geometry.fua;
  io.data = {};
  switch (message.op()) {
    case proto::IoOp::kWrite:
      io.op = BackendOp::kWrite;
      io.preflush = (flags & proto::kIoPreflush) != 0 && geometry.write_cache;
      io.data = request.rtrs::ServerRequest::data();
      io.registered_buffer = request.rtrs::ServerRequest::registered_buffer();
      return 1;
    case proto::IoOp::kDiscard:
      return PrepareRange(request, geometry.discard_bytes_max, BackendOp::kDiscard);
    case proto::IoOp::kWriteZeroes:
      io.no_unmap = (flags & proto::kIoNoUnmap) != 0;
      return PrepareRange(request, geometry.write_zeroes_bytes_max, BackendOp::kWriteZeroes);
    case proto::IoOp::kSecureErase:
      return PrepareRange(request, geometry.secure_erase_bytes_max, BackendOp::kSecureErase);
    case proto::IoOp::kRead:
    case proto::IoOp::kFlush:
      break;
  }
  return -EINVAL;
}

int IoLane::PrepareRange(IoRequest& request, std::uint32_t bytes_max, BackendOp op) {
  BackendIo& io = request;
  if (bytes_max == 0) return -EOPNOTSUPP;
  if (io.length > bytes_max) return -EINVAL;
  io.op = op;
  return 1;
}

void IoRequest::OnBackendDone(int error) { io_lane_->OnBackendDone(*this, error); }

void IoLane::OnBackendDone(IoRequest& request, int error) {
  Slot& slot = slots_[request.device_id_];
  if (request.flush_after_ && error == 0) [[unlikely]] {
    request.flush_after_ = false;
    // A device that is being closed has let its queue go from the table, not from its export: but
    // only IOs that hold it may use it, and this one has not kept it.
    if (slot.device.queue != nullptr) {
      BackendIo& io = request;
      io.op = BackendOp::kFlush;
      io.fua = io.preflush = io.no_unmap = false;
      io.offset = 0;
      io.length = 0;
      io.data = {};
      return slot.device.queue->Submit(request);
    }
    error = -ENOTCONN;
  }
  if (request.sync_ != IoRequest::Sync::kNone) error = EndSync(request, slot, error);
  Count(request, error);
  DCHECK_GT(slot.executing_count, 0u);
  const bool idle = --slot.executing_count == 0 && slot.idle;
  request.Complete(error);
  if (idle) [[unlikely]] {
    std::exchange(slot.idle, nullptr)();
  }
}

void IoLane::Count(const IoRequest& request, int error) {
  if (error != 0) ReactorCounters::Add(counters_.errors, 1);
  switch (request.op) {
    case BackendOp::kRead:
      ReactorCounters::Add(counters_.reads, 1);
      return ReactorCounters::Add(counters_.read_bytes, request.length);
    case BackendOp::kWrite:
      ReactorCounters::Add(counters_.writes, 1);
      return ReactorCounters::Add(counters_.write_bytes, request.length);
    case BackendOp::kFlush:
      return ReactorCounters::Add(counters_.flushes, 1);
    case BackendOp::kDiscard:
    case BackendOp::kSecureErase:
      return ReactorCounters::Add(counters_.discards, 1);
    case BackendOp::kWriteZeroes:
      return ReactorCounters::Add(counters_.zeroes, 1);
  }
}

}  // namespace ibnbd::rnbd
