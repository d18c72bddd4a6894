// SPDX-License-Identifier: Apache-2.0
#include "base/arena.h"

#include <utility>

#include "base/status_macros.h"

namespace ibnbd {

absl::StatusOr<Arena> Arena::Create(std::size_t byte_count, const MemoryProvider& provider) {
  Arena arena;
  ASSIGN_OR_RETURN(arena.memory_, provider.Map(byte_count));
  arena.provider_ = &provider;
  return arena;
}

Arena::Arena(Arena&& other) noexcept
    : provider_(std::exchange(other.provider_, nullptr)),
      memory_(std::exchange(other.memory_, ProvidedMemory())) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(provider_, other.provider_);
  std::swap(memory_, other.memory_);
  return *this;
}

Arena::~Arena() {
  if (provider_ != nullptr) provider_->Unmap(memory_);
}

}  // namespace ibnbd
