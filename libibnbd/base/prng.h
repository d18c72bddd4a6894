// SPDX-License-Identifier: Apache-2.0
// Randomness as a parameter: SplitMix64 (Steele, Lea and Flood, 2014), 8 bytes of state, the same
// sequence on every machine.  For simulations, jitter and test data; never for secrets.
#pragma once

#include <cstdint>

namespace ibnbd {

class Prng {
 public:
  explicit constexpr Prng(std::uint64_t seed) : state_(seed) {}

  constexpr std::uint64_t Next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound); 0 if bound is 0.  The modulo bias is below 2^-32 for bounds that fit 32
  // bits.
  constexpr std::uint64_t Below(std::uint64_t bound) { return bound == 0 ? 0 : Next() % bound; }
  // Uniform in [low, high].
  constexpr std::int64_t Between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(Below(static_cast<std::uint64_t>(high - low) + 1));
  }
  // True `ppm` times in a million.
  constexpr bool Chance(std::uint32_t ppm) { return Below(1'000'000) < ppm; }
  // An independent generator, so that one consumer's draws do not shift another's.
  constexpr Prng Fork() { return Prng(Next()); }

 private:
  std::uint64_t state_;
};

}  // namespace ibnbd
