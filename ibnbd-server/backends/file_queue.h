// SPDX-License-Identifier: Apache-2.0
// One reactor's way to a Volume: every BackendIo becomes one or several io_uring operations, whose
// state lives in BackendIo::scratch.  Nothing is allocated, and nothing is waited for.  On the
// reactor's thread.
//
// Of a remote volume nothing is begun on this thread, where the kernel would let it wait: worker
// threads of the kernel's do that, and only so many at once as this queue has added to them, so
// that what hangs takes none from other volumes.
#pragma once

#include <cstdint>

#include "base/intrusive_list.h"
#include "ibnbd-server/backends/file_size_look.h"
#include "ibnbd-server/backends/volume.h"
#include "reactor/io_ring.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

class Reactor;

class FileQueue final : public rnbd::BackendQueue {
 public:
  // `look`: of the volume, if it is a remote one.
  FileQueue(Volume& volume, Reactor& reactor, FileSizeLook::Ptr look);
  ~FileQueue() override;
  void Submit(rnbd::BackendIo& io) override;

 private:
  // What the IO is waiting for.
  enum class Step : std::uint8_t {
    kPreflush,   // The fdatasync before a write.
    kTransfer,   // Its own work, piece by piece.
    kPostflush,  // The fdatasync that makes a discard or zeroes with `fua` stable.
  };
  class Op;

  void Begin(Op& op);
  void Start(Op& op);
  void StartTransfer(Op& op, io_uring_sqe* sqe);
  void StartRange(Op& op, io_uring_sqe* sqe);
  void OnResult(Op& op, int result);
  void OnTransferred(Op& op, std::uint32_t byte_count);
  [[nodiscard]] bool TellsForOthers(const Op& op) const;
  bool TryNextMethod(Op& op, int error);
  void EndStep(Op& op);
  void Finish(Op& op, int error);
  [[nodiscard]] bool Intact(const rnbd::BackendIo& io);
  void LookAtSize();

  Volume& volume_;
  Reactor& reactor_;
  IoRing& ring_;
  const bool check_size_;
  const FileSizeLook::Ptr look_;
  std::int64_t size_checked_ns_ = 0;
  std::uint32_t outstanding_count_ = 0;
  IntrusiveList<Op> waiting_;  // Of a remote volume: those that wait for others to end.
};

}  // namespace ibnbd
