// SPDX-License-Identifier: Apache-2.0
// The client's pairing with one server: a name, one path or several, and one lane per IO reactor.
// The session lives on the control reactor; each lane on its own.  Each path connects, keeps a
// heartbeat and reconnects with backoff for as long as it exists.  The session is up while one of
// them is.
//
//   S1  Every request submitted to a lane completes exactly once, on the lane's thread, never from
//       inside Submit().
//   S2  When it completes, nothing of the network touches its memory any more.
//   S3  -ECONNABORTED: the last path broke; whether the server executed it is unknown, and it will
//       not execute it later than anything submitted after the next OnSessionUp().  -ENOTCONN:
//       never sent.
//   S4  OnSessionUp() and OnSessionDown() alternate, on the control thread.  Lanes are usable
//   before
//       OnSessionUp() is called and all their requests have completed before OnSessionUp() is
//       called again.
//   S5  While another path is up, what was in flight on a path that broke is sent again over that
//       one, and completes once.  A change of data is sent again only when the old path is fenced:
//       the server has confirmed that nothing of it executes or will (FENCE_PATH, or the path
//       itself has come back).  A server that does not know FENCE_PATH gets it when our end of the
//       old path is gone; docs/failure-model.md says what that leaves open.
//   S6  All paths that are up at one time lead to the same session of the same server process: a
//       path that joins others may not create the session there (first_conn).
//
// Lanes make progress only while their reactors run: a reconnect, Close() and what is in doubt wait
// for a lane that nobody polls, because its connection may still touch the caller's memory.
#pragma once

#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/intrusive_list.h"
#include "base/prng.h"
#include "base/socket_address.h"
#include "rtrs/heartbeat.h"
#include "rtrs/path_policy.h"
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
  // Of the region that covers `data`, registered kRemoteWrite if it is a read.  Null: no data.
  const fabric::Keys* keys = nullptr;
  bool is_read = false;
  std::uint32_t permit = ~0u;  // The lane's.

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
  bool peer_fences = false;    // Minor version >= 2: it understands FENCE_PATH.
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

struct PathOptions {
  SocketAddress server;
  std::optional<SocketAddress> source = std::nullopt;  // To connect from; its port is ignored.
  std::uint32_t weight = kPathWeightDefault;
  // As the user calls it, "[SRC@]HOST:PORT", if ClientSessionOptions::finder is to be asked where
  // it leads: before its first attempt if `server` is not known yet (IsKnown()), and before every
  // attempt that follows one that failed.  "": what stands above is all.
  std::string text = "";
};
// It has an address: it needs no finder, or was found at least once.
[[nodiscard]] bool IsKnown(const PathOptions& path);
[[nodiscard]] std::string TargetOf(const PathOptions& path);  // For people.

// Finds out where paths lead, which may take its time: on a thread that is no reactor's.
class PathFinder {
 public:
  using DoneFn = std::function<void(absl::StatusOr<PathOptions>)>;
  // `done` on the control thread, later, or never if the session is destroyed meanwhile.
  virtual void Find(const PathOptions& path, DoneFn done) = 0;

 protected:
  ~PathFinder() = default;
};

struct ClientSessionOptions {
  std::string name;  // Without '/' and '.'; unique per client host.
  // Of a client that may be killed and started again, see proto/README.md section 9; 0: of none.
  std::uint64_t client_id = 0;
  std::uint32_t incarnation = 0;
  SocketAddress server;                                // Of the first path,
  std::optional<SocketAddress> source = std::nullopt;  // and where it comes from,
  std::string text;                                    // and how it is called (PathOptions).
  std::vector<PathOptions> more_paths;
  PathFinder* finder = nullptr;  // Outlives the session.  Null: no path has a text.
  PathPolicyKind policy = PathPolicyKind::kAdaptive;
  std::int64_t connect_timeout_ns = 10 * kNsPerSecond;  // Per round: all connections and INFO.
  // A peer that is silent for kHeartbeatsToDeath of these is gone, on each path.  0: a matter of
  // the peer, kHeartbeatNs...
  std::int64_t heartbeat_interval_ns = 0;
  // While several paths of one of our own servers are up: a path with requests in flight and
  // without any sign of life for about four of these is given up.  0: never for that reason.
  std::int64_t probe_interval_ns = 150 * kNsPerMs;
  std::int64_t backoff_ns_min = 100 * kNsPerMs;    // First pause before a reconnect; doubles,
  std::int64_t backoff_ns_max = 5 * kNsPerSecond;  // up to this, with jitter of a quarter.
  // Of the UUIDs and the jitter: random, or two clients are one to the server.
  std::uint64_t seed = 0;
};

// The kernel's (wire.md 6.1), and what our own servers are asked for: dead after 35 s, or 10 s.
inline constexpr std::int64_t kHeartbeatsToDeath = kHeartbeatMissedMax + 2;
inline constexpr std::int64_t kHeartbeatNsKernel = 5 * kNsPerSecond;
inline constexpr std::int64_t kHeartbeatNsIbnbd = 10 * kNsPerSecond / kHeartbeatsToDeath;

struct ClientSessionStats {  // Of all paths.
  std::uint64_t connect_rounds = 0, reconnects = 0, connect_failures = 0;
  std::uint64_t failovers = 0;  // Paths that broke while another was up.
  std::uint64_t heartbeats_sent = 0, heartbeats_missed = 0;
  std::int64_t heartbeat_rtt_ns = 0;  // The last one.
};

enum class PathState : std::uint8_t { kConnecting, kUp, kDraining, kBackoff, kClosing };
[[nodiscard]] absl::string_view PathStateName(PathState state);

struct PathInfo {
  std::uint32_t id = 0;        // Stays the same for as long as the path exists.
  std::string text;            // PathOptions::text.
  std::string source, server;  // As configured; source may be empty, both are until it is found.
  std::string addresses;       // "10.0.0.1:4711@10.0.0.2:1234", once it was connected.
  PathState state = PathState::kConnecting;
  bool drained_by_policy = false;  // Up, but too slow: it gets probes only.
  std::uint32_t weight = 0;
  std::string last_error;
  std::uint64_t reconnects = 0, connect_failures = 0;
  std::uint64_t reads = 0, writes = 0, bytes = 0, lost = 0;
  std::uint32_t inflight = 0;
  std::int64_t latency_ns = 0;  // Smoothed, as the slowest lane saw it last; 0: unknown.
  std::int64_t heartbeat_rtt_ns = 0;
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
  // Breaks all paths as if the network had; used to fence off requests that must end now.
  void ResetPaths(const absl::Status& why);
  // The id of the new path; it connects by itself.
  absl::StatusOr<std::uint32_t> AddPath(const PathOptions& options);
  // `done` once nothing of it is left; what was in flight on it goes over the others.  The last
  // path cannot be removed.
  void RemovePath(std::uint32_t id, std::function<void(absl::Status)> done);
  absl::Status SetPathWeight(std::uint32_t id, std::uint32_t weight);
  void SetPolicy(PathPolicyKind kind);
  [[nodiscard]] PathPolicyKind policy() const;
  // As ClientSessionOptions has it; from now on.
  void SetHeartbeat(std::int64_t interval_ns);
  [[nodiscard]] std::int64_t heartbeat_interval_ns() const;  // What holds now, never 0.
  [[nodiscard]] std::vector<PathInfo> paths() const;
  // Sends a control message on connection 0 (S1 to S3 hold).  Requires: up.
  void SubmitControl(ClientRequest& request);
  [[nodiscard]] bool up() const;
  [[nodiscard]] const SessionLimits& limits() const;
  [[nodiscard]] ClientSessionStats stats() const;
  // "path 10.0.0.1:4711@10.0.0.2:1234 up", for each path.
  [[nodiscard]] std::string Describe() const;

  [[nodiscard]] std::size_t lane_count() const;
  ClientLane& lane(std::size_t index);

 private:
  class Impl;
  explicit ClientSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ibnbd::rtrs
