// SPDX-License-Identifier: Apache-2.0
// What a bridge tells one that would succeed it: all that must be known to find out whether its
// clients could go on there.  Kept as text, because it passes from one version of the program to
// the next, which ignores what it does not know.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nbd-bridge/client_state.h"

namespace ibnbd::bridge {

struct Predecessor {
  std::int64_t ends_within_ns = 0;     // From the moment when it is told to.
  std::vector<std::string> addresses;  // As ListenSocket::address() has them.
  std::vector<ClientState> clients;    // One of each kind; without what they have sent.
};

// For HandoverSocket::Show.
std::vector<std::string> FormatPredecessor(const Predecessor& predecessor);
absl::StatusOr<Predecessor> ParsePredecessor(const std::vector<std::string>& pieces);

}  // namespace ibnbd::bridge
