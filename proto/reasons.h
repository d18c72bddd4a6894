// SPDX-License-Identifier: Apache-2.0
// For tests: one case for each reason that a decoder can give.  The tables are in reasons_*.cc;
// reasons_test.cc runs them and compares them with the headers.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "proto/endian.h"
#include "proto/golden.h"

namespace ibnbd::proto {

struct ReasonCase {
  std::string reason;
  std::function<const char*()> decode;  // Decodes something malformed.
};

std::vector<ReasonCase> RtrsControlReasons();
std::vector<ReasonCase> RtrsIoReasons();
std::vector<ReasonCase> RnbdReasons();
std::vector<ReasonCase> NbdReasons();

// A copy of `message` that `change` has been applied to.
template <typename T, typename Change>
T With(T message, Change change) {
  change(message);
  return message;
}

template <typename T>
Bytes Short(const T& message) {
  Bytes bytes = ToBytes(AsBytes(message));
  bytes.pop_back();
  return bytes;
}

}  // namespace ibnbd::proto
