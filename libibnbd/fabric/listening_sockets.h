// SPDX-License-Identifier: Apache-2.0
// For servers that go on with the listening sockets of the process before them, so that between the
// two nobody finds the door shut.  Implemented by the program; called by fabrics that listen on
// sockets (tcp), on the thread of the poller that listens.
#pragma once

#include "base/socket_address.h"
#include "base/unique_fd.h"

namespace ibnbd::fabric {

class ListeningSockets {
 public:
  virtual ~ListeningSockets() = default;
  // One that listens on this address already; invalid if there is none.
  virtual UniqueFd TakeInherited(const SocketAddress& local) = 0;
  // `fd` listens now, inherited or not.  It is the fabric's.  True: a duplicate of it is kept, to
  // outlive the fabric's listener, which therefore does not shut it down at its end.
  virtual bool OnListening(int fd) = 0;
};

}  // namespace ibnbd::fabric
