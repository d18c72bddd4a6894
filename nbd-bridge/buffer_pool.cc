// SPDX-License-Identifier: Apache-2.0
// See buffer_pool.h.
#include "nbd-bridge/buffer_pool.h"

#include <bit>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace ibnbd::bridge {

BuddyAllocator::BuddyAllocator(std::uint32_t size)
    : size_(size), free_bytes_(size), units_(size / kUnit) {
  CHECK(size != 0 && size % kBlockMax == 0 && size <= 1u << 31);
  for (std::uint32_t& first : first_free_) first = kNone;
  // Pushed from the end, so that the lowest addresses are used first.
  for (std::uint32_t offset = size; offset != 0;) {
    offset -= kBlockMax;
    Push(offset / kUnit, kOrders - 1);
  }
}

unsigned BuddyAllocator::OrderOf(std::uint32_t length) {
  DCHECK(length > 0 && length <= kBlockMax);
  return static_cast<unsigned>(std::bit_width((length - 1) / kUnit));
}

void BuddyAllocator::Push(std::uint32_t unit, unsigned order) {
  Unit& entry = units_[unit];
  entry.free_order = static_cast<std::uint8_t>(order);
  entry.previous = kNone;
  entry.next = first_free_[order];
  if (entry.next != kNone) units_[entry.next].previous = unit;
  first_free_[order] = unit;
}

void BuddyAllocator::Unlink(std::uint32_t unit, unsigned order) {
  Unit& entry = units_[unit];
  DCHECK_EQ(entry.free_order, order);
  if (entry.previous == kNone) {
    first_free_[order] = entry.next;
  } else {
    units_[entry.previous].next = entry.next;
  }
  if (entry.next != kNone) units_[entry.next].previous = entry.previous;
  entry.free_order = kUsed;
}

std::optional<std::uint32_t> BuddyAllocator::TryClaim(std::uint32_t length) {
  const unsigned wanted = OrderOf(length);
  unsigned order = wanted;
  while (order < kOrders && first_free_[order] == kNone) ++order;
  if (order == kOrders) return std::nullopt;
  const std::uint32_t unit = first_free_[order];
  Unlink(unit, order);
  while (order > wanted) {  // Give the upper halves back.
    --order;
    Push(unit + (1u << order), order);
  }
  free_bytes_ -= kUnit << wanted;
  return unit * kUnit;
}

void BuddyAllocator::Release(std::uint32_t offset, std::uint32_t length) {
  unsigned order = OrderOf(length);
  std::uint32_t unit = offset / kUnit;
  CHECK(offset < size_ && offset % (kUnit << order) == 0 && units_[unit].free_order == kUsed);
  free_bytes_ += kUnit << order;
  for (; order + 1 < kOrders; ++order) {
    const std::uint32_t buddy = unit ^ (1u << order);
    if (units_[buddy].free_order != order) break;
    Unlink(buddy, order);
    unit &= ~(1u << order);
  }
  Push(unit, order);
}

absl::StatusOr<std::unique_ptr<BufferPool>> BufferPool::Create(ibnbd_session* session,
                                                               std::uint32_t size) {
  ibnbd_buffer* buffer = nullptr;
  if (const int result = ibnbd_buffer_alloc(session, size, &buffer); result != 0) {
    return Annotate(ErrnoStatus(result, ibnbd_error_message()),
                    absl::StrCat("allocate ", size, " bytes for a connection"));
  }
  return std::unique_ptr<BufferPool>(new BufferPool(buffer, size));
}

BufferPool::BufferPool(ibnbd_buffer* buffer, std::uint32_t size)
    : buffer_(buffer), base_(static_cast<std::byte*>(ibnbd_buffer_data(buffer))), buddies_(size) {}

BufferPool::~BufferPool() { ibnbd_buffer_free(buffer_); }

BufferPool::Block BufferPool::TryClaim(std::uint32_t length) {
  const std::optional<std::uint32_t> offset = buddies_.TryClaim(length);
  if (!offset) return {};
  return {base_ + *offset, length};
}

void BufferPool::Release(const Block& block) {
  buddies_.Release(static_cast<std::uint32_t>(block.data - base_), block.length);
}

}  // namespace ibnbd::bridge
