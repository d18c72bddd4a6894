// SPDX-License-Identifier: Apache-2.0
// Fixed slots with index and generation: the only allocator of the data path.  A SlotRef kept
// after its slot was released no longer resolves, so that a late completion finds nothing instead
// of somebody else's IO.  One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "base/check.h"

namespace ibnbd {

struct SlotRef {
  std::uint32_t index = 0;
  std::uint32_t generation = 0;  // Only the low kSlotGenerationBits are kept.
};
inline constexpr std::uint32_t kSlotGenerationBits = 12;  // As many as a cookie has room for.

template <class T>
class SlotPool {
 public:
  explicit SlotPool(std::uint32_t capacity)
      : capacity_(capacity), entries_(std::make_unique<Entry[]>(capacity)) {
    for (std::uint32_t i = 0; i < capacity; ++i) entries_[i].next_free = i + 1;
  }

  [[nodiscard]] bool exhausted() const { return first_free_ == capacity_; }
  [[nodiscard]] std::uint32_t used_count() const { return used_count_; }
  [[nodiscard]] std::uint32_t capacity() const { return capacity_; }

  // Requires: !exhausted().  The slot's T is as its last user left it.
  SlotRef Claim() {
    CHECK(!exhausted());
    const std::uint32_t index = first_free_;
    Entry& entry = entries_[index];
    first_free_ = entry.next_free;
    entry.used = true;
    ++used_count_;
    return {index, entry.generation};
  }
  void Release(std::uint32_t index) {
    CHECK(index < capacity_ && entries_[index].used);
    Entry& entry = entries_[index];
    entry.used = false;
    entry.generation = (entry.generation + 1) & ((1u << kSlotGenerationBits) - 1);
    entry.next_free = first_free_;
    first_free_ = index;
    --used_count_;
  }
  T& operator[](std::uint32_t index) {
    DCHECK(index < capacity_);
    return entries_[index].value;
  }
  // Null if the reference is stale or was never valid.
  T* Find(SlotRef ref) {
    if (ref.index >= capacity_) return nullptr;
    Entry& entry = entries_[ref.index];
    return entry.used && entry.generation == ref.generation ? &entry.value : nullptr;
  }
  [[nodiscard]] bool used(std::uint32_t index) const { return entries_[index].used; }

 private:
  struct Entry {
    T value{};
    std::uint32_t generation = 0;
    std::uint32_t next_free = 0;
    bool used = false;
  };
  const std::uint32_t capacity_;
  std::uint32_t first_free_ = 0;
  std::uint32_t used_count_ = 0;
  std::unique_ptr<Entry[]> entries_;
};

}  // namespace ibnbd
