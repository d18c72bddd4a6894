// SPDX-License-Identifier: Apache-2.0
// A fuzzer's input, taken apart from the front: numbers, pieces, the rest.  When it is used up,
// numbers are 0 and pieces are empty, so that every prefix of an input is an input.  Little-endian,
// so that seeds can be written by hand.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ibnbd::fuzz {

class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size)
      : rest_(reinterpret_cast<const std::byte*>(data), size) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }
  [[nodiscard]] std::span<const std::byte> rest() const { return rest_; }

  std::span<const std::byte> Bytes(std::size_t size_max) {
    const std::span<const std::byte> piece = rest_.first(std::min(size_max, rest_.size()));
    rest_ = rest_.subspan(piece.size());
    return piece;
  }
  std::uint8_t U8() { return static_cast<std::uint8_t>(Number(1)); }
  std::uint16_t U16() { return static_cast<std::uint16_t>(Number(2)); }
  std::uint32_t U32() { return static_cast<std::uint32_t>(Number(4)); }
  std::uint64_t U64() { return Number(8); }

 private:
  std::uint64_t Number(std::size_t size) {
    std::uint64_t value = 0;
    unsigned shift = 0;
    for (const std::byte byte : Bytes(size)) {
      value |= std::to_integer<std::uint64_t>(byte) << shift;
      shift += 8;
    }
    return value;
  }
  std::span<const std::byte> rest_;
};

}  // namespace ibnbd::fuzz
