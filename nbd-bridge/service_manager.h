// SPDX-License-Identifier: Apache-2.0
// What systemd keeps for the next process of the service: the listening sockets are its own (socket
// activation), clients' connections are put into its store (FileDescriptorStoreMax=) when this
// process is told to end, and are there when it was a restart.  Main thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/handover.h"

namespace ibnbd::bridge {

// All of it, once.  Nothing if there is no service manager.  It keeps the clients, too, by `names`:
// for another process, if this one does not get so far as to serve them.
struct Kept {
  HandedOver given;
  std::vector<std::string> names;
};
absl::StatusOr<Kept> TakeFromServiceManager();
void ForgetInServiceManager(const std::vector<std::string>& names);

// True if there is one to leave something to; whether it keeps it is its business.
bool HasServiceManager();
// How many clients it keeps.  systemd drops what is more (FileDescriptorStoreMax=), and says so
// only in its own log; before version 254 the number is not known here.
std::size_t KeptClientsMax();
// Those beyond KeptClientsMax() are not.  False: not all of them could be left to it; the log says
// why.
bool LeaveToServiceManager(const std::vector<HandedClient>& clients);

}  // namespace ibnbd::bridge
