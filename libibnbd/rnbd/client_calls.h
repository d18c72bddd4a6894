// SPDX-License-Identifier: Apache-2.0
// Control messages of a client: a message, room for the reply in registered memory, a callback.  A
// few are outstanding at a time, the others queue.  A server that lives but does not answer one of
// them is given up on: the path is reset.  Control thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/arena.h"
#include "reactor/timers.h"
#include "rtrs/client_session.h"

namespace ibnbd::rnbd {

class ControlCalls {
 public:
  // 0 or a negative errno, and a copy of the reply (all of the room; the server need not have
  // filled it).
  using Done = std::function<void(int error, std::span<const std::byte> reply)>;
  static constexpr std::size_t kReplySizeMax = 16384;

  static absl::StatusOr<std::unique_ptr<ControlCalls>> Create(rtrs::Port& control,
                                                              std::int64_t timeout_ns);
  ~ControlCalls();  // Requires: no call outstanding.

  // The session that carries the calls; set once, before the first call.
  void set_session(rtrs::ClientSession& session) { session_ = &session; }
  // `reply_size` 0: a message without a reply, as CLOSE is; `is_read` is then false.  `done` is
  // never called from inside.  `what` is for people: "OPEN vol0".
  void Start(std::string what, std::span<const std::byte> message, std::size_t reply_size,
             Done done);

 private:
  class Call;
  struct Queued {
    std::string what;
    std::vector<std::byte> message;
    std::size_t reply_size = 0;
    Done done;
  };
  static constexpr std::uint32_t kCallsMax = 4;

  ControlCalls(rtrs::Port& control, std::int64_t timeout_ns);
  void StartQueued();
  void OnCallDone(Call& call, int error);

  rtrs::Port& control_;
  const std::int64_t timeout_ns_;
  rtrs::ClientSession* session_ = nullptr;
  Arena memory_;
  std::unique_ptr<fabric::Region> region_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<Call*> free_;
  std::deque<Queued> queue_;
};

}  // namespace ibnbd::rnbd
