// SPDX-License-Identifier: Apache-2.0
// Integers as they lie on the wire: byte arrays of fixed order that must be converted by name, with
// get() and an explicit constructor.  Every wire struct of proto/ is made of them, of std::byte and
// of char, and so has alignment 1, no padding, and may be copied from any address.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace ibnbd::proto {

static_assert(std::endian::native == std::endian::little ||
              std::endian::native == std::endian::big);

constexpr std::uint16_t ByteSwap(std::uint16_t value) { return __builtin_bswap16(value); }
constexpr std::uint32_t ByteSwap(std::uint32_t value) { return __builtin_bswap32(value); }
constexpr std::uint64_t ByteSwap(std::uint64_t value) { return __builtin_bswap64(value); }

template <typename T, std::endian kOrder>
class StoredInteger {
 public:
  constexpr StoredInteger() = default;
  constexpr explicit StoredInteger(T value)
      : bytes_(std::bit_cast<Bytes>(kOrder == std::endian::native ? value : ByteSwap(value))) {}

  [[nodiscard]] constexpr T get() const {
    const T value = std::bit_cast<T>(bytes_);
    return kOrder == std::endian::native ? value : ByteSwap(value);
  }
  friend constexpr bool operator==(const StoredInteger&, const StoredInteger&) = default;

 private:
  using Bytes = std::array<std::uint8_t, sizeof(T)>;
  Bytes bytes_{};
};

using le16 = StoredInteger<std::uint16_t, std::endian::little>;
using le32 = StoredInteger<std::uint32_t, std::endian::little>;
using le64 = StoredInteger<std::uint64_t, std::endian::little>;
using be16 = StoredInteger<std::uint16_t, std::endian::big>;
using be32 = StoredInteger<std::uint32_t, std::endian::big>;
using be64 = StoredInteger<std::uint64_t, std::endian::big>;

// What the decoders and encoders below rely on; each wire struct asserts it, with its size.
template <typename T>
inline constexpr bool kIsWireStruct =
    std::is_trivially_copyable_v<T>&& std::is_standard_layout_v<T> && alignof(T) == 1;

// The bytes of a message, to send them from where they are.
template <typename T>
[[nodiscard]] std::span<const std::byte, sizeof(T)> AsBytes(const T& message) {
  static_assert(kIsWireStruct<T>);
  return std::as_bytes(std::span<const T, 1>(&message, 1));
}

// Copies a message to the start of `out`.  Returns its size, or 0 when it does not fit.
template <typename T>
std::size_t Encode(std::span<std::byte> out, const T& message) {
  static_assert(kIsWireStruct<T>);
  if (out.size() < sizeof(T)) return 0;
  std::memcpy(out.data(), &message, sizeof(T));
  return sizeof(T);
}

// Copies a message from the start of `in`; false when `in` is too short.  The only read of `in`.
template <typename T>
[[nodiscard]] bool CopyOut(std::span<const std::byte> in, T* message) {
  static_assert(kIsWireStruct<T>);
  if (in.size() < sizeof(T)) return false;
  std::memcpy(message, in.data(), sizeof(T));
  return true;
}

}  // namespace ibnbd::proto
