// SPDX-License-Identifier: Apache-2.0
// What a bridge has to know of an NBD client to go on with it where the process before stopped:
// between two requests, everything answered.  Kept as text with the bytes behind it, because it
// passes from one version of the program to the next.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "proto/nbd.h"

namespace ibnbd::bridge {

struct ClientState {
  bool is_new = false;  // Accepted, not greeted: the rest means nothing.
  std::string export_name;
  std::uint64_t volume_id = 0;  // As ibnbd_device_info has it.
  bool structured_replies = false;
  proto::NbdExportLimits limits;  // What the client was told.
  std::string received;           // The beginning of its next requests.
};

std::string FormatClientState(const ClientState& state);
absl::StatusOr<ClientState> ParseClientState(std::string_view text);

// Null if a client that was told `told` can go on with an export that has `now`; or why not.
const char* WhyNotAsTold(const proto::NbdExportLimits& told, const proto::NbdExportLimits& now);
// Likewise, with the volume's id now.
const char* WhyNotResumed(const ClientState& state, std::uint64_t volume_id,
                          const proto::NbdExportLimits& now);

}  // namespace ibnbd::bridge
