// SPDX-License-Identifier: Apache-2.0
// Finds the zeroes in what is copied.  Pure functions.
#pragma once

#include <cstddef>
#include <span>

namespace ibnbd::client {

bool IsZero(std::span<const std::byte> bytes);

// A run of whole grains (the last may be shorter) that are all zero or all not.
struct ZeroRun {
  std::size_t length = 0;
  bool zero = false;
};
// The run that `bytes` begins with.  Requires: not empty.
ZeroRun FirstRun(std::span<const std::byte> bytes, std::size_t grain);

}  // namespace ibnbd::client
