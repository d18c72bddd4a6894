// SPDX-License-Identifier: Apache-2.0
// What a device says of itself: a port that goes down or comes back, an address that changes, a
// fault.  Nothing is done about it here: connections notice what breaks them (completions, the
// connection manager, heartbeats); but who reads the log learns why.
#pragma once

#include <infiniband/verbs.h>

#include <string>

#include "absl/status/statusor.h"

namespace ibnbd::verbs {

// The descriptor to watch, which belongs to the device: readable when there is an event.  It does
// not block from here on; ReadDeviceEvents() requires that.
absl::StatusOr<int> DeviceEventsFd(ibv_context* context);
// Reads and logs what there is.  Several reactors share the descriptor: each event is read once,
// and who comes second finds nothing.
void ReadDeviceEvents(ibv_context* context);
// "" for events that say nothing to an operator.  `port_num` is that of port events.
std::string DeviceEventText(const char* device, ibv_event_type type, int port_num);

}  // namespace ibnbd::verbs
