// SPDX-License-Identifier: Apache-2.0
// Names in wire structs: fields of fixed size, padded with NULs, of which the last must be one.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <string_view>

namespace ibnbd::proto {

// The characters before the NUL; all of them when there is none.
template <std::size_t kSize>
[[nodiscard]] std::string_view NameOf(const std::array<char, kSize>& field) {
  const void* nul = std::memchr(field.data(), '\0', kSize);
  if (nul == nullptr) return {field.data(), kSize};
  return {field.data(), static_cast<std::size_t>(static_cast<const char*>(nul) - field.data())};
}

// False, and nothing is changed, when `name` and its NUL do not fit or it holds a NUL.
template <std::size_t kSize>
[[nodiscard]] bool SetName(std::array<char, kSize>* field, std::string_view name) {
  if (name.size() >= kSize || name.find('\0') != name.npos) return false;
  field->fill('\0');
  if (!name.empty()) std::memcpy(field->data(), name.data(), name.size());
  return true;
}

// Such names could forge lines in a log and columns in a listing.
[[nodiscard]] constexpr bool HasControlCharacter(std::string_view name) {
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return true;
  }
  return false;
}

}  // namespace ibnbd::proto
