// SPDX-License-Identifier: Apache-2.0
// The keys of one fabric: what a NIC's protection tables are to verbs.  Registering is control
// plane and takes a lock; looking a key up is data path, from any thread, and takes none.  A key is
// the index of its slot and 18 random bits: a peer that was not told a key cannot count its way to
// one, and a wrong guess costs it the connection.  A key is found by connections of its own domain
// alone (F13).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "fabric/fabric.h"

namespace ibnbd::tcp {

class RegionTable {
 public:
  static constexpr std::uint32_t kIndexBits = 14;
  static constexpr std::uint32_t kSlots = 1u << kIndexBits;

  RegionTable();

  using DomainId = std::uint64_t;
  static constexpr DomainId kCommonDomain = 0;
  DomainId NewDomain() { return last_domain_.fetch_add(1, std::memory_order_relaxed) + 1; }

  // The new key, or 0 when the table is full.
  std::uint32_t Add(std::span<std::byte> memory, fabric::Access access,
                    DomainId domain = kCommonDomain);
  void Remove(std::uint32_t key);

  // Any thread, no lock.
  [[nodiscard]] bool CoversLocal(const fabric::Sge& sge, DomainId domain = kCommonDomain) const;
  // Where [addr, addr + length) lies, or null if `rkey` does not allow writing there.
  [[nodiscard]] std::byte* FindRemote(std::uint32_t rkey, std::uint64_t addr, std::uint32_t length,
                                      DomainId domain = kCommonDomain) const;
  [[nodiscard]] bool MayInvalidate(std::uint32_t rkey, DomainId domain = kCommonDomain) const;
  // False if it may not, or somebody was faster.
  bool Invalidate(std::uint32_t rkey, DomainId domain = kCommonDomain);

  // What a connection is placing a payload by, from before it looks the key up until the last byte
  // is there; 0: nothing.  Known to the table from Watch() to Unwatch().
  using Landing = std::atomic<std::uint32_t>;
  void Watch(const Landing& landing);
  void Unwatch(const Landing& landing);
  // After Remove(key): whether a payload that was begun with it is still being placed.
  [[nodiscard]] bool IsLanding(std::uint32_t key);

 private:
  // A reader takes the key, the rest, and the key again; Add() writes the key last and Remove()
  // clears it first, so a slot that changed hands in between is noticed.
  struct Slot {
    std::atomic<std::uint32_t> key{0};
    std::atomic<bool> remote_writable{false};
    std::atomic<bool> invalidatable{false};
    std::atomic<DomainId> domain{kCommonDomain};
    std::atomic<std::byte*> base{nullptr};
    std::atomic<std::size_t> size{0};
    std::uint32_t last_key = 0;  // Under the lock.
  };
  struct View {
    std::byte* base = nullptr;
    std::size_t size = 0;
    bool remote_writable = false;
    bool invalidatable = false;
  };
  bool Look(std::uint32_t key, DomainId domain, View* view) const;

  std::atomic<DomainId> last_domain_{kCommonDomain};
  std::mutex mutex_;
  std::vector<std::uint32_t> free_;
  std::vector<const Landing*> landings_;
  std::unique_ptr<Slot[]> slots_;
};

}  // namespace ibnbd::tcp
