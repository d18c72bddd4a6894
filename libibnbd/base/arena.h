// SPDX-License-Identifier: Apache-2.0
// One mapping of a memory provider, carved once and returned whole: chunks, header slots, bounce
// buffers.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "base/memory_provider.h"

namespace ibnbd {

class Arena {
 public:
  Arena() = default;
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Maps `byte_count` bytes, zeroed, rounded up to whole pages.  Memory is committed on first
  // touch.
  static absl::StatusOr<Arena> Create(std::size_t byte_count,
                                      const MemoryProvider& provider = OrdinaryPages());

  [[nodiscard]] std::span<std::byte> bytes() const { return memory_.bytes; }
  [[nodiscard]] int fd() const { return memory_.fd; }  // See ProvidedMemory.

 private:
  const MemoryProvider* provider_ = nullptr;  // Null: empty.
  ProvidedMemory memory_;
};

}  // namespace ibnbd
