// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/zero_scan.h"

#include <algorithm>
#include <cstring>

namespace ibnbd::client {

bool IsZero(std::span<const std::byte> bytes) {
  // The first bytes decide for most data; then each byte must equal the one 16 before it.
  constexpr std::size_t kHead = 16;
  const std::size_t head = std::min(bytes.size(), kHead);
  for (std::size_t i = 0; i < head; ++i) {
    if (bytes[i] != std::byte{0}) return false;
  }
  if (bytes.size() <= kHead) return true;
  return std::memcmp(bytes.data(), bytes.data() + kHead, bytes.size() - kHead) == 0;
}

ZeroRun FirstRun(std::span<const std::byte> bytes, std::size_t grain) {
  ZeroRun run{std::min(grain, bytes.size()), IsZero(bytes.first(std::min(grain, bytes.size())))};
  while (run.length < bytes.size()) {
    const std::size_t next = std::min(grain, bytes.size() - run.length);
    if (IsZero(bytes.subspan(run.length, next)) != run.zero) break;
    run.length += next;
  }
  return run;
}

}  // namespace ibnbd::client
