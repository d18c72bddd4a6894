// SPDX-License-Identifier: Apache-2.0
// FNV-1a, 64 bits: a hash that is the same in every process, for numbers that are kept or told to
// others.  Whoever chooses the bytes can choose the hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ibnbd {

inline constexpr std::uint64_t kFnvBasis = 0xcbf29ce484222325u;

// `hash`: of what comes before.
inline std::uint64_t Fnv1a(std::span<const std::byte> bytes, std::uint64_t hash = kFnvBasis) {
  for (const std::byte byte : bytes) {
    hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace ibnbd
