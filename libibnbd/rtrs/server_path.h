// SPDX-License-Identifier: Apache-2.0
// One path of a session, server side: its connections (lanes), its chunks, its heartbeat, its end.
// Lives on the control thread.  A path breaks as a whole: when any of its connections does, when
// the client is silent for too long, or when the client comes back with a new round of connections.
// It is gone only when nothing of it executes and nothing of the network touches its memory; the
// same client is let in again after that, not before (the fence that fail-over relies on).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/arena.h"
#include "proto/rtrs.h"
#include "reactor/timers.h"
#include "rtrs/chunk_pool.h"
#include "rtrs/heartbeat.h"
#include "rtrs/port.h"
#include "rtrs/server_lane.h"
#include "rtrs/server_service.h"

namespace ibnbd::rtrs {

class ServerPath;

// Whether round `a` of a path (ConnReq::recon_cnt) was begun after round `b`; the counter wraps.
[[nodiscard]] inline bool IsNewerRound(proto::le16 a, proto::le16 b) {
  return static_cast<std::int16_t>(static_cast<std::uint16_t>(a.get() - b.get())) > 0;
}

// What a path asks of the table it is in.  Control thread.
class ServerPathOwner {
 public:
  // The client has said its name.  Makes the session known to the service, or says why not:
  // kAlreadyExists, another client has that name; kUnavailable, what had it is about to end.
  virtual absl::Status OnPathNamed(ServerPath& path, const proto::InfoReq& info) = 0;
  virtual ServerSessionService& SessionServiceOf(ServerPath& path) = 0;
  virtual ChunkFence& FenceOf(ServerPath& path) = 0;  // Its session's.
  // Accounts `byte_count` of chunk memory; false if there is no more.
  virtual bool TakeChunkMemory(std::uint64_t byte_count) = 0;
  virtual void ReturnChunkMemory(std::uint64_t byte_count) = 0;
  virtual void OnPathLeftHandshake(ServerPath& path) = 0;  // Up or broken; once.
  virtual void OnPathBroken(ServerPath& path, const std::string& why, Blame blame) = 0;
  virtual void OnPathDrained(ServerPath& path) = 0;
  virtual void OnPathClosed(ServerPath& path) = 0;  // May destroy it.
  // As PathFencer's, asked over `carrier`.
  virtual void FencePath(ServerPath& carrier, const proto::Uuid& sess_uuid, proto::le16 recon_cnt,
                         PathFencer::Done done) = 0;

 protected:
  ~ServerPathOwner() = default;
};

struct ServerPathOptions {
  ChunkGeometry geometry;
  const MemoryProvider* memory = &OrdinaryPages();  // Of the chunks.
  KeyPolicy keys = KeyPolicy::kPerPath;
  std::int64_t handshake_timeout_ns = 0;
  std::int64_t heartbeat_interval_ns = 0;
  std::uint32_t heartbeat_missed_max = 0;
};

class ServerPath final : public ServerLaneOwner, public PathFencer {
 public:
  // `request` is that of connection 0.  `reactors[cid]` is the index into `ports` of each
  // connection.
  static absl::StatusOr<std::unique_ptr<ServerPath>> Create(
      const ServerPathOptions& options, const proto::ConnReq& request, fabric::Incoming& incoming,
      const std::vector<Port*>& ports, std::vector<std::uint32_t> reactors, ServerPathOwner& owner);
  ~ServerPath();  // Requires: closed.

  // Null, or the reason why this connection request is none of this path's.
  [[nodiscard]] const char* CheckConnect(const proto::ConnReq& request) const;
  void Accept(std::uint32_t cid, std::unique_ptr<fabric::Incoming> incoming);
  void Break(const std::string& why, Blame blame);
  // Finishes what executes and answers it, then reports OnPathDrained(); the caller then breaks it.
  void Drain();

  [[nodiscard]] const proto::ConnReq& request() const { return request_; }
  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::int64_t begun_ns() const { return begun_ns_; }
  [[nodiscard]] bool connecting() const { return state_ == State::kConnecting; }
  // Has chunks, or is just being given them.
  [[nodiscard]] bool granted() const { return state_ == State::kGranting || up(); }
  [[nodiscard]] bool up() const { return state_ == State::kUp || state_ == State::kDraining; }
  [[nodiscard]] bool closing() const { return state_ == State::kClosing; }
  [[nodiscard]] std::uint32_t connection_count() const { return connection_count_; }
  [[nodiscard]] std::uint32_t executing_count() const;

  // ServerLaneOwner
  void OnLaneInfo(std::span<const std::byte> message) override;
  void OnLaneGranted() override;
  void OnLaneDrained() override;
  void OnLaneBroken(const std::string& why, Blame blame) override;
  void OnLaneClosed() override;

  // PathFencer
  void FencePath(const proto::Uuid& sess_uuid, proto::le16 recon_cnt, Done done) override;

 private:
  enum class State : std::uint8_t {
    kConnecting,  // Waits for all connections and INFO_REQ.
    kGranting,    // Waits until every lane knows the chunks; then INFO_RSP goes out.
    kUp,          // Requests flow.
    kDraining,    // Waits until everything that executes has been answered.
    kClosing      // All lanes were told to break; waits until all are closed.
  };
  ServerPath(const ServerPathOptions& options, const proto::ConnReq& request, std::string peer,
             const std::vector<Port*>& ports, std::vector<std::uint32_t> reactors,
             ServerPathOwner& owner);
  absl::Status PrepareInfoMemory();
  absl::Status OpenChunks();
  absl::Status ReadInfo(std::span<const std::byte> message);
  void JoinSession();
  void LeaveHandshake();
  void OnHeartbeatTick();
  void OnLaneReaped();
  template <class F>
  void ForEachLane(F f);  // Runs f(lane) on the lane's thread.
  [[nodiscard]] Reactor& control() const { return ports_[0]->reactor(); }

  const ServerPathOptions options_;
  const proto::ConnReq request_;
  const std::string peer_;
  const std::vector<Port*>& ports_;
  const std::vector<std::uint32_t> reactors_;
  ServerPathOwner& owner_;
  const std::int64_t begun_ns_;

  State state_ = State::kConnecting;
  bool in_handshake_ = true;
  std::uint64_t chunk_memory_ = 0;  // Taken from the owner.
  // What is lent to this client, nobody else can reach (F13).  Outlives all that is below.
  std::unique_ptr<fabric::Domain> domain_;
  Arena info_arena_;
  std::unique_ptr<fabric::Region> info_region_;
  std::size_t info_rsp_size_ = 0;
  std::unique_ptr<ServerPathService> service_;
  std::unique_ptr<ChunkPool> pool_;                 // Destroyed before service_, after lanes_.
  std::vector<std::unique_ptr<ServerLane>> lanes_;  // By cid; null until it is accepted.
  std::uint32_t connection_count_ = 0;              // Lanes made.
  std::uint32_t closed_count_ = 0;
  std::uint32_t reaped_count_ = 0;
  std::uint32_t grants_awaited_ = 0;
  std::uint32_t drains_awaited_ = 0;
  proto::InfoReq info_;  // As the client said.
  Timer handshake_timer_;
  Timer name_timer_;
  Timer heartbeat_timer_;
  std::uint64_t receives_seen_ = 0;
  Heartbeat heartbeat_;
};

}  // namespace ibnbd::rtrs
