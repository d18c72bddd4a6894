// SPDX-License-Identifier: Apache-2.0
// What a bridge finds out before it takes the place of another one, which ends with that: whether
// it could serve the other one's clients.  Main thread; nothing of ours runs yet.
#pragma once

#include "absl/status/status.h"
#include "nbd-bridge/bridge.h"
#include "nbd-bridge/predecessor.h"

namespace ibnbd::bridge {

// Opens the volumes as a reader, in sessions of their own, and closes them again; compares them
// with what the clients were told; tries the addresses on which the other one does not listen.
// With `wait_for_servers` it waits for them.  What it cannot see: whether the volumes may be
// written to, since the other one is their writer, and what servers have only for sessions that are
// called as this one's will be.
absl::Status CheckSuccession(const BridgeOptions& options, const Predecessor& predecessor);

}  // namespace ibnbd::bridge
