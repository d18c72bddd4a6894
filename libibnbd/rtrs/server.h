// SPDX-License-Identifier: Apache-2.0
// The RTRS server: listens, judges connection requests, and keeps the table of sessions and their
// paths.  Control thread throughout; the lanes of a path live on their own reactors.
//
// Limits hold for everything a peer can make us keep: sessions, paths, connections, handshakes in
// progress, connection requests that wait, chunk memory, log lines.  What is over a limit is
// refused.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "proto/rtrs.h"
#include "reactor/timers.h"
#include "rtrs/log_limiter.h"
#include "rtrs/port.h"
#include "rtrs/server_path.h"
#include "rtrs/server_service.h"

namespace ibnbd::rtrs {

struct ServerOptions {
  ServerPathOptions path;
  std::uint32_t sessions_max = 0;
  std::uint32_t connections_per_session_max = 0;
  std::uint32_t handshakes_max = 0;  // Paths between their first connection and INFO_RSP.
  // Connections that such paths have or may still bring: each costs memory before anybody has said
  // who it is.
  std::uint32_t handshake_connections_max = 0;
  std::uint64_t chunk_memory_max = 0;
};

struct ServerStats {
  std::uint64_t sessions = 0;  // Named and not yet gone.
  std::uint64_t sessions_total = 0;
  std::uint64_t connects_refused = 0;
  std::uint64_t paths_broken = 0;  // Not counting those that Stop() closed.
  std::uint64_t chunk_memory = 0;
};

class Server final : public PortClient, public ServerPathOwner {
 public:
  // `ports[0]` is the control reactor's.
  Server(std::vector<Port*> ports, const ServerOptions& options, ServerService& service);
  ~Server() override;  // Requires: closed().

  absl::StatusOr<SocketAddress> Listen(const SocketAddress& address);
  // Stops listening, drains every path and closes it; what has not been drained when three quarters
  // of the time are over is broken off.  `done` is called when all is gone, at the latest at the
  // deadline.
  void Stop(std::int64_t deadline_ns, std::function<void()> done);
  [[nodiscard]] bool closed() const { return sessions_.empty() && listeners_.empty(); }

  [[nodiscard]] const ServerStats& stats() const { return stats_; }
  struct SessionInfo {
    std::string name, peer;
    std::uint32_t connections = 0, devices = 0, executing = 0;
  };
  [[nodiscard]] std::vector<SessionInfo> sessions() const;

  // PortClient: the listeners'.
  void OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) override;
  void OnCmEvent(fabric::CmEvent& event) override;

  // ServerPathOwner
  absl::Status OnPathNamed(ServerPath& path, const proto::InfoReq& info) override;
  ServerSessionService& SessionServiceOf(ServerPath& path) override;
  ChunkFence& FenceOf(ServerPath& path) override;
  bool TakeChunkMemory(std::uint64_t byte_count) override;
  void ReturnChunkMemory(std::uint64_t byte_count) override;
  void OnPathLeftHandshake(ServerPath& path) override;
  void OnPathBroken(ServerPath& path, const std::string& why, Blame blame) override;
  void OnPathDrained(ServerPath& path) override;
  void OnPathClosed(ServerPath& path) override;
  void FencePath(ServerPath& carrier, const proto::Uuid& sess_uuid, proto::le16 recon_cnt,
                 PathFencer::Done done) override;

 private:
  struct Session {
    std::string name;  // Empty until a path has introduced itself; then as it said:
    std::uint64_t client_id = 0;
    std::uint32_t incarnation = 0;
    std::unique_ptr<ServerSessionService> service;
    std::unique_ptr<ChunkFence> fence;  // Made with the service; outlives the paths.
    // By sess_uuid.  An ordered map: what happens to all paths happens in the same order every
    // time.
    std::map<proto::Uuid, std::unique_ptr<ServerPath>> paths;
  };
  struct Held {  // A client that is back before its old path is gone: it waits for the fence.
    std::unique_ptr<fabric::Incoming> incoming;
    proto::ConnReq request;
    std::int64_t deadline_ns = 0;
  };

  struct FenceWait {  // A client that wants to know when one of its paths is gone.
    proto::Uuid paths_uuid;
    proto::Uuid carrier;  // The path over which it asked, and is answered.
    proto::Uuid target;
    std::int64_t deadline_ns = 0;
    PathFencer::Done done;
  };

  void Judge(std::unique_ptr<fabric::Incoming> incoming);
  void JudgeFirstConnection(std::unique_ptr<fabric::Incoming> incoming,
                            const proto::ConnReq& request);
  void JudgeKnownPath(std::unique_ptr<fabric::Incoming> incoming, const proto::ConnReq& request,
                      ServerPath& path);
  int CheckLimits(const proto::ConnReq& request, const char** why) const;
  [[nodiscard]] bool HasHandshakeRoom(std::uint32_t connection_count) const;
  void MakeHandshakeRoom(std::uint32_t connection_count);
  void StartPath(std::unique_ptr<fabric::Incoming> incoming, const proto::ConnReq& request);
  void Refuse(fabric::Incoming& incoming, int error, const std::string& why);
  void Hold(std::unique_ptr<fabric::Incoming> incoming, const proto::ConnReq& request);
  void RefuseLateHeld();
  void ReconsiderHeld(const proto::Uuid& sess_uuid);
  // Answers those fence waits for which `f` says so.
  template <class F>
  void EndFenceWaits(int error, F f);
  void OnPathGone(const proto::ConnReq& path);
  void OnCarrierBroken(const proto::ConnReq& path);
  void RefuseLateFences();
  void LogPeer(LogLevel level, const std::string& line);  // Rate-limited.
  ServerPath* FindPath(const proto::ConnReq& request);
  template <class F>
  void ForEachPath(F f) {
    for (auto& [session_id, session] : sessions_) {
      for (auto& [path_id, path] : session.paths) f(*path);
    }
  }
  absl::Status FreeName(const proto::InfoReq& info);
  void BreakAll();
  void FinishStop();
  [[nodiscard]] Reactor& reactor() const { return ports_[0]->reactor(); }

  const std::vector<Port*> ports_;
  const ServerOptions options_;
  ServerService& service_;
  std::uint64_t context_ = 0;
  std::vector<std::unique_ptr<fabric::Listener>> listeners_;
  std::map<proto::Uuid, Session> sessions_;  // By paths_uuid.
  std::vector<Held> held_;
  std::vector<FenceWait> fence_waits_;
  std::uint32_t handshake_count_ = 0;
  std::uint32_t handshake_connection_count_ = 0;  // Promised to paths in handshake.
  std::uint32_t connection_count_ = 0;            // Promised to paths that exist.
  LogLimiter log_limiter_;
  ServerStats stats_;
  Timer held_timer_;
  Timer fence_timer_;
  Timer stop_timer_;
  bool stopping_ = false;
  bool breaking_off_ = false;
  std::int64_t stop_deadline_ns_ = 0;
  std::function<void()> stop_done_;
};

}  // namespace ibnbd::rtrs
