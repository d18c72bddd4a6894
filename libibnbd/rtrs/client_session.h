// SPDX-License-Identifier: Apache-2.0
// The client's pairing with one server: a name, one path (several come with fail-over), and one
// lane per IO reactor.  The session lives on the control reactor; each lane on its own.  It
// connects, keeps a heartbeat, reconnects with backoff for as long as it exists, and says so.
//
//   S1  Every request submitted to a lane completes exactly once, on the lane's thread, never from
//       inside Submit().
//   S2  When it completes, nothing of the network touches its memory any more.
//   S3  -ECONNABORTED: the path broke; whether the server executed it is unknown, and it will not
//       execute it later than anything submitted after the next OnSessionUp() (the server closes
//       the old path, waiting for what executes, before it accepts the new one).  -ENOTCONN: never
//       sent.
//   S4  OnSessionUp() and OnSessionDown() alternate, on the control thread.  Lanes are usable
//   before
//       OnSessionUp() is called and all their requests have completed before OnSessionUp() is
//       called again.
//
// Lanes make progress only while their reactors run: a reconnect, Close() and what is in doubt wait
// for a lane that nobody polls, because its connection may still touch the caller's memory.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/intrusive_list.h"
#include "base/prng.h"
#include "base/socket_address.h"
#include "rtrs/port.h"

namespace ibnbd::rtrs {

// What OnDone() gets when the *server* said ENOTCONN (it does not have the device open): S3's
// -ENOTCONN and -ECONNABORTED are the lane's own words.  An errno that the wire cannot carry.
inline constexpr int kServerNotOpen = -EUNATCH;

// One request: one permit, one chunk.  The caller's storage, from Submit() to OnDone().
class ClientRequest : public ListHook {
 public:
  // The user message (RNBD's struct); copied when the request is posted, read until then.
  std::span<const std::byte> message;
  // Data to send, or room for data to come: one contiguous piece of registered memory, or empty.
  std::span<std::byte> data;
  std::uint32_t data_lkey = 0;  // Writes.
  std::uint32_t data_rkey = 0;  // Reads: registered kRemoteWrite or kRemoteInvalidate.
  bool is_read = false;

  // 0 or a negative errno: the server's answer, or S3's.
  virtual void OnDone(int error) = 0;

 protected:
  ~ClientRequest() = default;
};

struct SessionLimits {  // What the server granted; the same after every reconnect, or it is
                        // refused.
  std::uint32_t queue_depth = 0;  // Chunks of the session.
  std::uint32_t io_size_max = 0;  // Data bytes per request.
  std::uint32_t chunk_size = 0;
  bool peer_is_ibnbd = false;  // Minor version >= 1: our extensions may be used.
};

class ClientLane;  // client_lane.h

class ClientSessionObserver {
 public:
  virtual ~ClientSessionObserver() = default;
  virtual void OnSessionUp() = 0;  // First connect and every reconnect.
  virtual void OnSessionDown(const absl::Status& why) = 0;
  // A connection attempt failed; another follows after a pause, unless Close() is called.  `fatal`:
  // the server refused in a way that trying again cannot mend (another protocol, a changed queue
  // depth).
  virtual void OnConnectFailed(const absl::Status& why, bool fatal) = 0;
  virtual void
  OnSessionClosed() = 0;  // After Close(): nothing is left; the session may be destroyed.
};

struct ClientSessionOptions {
  std::string name;  // Without '/' and '.'; unique per client host.
  SocketAddress server;
  std::int64_t connect_timeout_ns = 10 * kNsPerSecond;  // Per round: all connections and INFO.
  std::int64_t heartbeat_interval_ns =
      5 * kNsPerSecond;  // wire.md 6.1; a kernel peer does not tune it.
  std::uint32_t heartbeat_missed_max = 5;
  std::int64_t backoff_ns_min = 100 * kNsPerMs;    // First pause before a reconnect; doubles,
  std::int64_t backoff_ns_max = 5 * kNsPerSecond;  // up to this, with jitter of a quarter.
  // Of the UUIDs and the jitter: random, or two clients are one to the server.
  std::uint64_t seed = 0;
};

struct ClientSessionStats {
  std::uint64_t connect_rounds = 0, reconnects = 0, connect_failures = 0;
  std::uint64_t heartbeats_sent = 0, heartbeats_missed = 0;
  std::int64_t heartbeat_rtt_ns = 0;  // The last one.
};

class ClientSession {
 public:
  // `control` is the control reactor's port; `lanes` one port per IO reactor (may be the same
  // port).
  static absl::StatusOr<std::unique_ptr<ClientSession>> Create(const ClientSessionOptions& options,
                                                               Port& control,
                                                               std::span<Port* const> lane_ports,
                                                               ClientSessionObserver& observer);
  ~ClientSession();  // Requires: closed.

  // --- On the control thread. ---
  void Start();
  // Ends everything within a bound: requests complete with -ECONNABORTED or -ENOTCONN, then
  // OnSessionClosed().
  void Close();
  // Breaks the path as if the network had; used to fence off requests that must end now.
  void ResetPath(const absl::Status& why);
  // Sends a control message on connection 0 (S1 to S3 hold).  Requires: up.
  void SubmitControl(ClientRequest& request);
  [[nodiscard]] bool up() const;
  [[nodiscard]] const SessionLimits& limits() const;
  [[nodiscard]] const ClientSessionStats& stats() const;
  [[nodiscard]] std::string Describe() const;  // "path 10.0.0.1:4711@10.0.0.2:1234 up".

  [[nodiscard]] std::size_t lane_count() const;
  ClientLane& lane(std::size_t index);

 private:
  class Impl;
  explicit ClientSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ibnbd::rtrs
