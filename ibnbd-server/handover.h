// SPDX-License-Identifier: Apache-2.0
// From one server process to the next, without a service manager: the running one offers its
// listening sockets on a unix socket; the next one takes them, and with that the running one lets
// go: it accepts nobody any more, finishes what executes, closes its sessions and exports, and
// ends. Clients hold their IO meanwhile, and wait in the queues of the sockets.
//
//   next     connects
//   running  one message with the descriptors, then nothing until it has ended, which closes the
//            connection
//
// The connection is a process's of the same user, or root's.  Main thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace ibnbd {

class HandoverSocket {
 public:
  // Replaces what a process before us left at `path`.
  static absl::StatusOr<HandoverSocket> Open(const std::string& path);

  [[nodiscard]] int fd() const { return fd_.get(); }
  // When fd() is readable.  Hands `sockets` to whoever asks; the connection, to be kept until the
  // end of this process.  Error: it was nobody who may, or he has gone; nothing has happened.
  absl::StatusOr<UniqueFd> HandOver(const std::vector<int>& sockets);

 private:
  explicit HandoverSocket(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

// Asks the process that listens at `path` for its sockets, and waits until it has ended.  None if
// there is no such process.  DeadlineExceeded: it has not ended; the sockets are lost to both.
absl::StatusOr<std::vector<UniqueFd>> TakeOver(const std::string& path, std::int64_t timeout_ns);

}  // namespace ibnbd
