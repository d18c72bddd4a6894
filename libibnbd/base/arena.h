// SPDX-License-Identifier: Apache-2.0
// One page-aligned anonymous mapping, carved once and returned whole: chunks, header slots, bounce
// buffers.  The provider seam of memory (ordinary pages now; huge pages and memfd come behind the
// same class).
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"

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
  static absl::StatusOr<Arena> Create(std::size_t byte_count);

  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, size_}; }

 private:
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace ibnbd
