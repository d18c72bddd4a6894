// SPDX-License-Identifier: Apache-2.0
// Taking a session down, whole or half built; the texts that say where its paths lead.
#pragma once

#include <cstdint>
#include <memory>

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "capi/handles.h"
#include "rtrs/client_session.h"

namespace ibnbd::capi {

// Waits up to `timeout_ns` for outstanding IOs, cancels what is left, and frees everything.  False
// if something had to be cancelled, or left behind.  Requires: no other thread uses the session.
bool TearDown(std::unique_ptr<ibnbd_session> session, std::int64_t timeout_ns);

// "[SRC@]DST[:PORT]" towards the server of the session's URI; names are looked up.
absl::StatusOr<rtrs::PathOptions> ParsePath(absl::string_view text, std::uint16_t default_port);
// The numeric or named address to come from, towards `server`.
absl::StatusOr<SocketAddress> ParseSource(absl::string_view text, const SocketAddress& server);
// All of a list that is separated by spaces; null: none.
absl::StatusOr<std::vector<rtrs::PathOptions>> ParsePaths(const char* list,
                                                          std::uint16_t default_port);

}  // namespace ibnbd::capi
