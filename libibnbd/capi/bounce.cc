// SPDX-License-Identifier: Apache-2.0
// Setting up a queue's bounce buffers and taking them down; what happens per IO is in
// bounce_datapath.cc.  The thread that opens the session, before anybody uses the queue.
#include "base/status_macros.h"
#include "capi/handles.h"
#include "capi/user_io.h"

namespace ibnbd::capi {

BouncePool::~BouncePool() {
  for (std::uint32_t i = 0; i < piece_count_; ++i) {
    if (pieces_[i].linked()) pieces_[i].Unlink();
  }
}

absl::Status BouncePool::Create(fabric::Fabric& fabric, std::size_t byte_count,
                                const MemoryProvider& provider) {
  if (byte_count == 0) return absl::OkStatus();
  const std::size_t piece_count = (byte_count + kPieceSize - 1) / kPieceSize;
  ASSIGN_OR_RETURN(arena_, Arena::Create(piece_count * kPieceSize, provider));
  ASSIGN_OR_RETURN(region_, fabric.Register(arena_.bytes(), fabric::Access::kRemoteWrite));
  pieces_ = std::make_unique<Piece[]>(piece_count);
  piece_count_ = static_cast<std::uint32_t>(piece_count);  // Not before there are any.
  for (std::uint32_t i = 0; i < piece_count_; ++i) {
    Piece& piece = pieces_[i];
    piece.pool = this;
    piece.memory = arena_.bytes().data() + std::size_t{i} * kPieceSize;
    piece.keys = &region_->keys();
    free_.PushBack(piece);
  }
  return absl::OkStatus();
}

}  // namespace ibnbd::capi
