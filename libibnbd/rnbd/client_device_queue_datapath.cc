// SPDX-License-Identifier: Apache-2.0
// The life of an IO on its lane: checked, cut into parts, issued, settled when its parts are back.
// Nothing here allocates, locks or logs.  What control tells the queue is in
// client_device_queue.cc.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/canary.h"
#include "base/mark.h"
#include "rnbd/client_device_queue.h"

namespace ibnbd::rnbd {
namespace {

bool ChangesData(IoOp op) { return op != IoOp::kRead && op != IoOp::kFlush; }

proto::IoOp WireOp(IoOp op) {
  switch (op) {
    case IoOp::kRead:
      return proto::IoOp::kRead;
    case IoOp::kWrite:
      return proto::IoOp::kWrite;
    case IoOp::kFlush:
      return proto::IoOp::kFlush;
    case IoOp::kDiscard:
      return proto::IoOp::kDiscard;
    case IoOp::kWriteZeroes:
      return proto::IoOp::kWriteZeroes;
    case IoOp::kSecureErase:
      return proto::IoOp::kSecureErase;
  }
  return proto::IoOp::kRead;
}

// Of an IO as counted by Progress::issued.
std::uint64_t TotalOf(const Io& io) { return io.op == IoOp::kFlush ? 1 : io.length; }

bool IsLoss(int error) {
  return error == -ECONNABORTED || error == -ENOTCONN || error == rtrs::kServerNotOpen;
}

}  // namespace

int DeviceQueueImpl::Submit(Io& io) {
  if (closing_.load(std::memory_order_relaxed)) [[unlikely]] {
    return -ESHUTDOWN;
  }
  const int error = Check(io);
  if (error != 0) [[unlikely]] {
    return error;
  }
  BeginNew(io);
  // Not the reactor's time, which is that of its last turn: the thread may have slept since.
  progress(io).submitted_ns = lane_.port().reactor().clock().NowNs();
  ios_.PushBack(io);
  if (next_ == nullptr) next_ = &io;
  ++stats_.submitted;
  ++stats_.outstanding;
  outstanding_.store(stats_.outstanding, std::memory_order_release);
  if (state_ == State::kOpen) [[likely]] {
    Issue();
  } else if (state_ == State::kHeld) {
    ++stats_.held;
  } else {
    lane_.port().RequestTurnEnd(context_);  // Completes there.
  }
  return 0;
}

int DeviceQueueImpl::Check(const Io& io) const {
  if (io.preflush && io.op != IoOp::kWrite) return -EINVAL;
  if (io.fua && io.op != IoOp::kWrite && io.op != IoOp::kWriteZeroes) return -EINVAL;
  if (io.no_unmap && io.op != IoOp::kWriteZeroes) return -EINVAL;
  switch (io.op) {
    case IoOp::kFlush:
      return io.length == 0 && io.data.empty() ? 0 : -EINVAL;
    case IoOp::kRead:
    case IoOp::kWrite:
      if (io.data.size() != io.length) return -EINVAL;
      break;
    case IoOp::kDiscard:
    case IoOp::kWriteZeroes:
    case IoOp::kSecureErase:
      if (!io.data.empty()) return -EINVAL;
      break;
    default:
      return -EINVAL;
  }
  const int error = CheckRange(io);
  if (error != 0) return error;
  if (info_.read_only && ChangesData(io.op)) return -EPERM;
  return PartSizeMax(io) == 0 ? -EOPNOTSUPP : 0;
}

int DeviceQueueImpl::CheckRange(const Io& io) const {
  const std::uint64_t mask = info_.logical_block_size - 1;
  if (io.length == 0 || ((io.offset | io.length) & mask) != 0) return -EINVAL;
  const std::uint64_t size = size_bytes_.load(std::memory_order_relaxed);
  if (io.offset > size || io.length > size - io.offset) return -EINVAL;
  return 0;
}

// 0: not supported.
std::uint64_t DeviceQueueImpl::PartSizeMax(const Io& io) const {
  switch (io.op) {
    case IoOp::kRead:
    case IoOp::kWrite:
      return info_.io_size_max;
    case IoOp::kDiscard:
      return info_.discard_bytes_max;
    case IoOp::kWriteZeroes:
      return info_.write_zeroes_bytes_max;
    case IoOp::kSecureErase:
      return info_.secure_erase ? info_.discard_bytes_max : 0;
    case IoOp::kFlush:
      return 1;
  }
  return 0;
}

// The flag orders one part only; an IO of several needs the flush before all of them.
bool DeviceQueueImpl::NeedsPreflush(const Io& io) const {
  return io.preflush && info_.write_cache &&
         !(opened_.preflush_flag && io.length <= PartSizeMax(io));
}

bool DeviceQueueImpl::NeedsPostflush(const Io& io) const {
  return io.fua && info_.write_cache && !info_.fua;
}

// Its success says that what completed before is on the medium.
bool DeviceQueueImpl::IsBarrier(const Io& io) const {
  return info_.write_cache && (io.op == IoOp::kFlush || io.preflush);
}

void DeviceQueueImpl::BeginNew(Io& io) const {
  progress(io).spans_loss = loss_to_report_ && IsBarrier(io);
  Begin(io);
}

void DeviceQueueImpl::Begin(Io& io) const {
  Io::Progress& state = progress(io);
  Io::Progress begun;
  begun.submitted_ns = state.submitted_ns;
  begun.spans_loss = state.spans_loss;
  state = begun;
  // One that will fail flushes and writes nothing.
  state.phase = state.spans_loss || NeedsPreflush(io) ? kPreflush : kData;
}

bool DeviceQueueImpl::WantsPart(Io& io) const {
  const Io::Progress& state = progress(io);
  if (state.error != 0 || state.lost) return false;
  if (state.phase == kData) return state.issued < TotalOf(io);
  return state.parts_out == 0;
}

void DeviceQueueImpl::Issue() {
  while (next_ != nullptr) {
    if (!WantsPart(*next_)) {
      next_ = ios_.Next(*next_);
      continue;
    }
    if (parts_.exhausted()) return;
    IssuePart(*next_);
  }
}

void DeviceQueueImpl::IssuePart(Io& io) {
  const SlotRef ref = parts_.Claim();
  Part& part = parts_[ref.index];
  part.queue = this;
  part.io = &io;
  part.index = ref.index;
  part.generation = opened_.generation;
  part.flushes = false;
  part.io_message = proto::Io{};
  part.io_message.device_id = proto::le32(opened_.device_id);
  if (progress(io).phase == kData && io.op != IoOp::kFlush) {
    FillData(part, io);
  } else {
    FillFlush(part);
    if (progress(io).phase == kData) progress(io).issued = 1;
  }
  part.message = proto::AsBytes(part.io_message);
  if (part.flushes) part.covered = ledger_.ledger->WrittenSum();
  ++progress(io).parts_out;
  lane_.Submit(part);
}

void DeviceQueueImpl::FillData(Part& part, Io& io) {
  Io::Progress& state = progress(io);
  const std::uint64_t size = std::min(io.length - state.issued, PartSizeMax(io));
  std::uint32_t flags = proto::kIoSync;
  if (io.fua && info_.fua) flags |= proto::kIoFua;
  if (io.preflush && info_.write_cache && state.phase == kData && !NeedsPreflush(io)) {
    flags |= proto::kIoPreflush;
    part.flushes = true;
  }
  if (io.no_unmap) flags |= proto::kIoNoUnmap;
  part.io_message.sector = proto::le64((io.offset + state.issued) / proto::kSectorSize);
  part.io_message.rw = proto::le32(static_cast<std::uint32_t>(WireOp(io.op)) | flags);
  part.io_message.bi_size = proto::le32(static_cast<std::uint32_t>(size));
  part.is_read = io.op == IoOp::kRead;
  part.data = io.data.empty() ? std::span<std::byte>{} : io.data.subspan(state.issued, size);
  part.keys = io.keys;
  state.issued += size;
}

void DeviceQueueImpl::FillFlush(Part& part) {
  part.flushes = true;
  part.io_message.sector = proto::le64(proto::kFlushSector);
  part.io_message.rw = proto::le32(static_cast<std::uint32_t>(proto::IoOp::kFlush) |
                                   proto::kIoSync | proto::kIoFua | proto::kIoPreflush);
  part.is_read = true;
  part.data = {};
}

void DeviceQueueImpl::OnPartDone(Part& part, int error) {
  Io& io = *part.io;
  const std::uint32_t generation = part.generation;
  Io::Progress& state = progress(io);
  --state.parts_out;
  if (error != 0) [[unlikely]] {
    if (IsLoss(error)) {
      state.lost = true;
      NoteLoss(generation, error);
    } else if (state.error == 0) {
      state.error = error;
    }
  } else if (part.flushes) {
    ledger_.ledger->OnFlushed(ledger_.lane, part.covered);
  }
  parts_.Release(part.index);
  if (state.parts_out == 0) Settle(io);
  if (state_ == State::kOpen) Issue();
}

// The first part that does not come back tells us before control does.
void DeviceQueueImpl::NoteLoss(std::uint32_t generation, int error) {
  if (state_ != State::kOpen || generation != opened_.generation) return;
  state_ = State::kHeld;
  if (error == rtrs::kServerNotOpen) on_not_open_(generation);
}

// All parts that were out have come back.
void DeviceQueueImpl::Settle(Io& io) {
  Io::Progress& state = progress(io);
  if (state.error != 0) return Complete(io, state.error);
  if (state.lost) {
    SIM_MARK("client: io lost");
    if (IBNBD_CANARY(2)) return Complete(io, -EIO);  // What a lost path costs shows.
    ++stats_.reissued;
    Begin(io);
    if (EndError() != 0) return Complete(io, EndError());
    return Rewind();
  }
  if (state.phase == kPreflush) {
    if (state.spans_loss) return ReportLoss(io);
    state.phase = kData;
    Rewind();
  } else if (state.phase == kData && state.issued == TotalOf(io)) {
    if (!NeedsPostflush(io)) return Complete(io, 0);
    state.phase = kPostflush;
    Rewind();
  } else if (state.phase == kPostflush) {
    return Complete(io, 0);
  }
  if (EndError() != 0) Complete(io, EndError());
}

// Once, as fsync(2) does; to all that were submitted before the first report.
void DeviceQueueImpl::ReportLoss(Io& io) {
  SIM_MARK("client: lost volatile data reported");
  loss_to_report_ = false;
  ledger_.ledger->OnLossReported(ledger_.lane, opened_.loss);
  Complete(io, -EIO);
}

void DeviceQueueImpl::Complete(Io& io, int error) {
  if (error == 0 && ChangesData(io.op) && !io.fua && info_.write_cache) {
    ledger_.ledger->OnVolatileWrite(ledger_.lane);
  }
  if (next_ == &io) next_ = ios_.Next(io);
  io.Unlink();
  --stats_.outstanding;
  ++stats_.completed;
  if (error != 0) ++stats_.errors;
  io.OnIoDone(error);
  // Only now: whoever reads 0 may take the memory of the IO away.
  outstanding_.store(stats_.outstanding, std::memory_order_release);
}

int DeviceQueueImpl::EndError() const {
  if (state_ == State::kFailing) return -ETIMEDOUT;
  return state_ == State::kCancelled ? -ECANCELED : 0;
}

}  // namespace ibnbd::rnbd
