// SPDX-License-Identifier: Apache-2.0
// What an export stands on: a volume that executes block IOs.  A Backend is opened once, on the
// control thread; each reactor that serves it gets a BackendQueue of its own, used on that thread
// alone.
//
//   B1  Every IO submitted completes exactly once, by BackendIo::OnBackendDone() on the queue's
//       thread, possibly from inside Submit().
//   B2  Ranges, alignment, access mode and supported operations were checked by the caller against
//       geometry(): a backend may CHECK them.
//   B3  A write's data is stable storage only after a later flush, or if it carries `fua`.
//   B4  Nothing is acknowledged that the medium refused: short transfers are errors (-EIO).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ibnbd {
class Reactor;
}

namespace ibnbd::rnbd {

inline constexpr std::uint64_t kSectorSize = 512;  // Always; a block is the export's logical block.

struct Geometry {
  std::uint64_t size_bytes = 0;              // A multiple of the logical block size.
  std::uint32_t logical_block_size = 512;    // Power of two, 512..32768 (LE16 on the wire).
  std::uint32_t physical_block_size = 4096;  // Power of two, >= logical, <= 32768 as sent.
  std::uint32_t discard_bytes_max = 0;       // Per request; 0: discard is not supported.
  std::uint32_t discard_granularity = 0;     // Bytes.
  std::uint32_t discard_alignment = 0;       // Bytes.
  std::uint32_t write_zeroes_bytes_max = 0;  // Per request; 0: not supported.
  std::uint32_t secure_erase_bytes_max = 0;  // 0: refused.
  bool write_cache = true;                   // Completed writes may be volatile: flushes matter.
  bool fua = true;                           // Single writes can be made stable.
  bool read_only = false;                    // The volume itself cannot be written.
  // Stable over restarts, different for different volumes; 0: not known.
  std::uint64_t volume_id = 0;
};

enum class BackendOp : std::uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes, kSecureErase };

class BackendIo {
 public:
  BackendOp op = BackendOp::kRead;
  bool fua = false;          // kWrite, kWriteZeroes, kDiscard.
  bool preflush = false;     // kWrite: everything completed before is made stable first.
  bool no_unmap = false;     // kWriteZeroes: the blocks must stay allocated.
  std::uint64_t offset = 0;  // Bytes; block aligned.
  std::uint32_t length = 0;  // Bytes; block aligned; 0 for kFlush.
  // kRead, kWrite: exactly `length` bytes, page aligned when it is a chunk's.
  std::span<std::byte> data;
  int registered_buffer = -1;  // Slot in the reactor's IoRing that covers `data`, or -1.

  // 0 or a negative errno.
  virtual void OnBackendDone(int error) = 0;

  // For the backend's own use while the IO is with it: embedded state, so that nothing is
  // allocated.
  struct Scratch {
    alignas(16) std::byte bytes[96];
  } scratch;

 protected:
  ~BackendIo() = default;
};

// Never falls.  Any thread.
class HighestCount {
 public:
  explicit HighestCount(std::uint64_t value = 0) : value_(value) {}
  [[nodiscard]] std::uint64_t value() const { return value_.load(std::memory_order_acquire); }
  void Raise(std::uint64_t value) {
    std::uint64_t old = value_.load(std::memory_order_relaxed);
    while (old < value && !value_.compare_exchange_weak(old, value, std::memory_order_acq_rel)) {
    }
  }

 private:
  std::atomic<std::uint64_t> value_;
};

// What was acknowledged and then could not be made stable is lost for each who counts on it, but a
// kernel says so only to the first who asks, of all that share an open file: to a FUA write, to
// another client's flush.  So it is counted here, and who flushes compares with what he knew.  Any
// thread.
class SyncErrors {
 public:
  [[nodiscard]] std::uint64_t count() const { return count_.load(std::memory_order_acquire); }
  // A flush, or whatever else could be told for others, has failed.  Before its IO completes.
  void Note() { count_.fetch_add(1, std::memory_order_acq_rel); }
  // How many a writer knows of, of those before; who opens the volume next need not be told.
  [[nodiscard]] std::uint64_t told() const { return told_.value(); }
  void Tell(std::uint64_t count) { told_.Raise(count); }

 private:
  std::atomic<std::uint64_t> count_{0};
  HighestCount told_;
};

class BackendQueue {
 public:
  virtual ~BackendQueue() = default;  // Requires: no IO outstanding.
  virtual void Submit(BackendIo& io) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;  // Requires: no queues.
  [[nodiscard]] virtual const Geometry& geometry() const = 0;
  [[nodiscard]] virtual std::string Describe() const = 0;  // "file /srv/vol0.img, O_DIRECT".
  // Looks whether the volume has grown; geometry().size_bytes says so from then on.  It never
  // shrinks.  Control thread, as all readers of geometry().size_bytes must be.
  virtual void RefreshSize() {}
  // ESTALE: what we serve is no longer what the name of the volume leads to; it was replaced or
  // removed, and what is written now will be gone with us.  EBUSY: it cannot be told now, ask
  // again. Returns within a moment.  Control thread.
  [[nodiscard]] virtual absl::Status CheckPlace() const { return absl::OkStatus(); }
  // Null: a flush does not fail, or tells all who ask.  Always the same.
  [[nodiscard]] virtual std::shared_ptr<SyncErrors> sync_errors() { return nullptr; }
  // `io_count_max`: how many IOs may be outstanding on the queue at once.  On the reactor's thread.
  virtual absl::StatusOr<std::unique_ptr<BackendQueue>> CreateQueue(Reactor& reactor,
                                                                    std::uint32_t io_count_max) = 0;
};

}  // namespace ibnbd::rnbd
