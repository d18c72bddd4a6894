// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/region_table.h"

#include <sys/random.h>

#include <algorithm>

#include "base/check.h"

namespace ibnbd::tcp {
namespace {

constexpr std::uint32_t kIndexMask = RegionTable::kSlots - 1;

std::uint32_t RandomUpperBits() {
  std::uint32_t value = 0;
  // Cannot fail for 4 bytes once the system is up.
  CHECK(::getrandom(&value, sizeof value, 0) == sizeof value);
  return value & ~kIndexMask;
}

// True if [addr, addr + length) lies within the `size` bytes at `base`; no sum of theirs can
// overflow.
bool Within(const std::byte* base, std::size_t size, std::uint64_t addr, std::uint64_t length) {
  const std::uint64_t start = reinterpret_cast<std::uintptr_t>(base);
  if (addr < start) return false;
  const std::uint64_t offset = addr - start;
  return offset <= size && length <= size - offset;
}

}  // namespace

RegionTable::RegionTable() : slots_(std::make_unique<Slot[]>(kSlots)) {
  free_.reserve(kSlots);
  for (std::uint32_t index = kSlots; index > 0; --index) free_.push_back(index - 1);
}

std::uint32_t RegionTable::Add(std::span<std::byte> memory, fabric::Access access,
                               DomainId domain) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return 0;
  const std::uint32_t index = free_.back();
  free_.pop_back();
  Slot& slot = slots_[index];
  std::uint32_t key = 0;
  // Upper bits of zero could make the key 0; the last one must stay dead.
  do {
    key = RandomUpperBits() | index;
  } while ((key & ~kIndexMask) == 0 || key == slot.last_key);
  slot.last_key = key;
  slot.domain.store(domain, std::memory_order_relaxed);
  slot.base.store(memory.data(), std::memory_order_relaxed);
  slot.size.store(memory.size(), std::memory_order_relaxed);
  slot.remote_writable.store(access != fabric::Access::kLocal, std::memory_order_relaxed);
  slot.invalidatable.store(access == fabric::Access::kRemoteInvalidate, std::memory_order_relaxed);
  slot.key.store(key, std::memory_order_release);
  return key;
}

void RegionTable::Remove(std::uint32_t key) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::uint32_t index = key & kIndexMask;
  CHECK(slots_[index].key.load(std::memory_order_relaxed) == key);
  slots_[index].key.store(0, std::memory_order_seq_cst);
  free_.push_back(index);
}

void RegionTable::Watch(const Landing& landing) {
  std::lock_guard<std::mutex> lock(mutex_);
  landings_.push_back(&landing);
}

void RegionTable::Unwatch(const Landing& landing) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::erase(landings_, &landing);
}

// The connection says what it will look up and then looks; Remove() makes the key unfindable and
// then we look what was said.  All of it is sequentially consistent: one sees the other.
bool RegionTable::IsLanding(std::uint32_t key) {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::any_of(landings_.begin(), landings_.end(), [key](const Landing* landing) {
    return landing->load(std::memory_order_seq_cst) == key;
  });
}

bool RegionTable::Look(std::uint32_t key, DomainId domain, View* view) const {
  const Slot& slot = slots_[key & kIndexMask];
  if (key == 0 || slot.key.load(std::memory_order_seq_cst) != key) return false;
  view->base = slot.base.load(std::memory_order_acquire);
  view->size = slot.size.load(std::memory_order_acquire);
  view->remote_writable = slot.remote_writable.load(std::memory_order_acquire);
  view->invalidatable = slot.invalidatable.load(std::memory_order_acquire);
  if (slot.domain.load(std::memory_order_acquire) != domain) return false;
  return slot.key.load(std::memory_order_relaxed) == key;
}

bool RegionTable::CoversLocal(const fabric::Sge& sge, DomainId domain) const {
  View view;
  return Look(sge.lkey, domain, &view) &&
         Within(view.base, view.size, reinterpret_cast<std::uintptr_t>(sge.addr), sge.length);
}

std::byte* RegionTable::FindRemote(std::uint32_t rkey, std::uint64_t addr, std::uint32_t length,
                                   DomainId domain) const {
  View view;
  if (!Look(rkey, domain, &view) || !view.remote_writable ||
      !Within(view.base, view.size, addr, length)) {
    return nullptr;
  }
  return view.base + (addr - reinterpret_cast<std::uintptr_t>(view.base));
}

bool RegionTable::MayInvalidate(std::uint32_t rkey, DomainId domain) const {
  View view;
  return Look(rkey, domain, &view) && view.invalidatable;
}

bool RegionTable::Invalidate(std::uint32_t rkey, DomainId domain) {
  View view;
  if (!Look(rkey, domain, &view) || !view.invalidatable) return false;
  Slot& slot = slots_[rkey & kIndexMask];
  if (!slot.invalidatable.exchange(false, std::memory_order_acq_rel)) return false;
  slot.remote_writable.store(false, std::memory_order_release);
  return true;
}

}  // namespace ibnbd::tcp
