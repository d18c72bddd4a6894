// SPDX-License-Identifier: Apache-2.0
// An IO of the application inside the library.  It is constructed in ibnbd_io::internal by
// ibnbd_submit() and destroyed before its callback is called, so that submitting allocates nothing
// and a callback may submit the same ibnbd_io again.
//
// Data in registered memory goes to rnbd as it is.  Data in other memory is carried through pieces
// of the queue's bounce pool, each a request of its own; when no piece is free the IO waits in
// line, and the line keeps its order.  Everything here is on the thread that owns the queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "base/arena.h"
#include "base/intrusive_list.h"
#include "fabric/fabric.h"
#include "ibnbd/ibnbd.h"
#include "rnbd/client.h"

namespace ibnbd::capi {

class BouncePool;

class UserIo final : public rnbd::Io {
 public:
  UserIo(ibnbd_io& io, ibnbd_queue& queue, ibnbd_device& device);
  void OnIoDone(int error) override;  // On its queue's `finished` list from now on.

  ibnbd_io& io;
  ibnbd_queue& queue;
  ibnbd_device& device;
  int result = 0;

 private:
  friend class BouncePool;
  std::uint64_t carried_ = 0;     // Bytes that pieces have been made for.
  std::uint32_t pieces_out_ = 0;  // Pieces submitted and not yet done.
};

// In ibnbd_io::internal, the last word says whether the IO is outstanding.
inline constexpr std::size_t kStateWord = 31;
static_assert(sizeof(UserIo) <= kStateWord * sizeof(std::uint64_t));
static_assert(alignof(UserIo) <= alignof(std::uint64_t));

class BouncePool {
 public:
  static constexpr std::uint32_t kPieceSize = 64u << 10;  // A multiple of every logical block size.

  BouncePool() = default;
  BouncePool(const BouncePool&) = delete;
  BouncePool& operator=(const BouncePool&) = delete;
  ~BouncePool();  // Requires: nothing outstanding.

  // `byte_count` is rounded up to whole pieces; 0: no pool.
  absl::Status Create(fabric::Fabric& fabric, std::size_t byte_count,
                      const MemoryProvider& provider);
  [[nodiscard]] bool exists() const { return pieces_ != nullptr; }

  // Carries `io` through pieces; 0, or the error of the first piece, and then nothing happened.
  int Submit(UserIo& io);
  // Gives pieces that have become free to those who wait.
  void Advance();
  // Ends what waits in line for `device` with `error`.
  void CancelWaiting(const ibnbd_device& device, int error);

 private:
  class Piece final : public rnbd::Io {
   public:
    void OnIoDone(int error) override;
    BouncePool* pool = nullptr;
    UserIo* parent = nullptr;
    std::byte* memory = nullptr;
    std::uint64_t parent_offset = 0;
  };

  int SubmitPieces(UserIo& io);
  int SubmitPiece(UserIo& io);
  void OnPieceDone(Piece& piece, int error);
  void EndIfComplete(UserIo& io);
  bool Remains(const UserIo& io) const;

  Arena arena_;
  std::unique_ptr<fabric::Region> region_;
  std::unique_ptr<Piece[]> pieces_;
  std::uint32_t piece_count_ = 0;
  IntrusiveList<Piece> free_;
  IntrusiveList<UserIo> waiting_;  // Some of their bytes have no piece yet.
};

}  // namespace ibnbd::capi
