// SPDX-License-Identifier: Apache-2.0
// Copies one endpoint onto another: several pieces in flight, zeroes found and written as such,
// everything durable at the end.  One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "ibnbd-client/endpoint.h"

namespace ibnbd::client {

struct CopyOptions {
  std::uint32_t pieces_in_flight = 16;
  bool sparse = true;                // Look for zeroes.
  bool destination_is_zero = false;  // They need not be written.
  // Now and then, from inside Copy(); `total` if it is known.
  std::function<void(std::uint64_t done, std::optional<std::uint64_t> total)> on_progress;
};

struct CopyStats {
  std::uint64_t bytes = 0;       // All that was copied,
  std::uint64_t zero_bytes = 0;  // of these: found to be zero and not written as data.
};

// The first error ends it, once what is in flight has come back.
absl::Status Copy(Endpoint& source, Endpoint& target, const CopyOptions& options, CopyStats& stats);

// Reads both sides and names the first byte that differs.
absl::Status Compare(Endpoint& source, Endpoint& target, std::uint64_t length,
                     const CopyOptions& options);

}  // namespace ibnbd::client
