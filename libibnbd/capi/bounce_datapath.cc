// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "capi/handles.h"
#include "capi/user_io.h"

namespace ibnbd::capi {

bool BouncePool::Remains(const UserIo& io) const { return io.carried_ < io.length; }

int BouncePool::Submit(UserIo& io) {
  if (waiting_.empty()) {
    const int error = SubmitPieces(io);
    if (error != 0) return error;
  }
  if (Remains(io)) waiting_.PushBack(io);
  return 0;
}

// As many pieces as are free.  An error of the first piece is returned; one of a later piece ends
// the IO when the pieces before it are done.
int BouncePool::SubmitPieces(UserIo& io) {
  while (Remains(io) && !free_.empty()) {
    const int error = SubmitPiece(io);
    if (error == 0) continue;
    if (io.pieces_out_ == 0 && io.carried_ == 0) return error;
    if (io.result == 0) io.result = error;
    io.carried_ = io.length;
  }
  return 0;
}

int BouncePool::SubmitPiece(UserIo& io) {
  if (io.device.cut.load(std::memory_order_acquire)) return -ECANCELED;
  Piece& piece = free_.PopFront();
  piece.parent = &io;
  piece.parent_offset = io.carried_;
  piece.op = io.op;
  piece.fua = io.fua;
  // On every piece: none of them may become stable before what was completed earlier.
  piece.preflush = io.preflush;
  piece.offset = io.offset + io.carried_;
  piece.length = std::min<std::uint64_t>(io.length - io.carried_, kPieceSize);
  piece.data = {piece.memory, piece.length};
  if (io.op == rnbd::IoOp::kWrite) {
    std::memcpy(piece.memory, static_cast<const std::byte*>(io.io.data) + io.carried_,
                piece.length);
  }
  const int error = io.device.lanes[io.queue.index].queue->Submit(piece);
  if (error != 0) {
    free_.PushFront(piece);
    return error;
  }
  io.carried_ += piece.length;
  ++io.pieces_out_;
  return 0;
}

void BouncePool::Piece::OnIoDone(int error) { pool->OnPieceDone(*this, error); }

void BouncePool::OnPieceDone(Piece& piece, int error) {
  UserIo& io = *piece.parent;
  if (error == 0 && io.op == rnbd::IoOp::kRead) {
    std::memcpy(static_cast<std::byte*>(io.io.data) + piece.parent_offset, piece.memory,
                piece.length);
  }
  if (error != 0) {
    if (io.result == 0) io.result = error;
    io.carried_ = io.length;  // The rest is not attempted.
    if (io.linked()) io.Unlink();
  }
  free_.PushFront(piece);
  --io.pieces_out_;
  EndIfComplete(io);
}

void BouncePool::EndIfComplete(UserIo& io) {
  if (io.pieces_out_ == 0 && !Remains(io)) io.OnIoDone(io.result);
}

// Not from OnPieceDone(): rnbd is in the middle of something then.
void BouncePool::Advance() {
  while (!waiting_.empty() && !free_.empty()) {
    UserIo& io = waiting_.front();
    const int error = SubmitPieces(io);
    if (error != 0) {
      io.result = error;
      io.carried_ = io.length;
    }
    if (Remains(io)) return;
    io.Unlink();
    EndIfComplete(io);
  }
}

void BouncePool::CancelWaiting(const ibnbd_device& device, int error) {
  waiting_.ForEach([&](UserIo& io) {
    if (&io.device != &device) return;
    if (io.result == 0) io.result = error;
    io.carried_ = io.length;
    io.Unlink();
    EndIfComplete(io);
  });
}

}  // namespace ibnbd::capi
