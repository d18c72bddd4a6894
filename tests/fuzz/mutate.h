// SPDX-License-Identifier: Apache-2.0
// Well-formed messages that the input changes: pure noise would never pass the first check.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "proto/endian.h"
#include "tests/fuzz/fuzz_input.h"

namespace ibnbd::fuzz {

template <class T>
std::vector<std::byte> BytesOf(const T& message) {
  const auto bytes = proto::AsBytes(message);
  return {bytes.begin(), bytes.end()};
}

// Changes up to 3 bytes: {how many: 1 byte; each: position: 2, exclusive-or: 1}.
inline void Mutate(FuzzInput& input, std::span<std::byte> message) {
  const int count = input.U8() % 4;
  for (int i = 0; i < count && !message.empty(); ++i) {
    const std::size_t at = input.U16() % message.size();
    message[at] ^= static_cast<std::byte>(input.U8());
  }
}

}  // namespace ibnbd::fuzz
