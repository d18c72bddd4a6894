// SPDX-License-Identifier: Apache-2.0
// Sessions, paths and the end of them; connection requests are judged in server_connect.cc.
#include "rtrs/server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/canary.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"

namespace ibnbd::rtrs {
namespace {
constexpr std::uint32_t kLogLinesPerSecond = 20;
}  // namespace

Server::Server(std::vector<Port*> ports, const ServerOptions& options, ServerService& service)
    : ports_(std::move(ports)),
      options_(options),
      service_(service),
      context_(ports_[0]->Attach(*this)),
      log_limiter_(kLogLinesPerSecond),
      held_timer_(reactor().timers(), [this] { RefuseLateHeld(); }),
      fence_timer_(reactor().timers(), [this] { RefuseLateFences(); }),
      stop_timer_(reactor().timers(), [this] {
        if (breaking_off_) return FinishStop();
        BreakAll();
      }) {}

Server::~Server() {
  CHECK(closed());
  ports_[0]->Detach(context_);
}

absl::StatusOr<SocketAddress> Server::Listen(const SocketAddress& address) {
  ASSIGN_OR_RETURN(std::unique_ptr<fabric::Listener> listener,
                   ports_[0]->poller().Listen(address, context_));
  const SocketAddress bound = listener->local_address();
  listeners_.push_back(std::move(listener));
  return bound;
}

void Server::OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) {
  (void)cookie;  // A listener posts nothing.
  (void)completion;
}

void Server::OnCmEvent(fabric::CmEvent& event) {
  if (event.kind == fabric::CmEvent::Kind::kIncoming) Judge(std::move(event.incoming));
}

ServerPath* Server::FindPath(const proto::ConnReq& request) {
  const auto session = sessions_.find(request.paths_uuid);
  if (session == sessions_.end()) return nullptr;
  const auto path = session->second.paths.find(request.sess_uuid);
  return path == session->second.paths.end() ? nullptr : path->second.get();
}

// A name belongs to one session at a time.  One that is about to end keeps it until nothing of it
// executes any more: whoever comes next under its name may be what was killed and started again,
// and issue again what is still under way.  One that works is ended for its own client, come back
// in another process, and for nobody else.
absl::Status Server::FreeName(const proto::InfoReq& info) {
  const absl::string_view name(proto::NameOf(info.name).data(), proto::NameOf(info.name).size());
  absl::Status result;
  for (const auto& [id, other] : sessions_) {
    if (other.service == nullptr || other.name != name) continue;
    const bool superseded = info.client_id.get() != 0 && other.client_id == info.client_id.get() &&
                            other.incarnation <= info.incarnation.get();
    for (const auto& [path_id, path] : other.paths) {
      if (path->closing()) continue;
      if (!superseded) {
        return absl::AlreadyExistsError(
            absl::StrCat("session name ", name, " is in use from ", path->peer()));
      }
      SIM_MARK("server: a restarted client ended its old session");
      path->Break("its client was started again", Blame::kNetwork);
    }
    if (IBNBD_CANARY(13)) continue;
    SIM_MARK("server: waited for the session before");
    result = absl::UnavailableError("the session before it under its name is ending");
  }
  return result;
}

absl::Status Server::OnPathNamed(ServerPath& path, const proto::InfoReq& info) {
  Session& session = sessions_.at(path.request().paths_uuid);
  const std::string name(proto::NameOf(info.name));
  if (session.service != nullptr) {
    return session.name == name
               ? absl::OkStatus()
               : absl::InvalidArgumentError("info_req: the session has another name");
  }
  RETURN_IF_ERROR(FreeName(info));
  session.name = name;
  session.client_id = info.client_id.get();
  session.incarnation = info.incarnation.get();
  session.service = service_.OpenSession(
      {.name = name, .client_id = session.client_id, .paths_uuid = path.request().paths_uuid});
  session.fence = std::make_unique<ChunkFence>(options_.path.geometry.queue_depth);
  ++stats_.sessions;
  ++stats_.sessions_total;
  LogPeer(LogLevel::kInfo, absl::StrCat("session ", name, " opened from ", path.peer()));
  return absl::OkStatus();
}

ServerSessionService& Server::SessionServiceOf(ServerPath& path) {
  return *sessions_.at(path.request().paths_uuid).service;
}

ChunkFence& Server::FenceOf(ServerPath& path) {
  return *sessions_.at(path.request().paths_uuid).fence;
}

bool Server::TakeChunkMemory(std::uint64_t byte_count) {
  if (byte_count > options_.chunk_memory_max - stats_.chunk_memory) return false;
  stats_.chunk_memory += byte_count;
  return true;
}

void Server::ReturnChunkMemory(std::uint64_t byte_count) { stats_.chunk_memory -= byte_count; }

void Server::OnPathLeftHandshake(ServerPath& path) {
  --handshake_count_;
  handshake_connection_count_ -= path.request().cid_num.get();
}

void Server::OnPathBroken(ServerPath& path, const std::string& why, Blame blame) {
  OnCarrierBroken(path.request());
  if (stopping_) return;
  ++stats_.paths_broken;
  const std::string& name = sessions_.at(path.request().paths_uuid).name;
  const std::string line = absl::StrCat("path from ", path.peer(), " of ",
                                        name.empty() ? "a session without a name yet" : "session ",
                                        name, " ended: ", why);
  LogPeer(blame == Blame::kPeer ? LogLevel::kWarn : LogLevel::kInfo, line);
}

void Server::OnPathDrained(ServerPath& path) { path.Break("server is stopping", Blame::kNetwork); }

void Server::OnPathClosed(ServerPath& path) {
  const proto::ConnReq closed = path.request();
  const proto::Uuid sess_uuid = closed.sess_uuid;
  const auto session = sessions_.find(path.request().paths_uuid);
  connection_count_ -= path.request().cid_num.get();
  session->second.paths.erase(sess_uuid);
  if (session->second.paths.empty()) {
    if (session->second.service != nullptr) {
      --stats_.sessions;
      LogPeer(LogLevel::kInfo, absl::StrCat("session ", session->second.name, " closed"));
    }
    sessions_.erase(session);
  }
  OnPathGone(closed);
  ReconsiderHeld(sess_uuid);
  if (stopping_ && sessions_.empty()) FinishStop();
}

void Server::Stop(std::int64_t deadline_ns, std::function<void()> done) {
  CHECK(!stopping_);
  stopping_ = true;
  stop_done_ = std::move(done);
  stop_deadline_ns_ = reactor().clock().NowNs() + deadline_ns;
  listeners_.clear();
  for (Held& held : std::exchange(held_, {})) {
    Refuse(*held.incoming, -ESHUTDOWN, "server is stopping");
  }
  held_timer_.Cancel();
  stop_timer_.ArmAt(stop_deadline_ns_ - deadline_ns / 4);
  if (sessions_.empty()) {
    // Not from inside this call: callers may not expect that.
    stop_timer_.Cancel();
    breaking_off_ = true;
    stop_timer_.ArmAt(reactor().now_ns());
    return;
  }
  ForEachPath([](ServerPath& path) { path.Drain(); });
}

void Server::BreakAll() {
  SIM_MARK("server: stop broke off what did not drain");
  breaking_off_ = true;
  stop_timer_.ArmAt(stop_deadline_ns_);
  ForEachPath([](ServerPath& path) { path.Break("server is stopping", Blame::kNetwork); });
}

void Server::FinishStop() {
  stop_timer_.Cancel();
  if (stop_done_ != nullptr) std::exchange(stop_done_, nullptr)();
}

std::vector<Server::SessionInfo> Server::sessions() const {
  std::vector<SessionInfo> infos;
  for (const auto& [id, session] : sessions_) {
    if (session.service == nullptr) continue;
    SessionInfo info;
    info.name = session.name;
    info.devices = session.service->device_count();
    for (const auto& [path_id, path] : session.paths) {
      if (!info.peer.empty()) info.peer += ' ';
      info.peer += path->peer();
      info.connections += path->connection_count();
      info.executing += path->executing_count();
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

}  // namespace ibnbd::rtrs
