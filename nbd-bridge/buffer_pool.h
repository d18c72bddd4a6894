// SPDX-License-Identifier: Apache-2.0
// The memory of a connection: one registered buffer, given out in blocks of 4 KiB to 1 MiB (powers
// of two, buddies), so that small requests cost little and large ones are few pieces.  Its size is
// what a connection may hold at once: when it is used up, the connection stops reading its socket.
// One thread.  Nothing here allocates after construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "ibnbd/ibnbd.h"

namespace ibnbd::bridge {

// The bookkeeping alone: offsets, no memory.
class BuddyAllocator {
 public:
  static constexpr std::uint32_t kUnit = 4096;
  static constexpr unsigned kOrders = 9;                              // 4 KiB ... 1 MiB.
  static constexpr std::uint32_t kBlockMax = kUnit << (kOrders - 1);  // 1 MiB.

  // Requires a multiple of kBlockMax, not 0, at most 2 GiB.
  explicit BuddyAllocator(std::uint32_t size);

  // The offset of a block of at least `length` bytes, or nothing: none is free now.  The block that
  // was released last is preferred: it is in the cache.  Requires 0 < length <= kBlockMax.
  std::optional<std::uint32_t> TryClaim(std::uint32_t length);
  // Requires what TryClaim() returned, and the length it was given.
  void Release(std::uint32_t offset, std::uint32_t length);

  [[nodiscard]] std::uint32_t size() const { return size_; }
  [[nodiscard]] std::uint32_t free_bytes() const { return free_bytes_; }

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  static constexpr std::uint8_t kUsed = 0xff;
  struct Unit {  // Of the first unit of a block.
    std::uint32_t previous = kNone;
    std::uint32_t next = kNone;
    std::uint8_t free_order = kUsed;  // kUsed: not the start of a free block.
  };
  [[nodiscard]] static unsigned OrderOf(std::uint32_t length);
  void Push(std::uint32_t unit, unsigned order);
  void Unlink(std::uint32_t unit, unsigned order);

  const std::uint32_t size_;
  std::uint32_t free_bytes_;
  std::uint32_t first_free_[kOrders];
  std::vector<Unit> units_;
};

class BufferPool {
 public:
  struct Block {
    std::byte* data = nullptr;  // Null: none.
    std::uint32_t length = 0;
  };

  static absl::StatusOr<std::unique_ptr<BufferPool>> Create(ibnbd_session* session,
                                                            std::uint32_t size);
  ~BufferPool();  // Requires: no IO outstanding on it.
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  Block TryClaim(std::uint32_t length);
  void Release(const Block& block);
  [[nodiscard]] ibnbd_buffer* buffer() const { return buffer_; }
  [[nodiscard]] bool untouched() const { return buddies_.free_bytes() == buddies_.size(); }

 private:
  BufferPool(ibnbd_buffer* buffer, std::uint32_t size);
  ibnbd_buffer* const buffer_;
  std::byte* const base_;
  BuddyAllocator buddies_;
};

}  // namespace ibnbd::bridge
