// SPDX-License-Identifier: Apache-2.0
// The client session's control plane: the set of its paths, whether it is up, and the only place
// that decides what becomes of requests whose path broke: while another path is up, they wait for
// the fence and go on there; when the last one is gone, the lanes give everything up, and the
// session is announced again only when a path is up, all lanes are empty and all old paths are
// fenced.  Control thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proto/rnbd.h"
#include "rtrs/client_lane.h"
#include "rtrs/client_path.h"
#include "rtrs/client_session.h"

namespace ibnbd::rtrs {

class ClientSession::Impl final : public ClientPathOwner, public LaneObserver {
 public:
  Impl(const ClientSessionOptions& options, Port& control, std::span<Port* const> lane_ports,
       ClientSessionObserver& observer);
  ~Impl();

  void Start();
  void Close();
  void ResetPaths(const absl::Status& why);
  absl::StatusOr<std::uint32_t> AddPath(const PathOptions& options);
  void RemovePath(std::uint32_t id, std::function<void(absl::Status)> done);
  absl::Status SetPathWeight(std::uint32_t id, std::uint32_t weight);
  void SetPolicy(PathPolicyKind kind);
  [[nodiscard]] PathPolicyKind policy() const { return policy_; }
  void SetHeartbeat(std::int64_t interval_ns);
  [[nodiscard]] std::int64_t heartbeat_interval_ns() const;
  [[nodiscard]] std::vector<PathInfo> paths() const;
  void SubmitControl(ClientRequest& request);
  [[nodiscard]] bool up() const { return state_ == State::kUp; }
  [[nodiscard]] const SessionLimits& limits() const { return limits_; }
  [[nodiscard]] ClientSessionStats stats() const;
  [[nodiscard]] std::string Describe() const;
  [[nodiscard]] std::size_t lane_count() const { return lanes_.size() - 1; }
  ClientLane& lane(std::size_t index) { return *lanes_[index + 1]; }

 private:
  enum class State : std::uint8_t {
    kIdle,     // Waits for Start().
    kDown,     // Waits for a path, for the lanes to be empty, and for the fences.
    kUp,       // Requests flow.
    kClosing,  // Waits for all paths, then for all lanes, to shut down.
    kClosed    // Nothing is left.
  };
  // The message that asks the server to end a path; one at a time.
  struct Fence final : public ClientRequest {
    explicit Fence(Impl& its_impl) : impl(its_impl) {}
    void OnDone(int error) override { impl.OnFenceDone(error); }
    Impl& impl;
    proto::FencePath fence;
    bool outstanding = false;
    std::uint32_t target_id = 0, target_round = 0;
    std::uint32_t carrier_id = 0;
    std::uint32_t carrier_round = 0;
  };

  // ClientPathOwner
  [[nodiscard]] bool MayCreateSession(const ClientPath& path) const override;
  absl::StatusOr<SessionLimits> OnPathOffer(ClientPath& path, const SessionLimits& offer) override;
  void FindWay(ClientPath& path) override;
  void OnPathUp(ClientPath& path) override;
  void OnPathDown(ClientPath& path, const absl::Status& why) override;
  void OnPathFailed(ClientPath& path, const absl::Status& why, bool fatal) override;
  void OnPathDrained(ClientPath& path) override;
  void OnPathShutDown(ClientPath& path) override;
  [[nodiscard]] bool HasOtherPathUp(const ClientPath& path) const override;
  [[nodiscard]] bool IsOtherPathAlive(const ClientPath& path, std::uint32_t cid,
                                      std::uint64_t after_look) const override;
  void AskOtherPaths(const ClientPath& path, std::uint32_t cid) override;
  [[nodiscard]] bool IsLaneBusy(std::uint32_t cid) const override;

  // LaneObserver
  void OnLaneAborted(std::uint32_t cid) override;
  void OnLaneShutDown(std::uint32_t cid) override;

  void StartOthers();
  void OnPathFound(std::uint32_t id, absl::StatusOr<PathOptions> found);
  ClientPath& NewPath(const PathOptions& options);
  [[nodiscard]] ClientPath* FindPath(std::uint32_t id);
  [[nodiscard]] ClientPath* Carrier();  // A path that is up, or null.
  void GoDown(const absl::Status& why);
  void TryGoUp();
  // Fences one path that needs it, if it can be done now; false if none needs it any more.
  bool AdvanceFences();
  void SendFence(ClientPath& target, ClientPath& carrier);
  void OnFenceDone(int error);
  void OnFenceTimer();
  void OnFenced(ClientPath& path);
  void StartProbes();
  void OnProbeTimer();
  void ShutDownLanes();
  template <class F>
  void PostToLanes(F f) {
    for (ClientLane* lane : lane_list_) {
      lane->port().reactor().Post([lane, f]() mutable { f(*lane); });
    }
  }

  ClientSessionOptions options_;  // Paths refer to it.
  Reactor& reactor_;
  ClientSessionObserver& observer_;
  Prng prng_;
  const proto::Uuid session_uuid_;
  std::vector<std::unique_ptr<ClientLane>> lanes_;  // By cid.
  std::vector<ClientLane*> lane_list_;
  std::vector<std::unique_ptr<ClientPath>> paths_;  // In order of creation.
  std::uint32_t next_path_id_ = 0;
  std::uint32_t numbers_used_ = 0;  // A bit per number of a path.
  State state_ = State::kIdle;
  bool close_requested_ = false;
  std::uint64_t looks_ = 0;  // At all paths, so far.
  bool was_up_ = false;      // At least once: the limits are fixed.
  PathPolicyKind policy_ = PathPolicyKind::kAdaptive;
  std::uint32_t lanes_aborting_ = 0;  // That have not said yet that they are empty.
  std::uint32_t lanes_pending_ = 0;   // That have not shut down yet.
  SessionLimits limits_;
  Timer start_timer_;
  Timer probe_timer_;  // While several paths are up.
  Fence fence_;
  Timer fence_timer_;              // Of the answer, or until the next attempt.
  ClientSessionStats gone_stats_;  // Of paths that were removed, and the session's own.
  // For answers that come when we are gone.
  const std::shared_ptr<const bool> alive_ = std::make_shared<const bool>(true);
};

}  // namespace ibnbd::rtrs
