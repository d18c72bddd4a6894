// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/fs.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "base/check.h"
#include "ibnbd-server/backends/file_queue.h"
#include "reactor/reactor.h"

namespace ibnbd {
namespace {

using rnbd::BackendIo;
using rnbd::BackendOp;

#ifndef FALLOC_FL_NO_HIDE_STALE
constexpr int FALLOC_FL_NO_HIDE_STALE = 0x04;
#endif
// BLOCK_URING_CMD_DISCARD of <linux/blkdev.h> since 6.12; Debian 12's headers are older.
constexpr std::uint32_t kUringCmdDiscard = _IO(0x12, 0);

// A worker of the kernel handles one piece; others get their turn in between.
constexpr std::uint32_t kRangePieceMax = 128u << 20;
// EAGAIN without progress; from the first retry on a worker thread waits instead of us.
constexpr std::uint8_t kRetriesMax = 32;
// A file that somebody truncates is noticed within this time, at the price of one statx of what the
// kernel knows; a remote file system is asked as often, if it answers.
constexpr std::int64_t kSizeCheckIntervalNs = 100 * kNsPerMs;
// What is executed at once of a remote volume: so many threads of the kernel's it takes if it
// hangs.
constexpr std::uint32_t kHangingMax = 64;

RangeUse UseOf(const BackendIo& io) {
  if (io.op == BackendOp::kDiscard) return RangeUse::kDiscard;
  return io.no_unmap ? RangeUse::kZeroAndKeep : RangeUse::kZeroAndUnmap;
}

bool IsRange(BackendOp op) { return op == BackendOp::kDiscard || op == BackendOp::kWriteZeroes; }

}  // namespace

class FileQueue::Op final : public IoRingOp, public ListHook {
 public:
  Op(FileQueue& queue, BackendIo& io) : io_(io), queue_(queue) {}
  void OnCqe(int result, std::uint32_t) override { queue_.OnResult(*this, result); }

  BackendIo& io_;
  std::uint32_t done_bytes_ = 0;
  std::uint32_t piece_bytes_ = 0;  // Of a range operation being executed.
  Step step_ = Step::kTransfer;
  RangeMethod method_ = RangeMethod::kNone;
  std::uint8_t retries_ = 0;

 private:
  FileQueue& queue_;
};

FileQueue::FileQueue(Volume& volume, Reactor& reactor, FileSizeLook::Ptr look)
    : volume_(volume),
      reactor_(reactor),
      ring_(*reactor.ring()),
      check_size_(!volume.is_block_device()),
      look_(std::move(look)) {
  static_assert(sizeof(Op) <= sizeof(BackendIo::Scratch));
  if (look_ != nullptr) ring_.ChangeWorkersMax(kHangingMax);
}

FileQueue::~FileQueue() {
  CHECK_EQ(outstanding_count_, 0u);
  if (look_ != nullptr) ring_.ChangeWorkersMax(-static_cast<int>(kHangingMax));
}

void FileQueue::Submit(BackendIo& io) {
  DCHECK(reactor_.InThread());
  DCHECK(io.op == BackendOp::kFlush || io.offset % volume_.geometry().logical_block_size == 0);
  if (!Intact(io)) return io.OnBackendDone(-EIO);
  if (io.op == BackendOp::kSecureErase) return io.OnBackendDone(-EOPNOTSUPP);
  if (io.op != BackendOp::kFlush && io.length == 0) return io.OnBackendDone(0);
  auto* op = std::construct_at(reinterpret_cast<Op*>(io.scratch.bytes), *this, io);
  if (io.preflush) op->step_ = Step::kPreflush;
  if (look_ != nullptr && outstanding_count_ >= kHangingMax) return waiting_.PushBack(*op);
  Begin(*op);
}

void FileQueue::Begin(Op& op) {
  ++outstanding_count_;
  Start(op);
}

bool FileQueue::Intact(const BackendIo& io) {
  if (!check_size_) return true;
  if (reactor_.now_ns() - size_checked_ns_ >= kSizeCheckIntervalNs) {
    LookAtSize();
  }
  return io.op == BackendOp::kFlush || io.offset + io.length <= volume_.intact_bytes();
}

// Some remote file systems wait for their own pages even if they are told to ask nobody (CIFS).
void FileQueue::LookAtSize() {
  size_checked_ns_ = reactor_.now_ns();
  if (look_ != nullptr) return look_->Start();
  volume_.CheckKnownSize();
}

void FileQueue::Start(Op& op) {
  io_uring_sqe* sqe = ring_.GetSqe();
  if (op.step_ != Step::kTransfer || op.io_.op == BackendOp::kFlush) {
    io_uring_prep_fsync(sqe, volume_.fd(), IORING_FSYNC_DATASYNC);
  } else if (IsRange(op.io_.op)) {
    StartRange(op, sqe);
  } else {
    StartTransfer(op, sqe);
  }
  // What waits for another machine or process does so in a thread of the kernel, which may try at
  // once even where that hangs.
  if (op.retries_ > 0 || look_ != nullptr) sqe->flags |= IOSQE_ASYNC;
  ring_.Prepare(sqe, op);
}

void FileQueue::StartTransfer(Op& op, io_uring_sqe* sqe) {
  const BackendIo& io = op.io_;
  std::byte* data = io.data.data() + op.done_bytes_;
  const std::uint32_t length = io.length - op.done_bytes_;
  const std::uint64_t offset = io.offset + op.done_bytes_;
  const bool fixed = io.registered_buffer >= 0;
  if (io.op == BackendOp::kRead) {
    if (fixed) {
      io_uring_prep_read_fixed(sqe, volume_.fd(), data, length, offset, io.registered_buffer);
    } else {
      io_uring_prep_read(sqe, volume_.fd(), data, length, offset);
    }
    return;
  }
  if (fixed) {
    io_uring_prep_write_fixed(sqe, volume_.fd(), data, length, offset, io.registered_buffer);
  } else {
    io_uring_prep_write(sqe, volume_.fd(), data, length, offset);
  }
  if (io.fua) sqe->rw_flags = RWF_DSYNC;
}

void FileQueue::StartRange(Op& op, io_uring_sqe* sqe) {
  const BackendIo& io = op.io_;
  op.method_ = volume_.Method(UseOf(io));
  op.piece_bytes_ = std::min(io.length - op.done_bytes_, kRangePieceMax);
  const std::uint64_t offset = io.offset + op.done_bytes_;
  int mode = FALLOC_FL_KEEP_SIZE;
  switch (op.method_) {
    case RangeMethod::kNone:  // Answers through the ring, so that there is one way to end.
      io_uring_prep_nop(sqe);
      return;
    case RangeMethod::kWriteZeroes:
      op.piece_bytes_ =
          std::min(op.piece_bytes_, static_cast<std::uint32_t>(volume_.zeroes().size()));
      io_uring_prep_write(sqe, volume_.fd(), volume_.zeroes().data(), op.piece_bytes_, offset);
      return;
    case RangeMethod::kUringDiscard:
      io_uring_prep_rw(IORING_OP_URING_CMD, sqe, volume_.fd(), nullptr, 0, 0);
      sqe->cmd_op = kUringCmdDiscard;
      sqe->addr = offset;
      sqe->addr3 = op.piece_bytes_;
      return;
    case RangeMethod::kPunchHole:
      mode |= FALLOC_FL_PUNCH_HOLE;
      break;
    case RangeMethod::kBlockDiscard:
      mode |= FALLOC_FL_PUNCH_HOLE | FALLOC_FL_NO_HIDE_STALE;
      break;
    case RangeMethod::kZeroRange:
      mode |= FALLOC_FL_ZERO_RANGE;
      break;
  }
  io_uring_prep_fallocate(sqe, volume_.fd(), mode, static_cast<off_t>(offset),
                          static_cast<off_t>(op.piece_bytes_));
}

void FileQueue::OnResult(Op& op, int result) {
  const bool is_range = op.step_ == Step::kTransfer && IsRange(op.io_.op);
  if (result == -EAGAIN || result == -EINTR) {
    if (++op.retries_ > kRetriesMax) return Finish(op, -EIO);
    return Start(op);
  }
  op.retries_ = 0;
  if (is_range && op.method_ == RangeMethod::kNone) return Finish(op, -EOPNOTSUPP);
  if (result < 0) {
    if (TellsForOthers(op)) volume_.sync_errors()->Note();
    if (is_range && TryNextMethod(op, result)) return Start(op);
    // EINVAL is what the file system says to IO that it cannot do at this place.  The request was
    // checked, so it is no fault of the client's.
    return Finish(op, result == -EINVAL || result == -ECANCELED ? -EIO : result);
  }
  if (op.step_ != Step::kTransfer || op.io_.op == BackendOp::kFlush) return EndStep(op);
  if (is_range && op.method_ != RangeMethod::kWriteZeroes) {
    return OnTransferred(op, op.piece_bytes_);
  }
  OnTransferred(op, static_cast<std::uint32_t>(result));
}

// All queues share one open file, and of it the kernel says once that pages were not written back.
bool FileQueue::TellsForOthers(const Op& op) const {
  if (op.step_ != Step::kTransfer || op.io_.op == BackendOp::kFlush) return true;
  return op.io_.op == BackendOp::kWrite && op.io_.fua && !volume_.direct();
}

// Short transfers go on where they stopped, at a block's boundary; no progress at all is the end of
// the file, which is not where it was.
void FileQueue::OnTransferred(Op& op, std::uint32_t byte_count) {
  byte_count -= byte_count % volume_.geometry().logical_block_size;
  if (byte_count == 0) {
    LookAtSize();
    return Finish(op, -EIO);
  }
  op.done_bytes_ += byte_count;
  if (op.done_bytes_ < op.io_.length) return Start(op);
  EndStep(op);
}

bool FileQueue::TryNextMethod(Op& op, int error) {
  const bool unsupported = error == -EOPNOTSUPP || error == -ENOSYS || error == -ENOTTY ||
                           (error == -EINVAL && op.method_ == RangeMethod::kUringDiscard);
  if (!unsupported || op.method_ == RangeMethod::kWriteZeroes) return false;
  volume_.GiveUp(UseOf(op.io_), op.method_);
  return true;
}

void FileQueue::EndStep(Op& op) {
  if (op.step_ == Step::kPreflush) {
    op.step_ = Step::kTransfer;
    return Start(op);
  }
  if (op.step_ == Step::kTransfer && op.io_.fua && IsRange(op.io_.op)) {
    op.step_ = Step::kPostflush;
    return Start(op);
  }
  Finish(op, 0);
}

void FileQueue::Finish(Op& op, int error) {
  BackendIo& io = op.io_;
  op.~Op();
  --outstanding_count_;
  if (!waiting_.empty()) Begin(waiting_.PopFront());
  io.OnBackendDone(error);
}

}  // namespace ibnbd
