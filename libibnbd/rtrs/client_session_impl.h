// SPDX-License-Identifier: Apache-2.0
// The client session's control plane: the state of its path, and the only place that decides about
// it. Lanes report; this connects them one after the other, asks for the chunks, deals them out,
// keeps the heartbeat, and when anything fails takes all of them down, waits until they are
// drained, pauses, and starts again.  Control thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rtrs/backoff.h"
#include "rtrs/client_lane.h"
#include "rtrs/client_session.h"
#include "rtrs/heartbeat.h"

namespace ibnbd::rtrs {

class ClientSession::Impl final : public LaneObserver {
 public:
  Impl(const ClientSessionOptions& options, Port& control, std::span<Port* const> lane_ports,
       ClientSessionObserver& observer);
  ~Impl() override;

  void Start();
  void Close();
  void ResetPath(const absl::Status& why);
  void SubmitControl(ClientRequest& request);
  [[nodiscard]] bool up() const { return state_ == State::kUp; }
  [[nodiscard]] const SessionLimits& limits() const { return limits_; }
  [[nodiscard]] const ClientSessionStats& stats() const { return stats_; }
  [[nodiscard]] std::string Describe() const;
  [[nodiscard]] std::size_t lane_count() const { return lanes_.size() - 1; }
  ClientLane& lane(std::size_t index) { return *lanes_[index + 1]; }

 private:
  enum class State : std::uint8_t {
    kIdle,        // Waits for Start().
    kConnecting,  // Waits for connection next_cid_ to be established.
    kInfo,        // Waits for INFO_RSP, then for all lanes to know their chunks.
    kUp,          // Requests flow; waits for something to break.
    kBroken,      // Every lane was told to disconnect; waits until all are drained.
    kBackoff,     // Waits for the next attempt.
    kClosing,     // Waits for all lanes to shut down.
    kClosed       // Nothing is left.
  };

  // LaneObserver
  void OnLaneConnected(std::uint32_t cid, std::uint32_t round, const proto::ConnRsp& offer,
                       const std::string& addresses) override;
  void OnLaneActive(std::uint32_t cid, std::uint32_t round) override;
  void OnLaneBroken(std::uint32_t cid, std::uint32_t round, const absl::Status& why,
                    bool fatal) override;
  void OnLaneDrained(std::uint32_t cid, std::uint32_t round) override;
  void OnLaneShutDown(std::uint32_t cid) override;
  void OnInfoResponse(std::uint32_t round, const std::vector<std::byte>& message) override;
  void OnHeartbeatAck(std::uint32_t round) override;

  void StartRound();
  void ConnectNext();
  absl::Status TakeOffer(const proto::ConnRsp& offer);
  void ActivateLanes(const std::vector<proto::ChunkAddress>& chunks);
  void OnUp();
  void BreakPath(const absl::Status& why, bool fatal);
  void OnAllDrained();
  void ShutDownLanes();
  void OnHeartbeatTimer();
  [[nodiscard]] std::uint64_t ReceiveCount() const;
  [[nodiscard]] absl::Status WithName(const absl::Status& why) const;
  // Runs `f` with lane `cid` on its thread.
  template <class F>
  void PostToLane(std::uint32_t cid, F f);

  const ClientSessionOptions options_;
  Reactor& reactor_;
  ClientSessionObserver& observer_;
  std::vector<std::unique_ptr<ClientLane>> lanes_;  // By cid.
  State state_ = State::kIdle;
  bool close_requested_ = false;
  bool was_up_ = false;  // At least once: the limits are fixed.
  bool fatal_ = false;   // The last round failed for good reason: the next pause is a long one.
  std::uint32_t round_ = 0;
  std::uint32_t next_cid_ = 0;
  std::uint32_t pending_lanes_ = 0;  // Of which a report is awaited.
  std::vector<bool> lane_done_;      // Those that have reported.
  proto::Uuid path_uuid_{};
  proto::Uuid session_uuid_{};
  SessionLimits limits_;
  bool new_rkey_ = false;
  Backoff backoff_;
  Heartbeat heartbeat_;
  std::uint64_t receive_count_ = 0;  // At the last tick.
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
