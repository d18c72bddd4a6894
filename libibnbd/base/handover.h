// SPDX-License-Identifier: Apache-2.0
// From one process of a server to the next, without a service manager: the running one offers its
// listening sockets on a unix socket; the next one takes them, and with that the running one lets
// go: it accepts nobody any more, finishes what executes, lets go of what only one may have, and
// ends.  Clients wait meanwhile, new ones in the queues of the sockets.  It may hand its clients'
// connections over, too, where they can go on with another process.
//
//   next     connects, and says what it wants: to look, or to take
//   running  to one who looks, what it wants to show, and nothing else happens
//   running  its sockets, in as many messages as it takes, of which the last says so; then one
//            message for each client, when it is done with all of them; it closes the connection
//            by ending
//
// A client whose message cannot be sent, or is not as it should be, or for whom there is no
// descriptor left, loses its connection, and nobody else does.
//
// The connection is a process's of the same user, or root's.  Main thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"

namespace ibnbd {

// A client's connection, and what the next process has to know of it.
struct HandedClient {
  UniqueFd socket;
  std::string state;
};
inline constexpr std::size_t kHandedStateMax = 96 << 10;

struct HandedOver {
  bool taken = false;             // There was a process that has handed over; else all is empty.
  std::vector<UniqueFd> sockets;  // They listen.
  std::vector<HandedClient> clients;
};

class HandoverSocket {
 public:
  // Replaces what a process before us left at `path`.
  static absl::StatusOr<HandoverSocket> Open(const std::string& path);

  [[nodiscard]] int fd() const { return fd_.get(); }
  // What one who looks is shown, each piece no longer than kHandedStateMax; none: nobody looks at
  // such a program.
  using Show = std::function<std::vector<std::string>()>;

  // When fd() is readable.  `program` says what they are.  Hands `sockets` to whoever asks; the
  // connection, to be kept until the end of this process.  Invalid: he has only looked.  Error: it
  // was nobody who may, or he has gone, or cannot be let in, or wants nothing; nothing has
  // happened.  He may still be at the door: look again after kDoorRestNs, not at once.
  absl::StatusOr<UniqueFd> HandOver(std::string_view program, const std::vector<int>& sockets,
                                    const Show& show = nullptr);

 private:
  explicit HandoverSocket(UniqueFd fd);
  absl::StatusOr<UniqueFd> LetIn(std::string_view program, const std::vector<int>& sockets,
                                 const Show& show);

  UniqueFd fd_;
  UniqueFd spare_;  // So that a process that has used up its descriptors can be replaced.
};
inline constexpr std::int64_t kDoorRestNs = kNsPerSecond;

// To the process that has taken over, by what HandOver() returned.  Waits for it at most some
// seconds.  False: not all could be handed over; the log says why.
bool HandOverClients(int successor, const std::vector<HandedClient>& clients);

// What the process that listens at `path` shows, which goes on as before; nothing if there is no
// such process.
absl::StatusOr<std::optional<std::vector<std::string>>> LookAt(std::string_view program,
                                                               const std::string& path,
                                                               std::int64_t timeout_ns);

// Asks the process that listens at `path` for its sockets, and waits until it has ended, with a
// line in the log now and then.  None if there is no such process.  DeadlineExceeded: it has not
// ended, nor handed a client over; the sockets are lost to both.  From its call on the other
// process ends: what can go wrong must have been looked at before.
absl::StatusOr<HandedOver> TakeOver(std::string_view program, const std::string& path,
                                    std::int64_t timeout_ns);

}  // namespace ibnbd
