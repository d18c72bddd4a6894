// SPDX-License-Identifier: Apache-2.0
// One path of a client's session: connects its connections one after the other, asks for the
// chunks, deals them out, keeps the heartbeat, and when anything fails takes all of it down, waits
// until it is drained, pauses, and starts again.  Whether that is the end of the session, and what
// happens to what was in flight, is the session's business (client_session_impl.h).  Control
// thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rtrs/backoff.h"
#include "rtrs/client_connection.h"
#include "rtrs/client_session.h"
#include "rtrs/heartbeat.h"

namespace ibnbd::rtrs {

class ClientPath;

[[nodiscard]] proto::Uuid DrawUuid(Prng& prng);
[[nodiscard]] std::int64_t HeartbeatInterval(const ClientSessionOptions& session,
                                             const SessionLimits& limits);

// What a path asks of its session and tells it.
class ClientPathOwner {
 public:
  // May this round create the session at the server?  Only if no other path is up (S6).
  [[nodiscard]] virtual bool MayCreateSession(const ClientPath& path) const = 0;
  // The server's offer: what the session makes of it, or why it cannot use it.
  virtual absl::StatusOr<SessionLimits> OnPathOffer(ClientPath& path,
                                                    const SessionLimits& offer) = 0;
  // Asks the session's finder where it leads; ClientPath::OnFound() follows, unless the path goes.
  virtual void FindWay(ClientPath& path) = 0;
  virtual void OnPathUp(ClientPath& path) = 0;
  virtual void OnPathDown(ClientPath& path, const absl::Status& why) = 0;  // It was up.
  virtual void OnPathFailed(ClientPath& path, const absl::Status& why, bool fatal) = 0;
  // Down or failed, and nothing of the network touches our memory through it any more.
  virtual void OnPathDrained(ClientPath& path) = 0;
  virtual void OnPathShutDown(ClientPath& path) = 0;
  [[nodiscard]] virtual bool HasOtherPathUp(const ClientPath& path) const = 0;
  // Another path is up, and this connection of it was heard after this look.
  [[nodiscard]] virtual bool IsOtherPathAlive(const ClientPath& path, std::uint32_t cid,
                                              std::uint64_t after_look) const = 0;
  // This connection says nothing: is it so on the other paths, too?
  virtual void AskOtherPaths(const ClientPath& path, std::uint32_t cid) = 0;
  // Requests are in flight on this connection of any path.
  [[nodiscard]] virtual bool IsLaneBusy(std::uint32_t cid) const = 0;

 protected:
  ~ClientPathOwner() = default;
};

class ClientPath final : public ConnectionObserver {
 public:
  ClientPath(const ClientSessionOptions& session, const PathOptions& options, std::uint32_t id,
             std::uint32_t number, const proto::Uuid& session_uuid, Prng prng,
             std::span<ClientLane* const> lanes, Reactor& reactor, ClientPathOwner& owner);
  ~ClientPath();  // Requires: shut down, or never started.

  void Start();
  // The answer of the session's finder.
  void OnFound(absl::StatusOr<PathOptions> found);
  // The only way down.  Does nothing if it is not there or already being taken down.
  void Break(const absl::Status& why, bool fatal = false);
  // Its next attempt is made soon, whatever the backoff says.
  void HurryBack();
  // Ends it for good: OnPathShutDown() follows.
  void Close();
  // Requests may take it from now on (ClientConnection::Enable()).  Requires: up.
  void Enable();
  // In intervals of probe_interval_ns while several paths are up: all paths look, then all judge.
  // Looks are numbered by the session from 1.
  void Look(std::uint64_t look);
  void Judge();
  void SendHeartbeat(std::uint32_t cid);

  // The session's interval is another one now.
  void RestartHeartbeat();
  void set_weight(std::uint32_t weight) { options_.weight = weight; }

  [[nodiscard]] std::uint32_t id() const { return id_; }
  [[nodiscard]] std::uint32_t number() const { return number_; }  // Below kClientPathsMax.
  [[nodiscard]] bool up() const { return state_ == State::kUp; }
  // Nothing of a life in which it was up is left on our side: what was in flight may be fenced.
  // Also while it is connecting again.
  [[nodiscard]] bool drained() const { return state_ != State::kUp && state_ != State::kBroken; }
  [[nodiscard]] bool enabled() const { return enabled_; }  // In this round: it had requests.
  [[nodiscard]] bool idle() const { return state_ == State::kIdle; }
  [[nodiscard]] bool connecting_first_time() const {
    return state_ <= State::kInfo && stats_.connect_failures == 0;
  }
  [[nodiscard]] bool closing() const { return close_requested_; }
  // It has taken an offer in this round that others must agree with.
  [[nodiscard]] bool has_offer() const { return has_offer_; }
  [[nodiscard]] bool might_have_created() const { return first_conn_; }  // In this round.
  [[nodiscard]] const SessionLimits& limits() const { return limits_; }
  [[nodiscard]] const PathOptions& options() const { return options_; }
  [[nodiscard]] const ClientSessionStats& stats() const { return stats_; }
  [[nodiscard]] std::uint32_t inflight() const;
  [[nodiscard]] std::uint32_t inflight(std::uint32_t cid) const;
  [[nodiscard]] std::uint64_t alive_look(std::uint32_t cid) const {
    return probes_[cid].alive_look;
  }
  [[nodiscard]] PathInfo Info() const;
  [[nodiscard]] std::string Describe() const;

  // The life that ended last and that the server may not know of yet: its uuid and round.
  [[nodiscard]] const proto::Uuid& uuid() const { return uuid_; }
  [[nodiscard]] std::uint32_t round() const { return round_; }
  // Set when it goes down with requests, cleared when it is up again or the session knows that it
  // is fenced.
  bool unfenced = false;
  std::uint32_t unfenced_round = 0;
  std::function<void(absl::Status)> removed;  // It is to be removed; called when it is.

 private:
  enum class State : std::uint8_t {
    kIdle,        // Waits for Start().
    kFinding,     // Waits to be told where it leads.
    kConnecting,  // Waits for connection next_cid_ to be established.
    kInfo,        // Waits for INFO_RSP, then for all connections to know their chunks.
    kUp,          // Requests flow; waits for something to break.
    kBroken,      // Every connection was told to disconnect; waits until all are drained.
    kBackoff,     // Waits for the next attempt.
    kClosing,     // Waits for all connections to shut down.
    kClosed       // Nothing is left.
  };

  // ConnectionObserver
  void OnConnected(std::uint32_t cid, std::uint32_t round, const proto::ConnRsp& offer,
                   const std::string& addresses) override;
  void OnConnectionActive(std::uint32_t cid, std::uint32_t round) override;
  void OnConnectionBroken(std::uint32_t cid, std::uint32_t round, const absl::Status& why,
                          bool fatal) override;
  void OnConnectionDrained(std::uint32_t cid, std::uint32_t round) override;
  void OnConnectionShutDown(std::uint32_t cid) override;
  void OnInfoResponse(std::uint32_t round, const std::vector<std::byte>& message) override;
  void OnHeartbeatAck(std::uint32_t round) override;

  void StartRound();
  void ConnectFirst();
  void ConnectNext();
  absl::Status TakeOffer(const proto::ConnRsp& offer);
  [[nodiscard]] proto::InfoReq MakeInfo() const;
  void ActivateConnections(const std::vector<proto::ChunkAddress>& chunks);
  void OnUp();
  void OnAllDrained();
  void ShutDownConnections();

  // client_path_liveness.cc
  struct Watch {  // Over one connection.
    explicit Watch(std::uint32_t missed_max) : heartbeat(missed_max) {}
    Heartbeat heartbeat;
    std::uint64_t receive_count = 0;  // At the last look.
    std::uint32_t notices = 0;        // When its thread was told of the last look.
    // Probes only: looks that saw something from the server, and a question that was out, last.
    std::uint64_t alive_look = 0, asked_look = 0;
    bool looks_dead = false;
  };
  static constexpr std::uint32_t kProbesMissedMax = 1;
  void RestartWatches();
  // `owes`: an answer of the server's is awaited there.
  bool LooksDead(Watch& watch, std::uint32_t cid, bool owes);
  void AskIoConnections();
  void OnHeartbeatTimer();
  [[nodiscard]] std::uint64_t ReceiveCount() const;
  [[nodiscard]] std::uint32_t lane_count() const {
    return static_cast<std::uint32_t>(connections_.size()) - 1;
  }
  [[nodiscard]] std::string WhatIsLate() const;  // In a round whose time is over.
  [[nodiscard]] absl::Status WithName(const absl::Status& why) const;
  // Runs `f` with connection `cid` on its thread.
  template <class F>
  void PostTo(std::uint32_t cid, F f) {
    ClientConnection* connection = connections_[cid].get();
    ReactorOf(cid).Post([connection, f = std::move(f)]() mutable { f(*connection); });
  }
  [[nodiscard]] Reactor& ReactorOf(std::uint32_t cid);

  const ClientSessionOptions& session_;
  PathOptions options_;
  const std::uint32_t id_;
  const std::uint32_t number_;
  const proto::Uuid session_uuid_;
  proto::Uuid uuid_{};
  Reactor& reactor_;
  ClientPathOwner& owner_;
  std::vector<std::unique_ptr<ClientConnection>> connections_;  // By cid.
  State state_ = State::kIdle;
  bool close_requested_ = false;
  bool has_offer_ = false;
  bool first_conn_ = false;
  bool hurry_ = false;
  bool enabled_ = false;
  bool was_up_ = false;
  bool found_ = false;    // The next round may connect: it is known where, and nothing failed.
  bool finding_ = false;  // An answer of the finder will come.
  bool fatal_ = false;    // The last round failed for good reason: the next pause is a long one.
  std::uint32_t round_ = 0;
  std::uint32_t next_cid_ = 0;
  std::uint32_t pending_ = 0;  // Connections of which a report is awaited.
  std::vector<bool> done_;     // Those that have reported.
  SessionLimits limits_;
  bool new_rkey_ = false;
  Backoff backoff_;
  Heartbeat heartbeat_;
  std::uint64_t receive_count_ = 0;  // At its last tick.
  std::vector<Watch> beats_;         // By cid.
  std::vector<Watch> probes_;
  std::int64_t heartbeat_sent_ns_ = 0;
  std::int64_t up_since_ns_ = 0;
  Timer round_timer_;
  Timer backoff_timer_;
  Timer heartbeat_timer_;
  std::string addresses_;
  std::string last_error_;
  ClientSessionStats stats_;
};

}  // namespace ibnbd::rtrs
