// SPDX-License-Identifier: Apache-2.0
// Who is let in: the judgement of connection requests (the checks and errors of the kernel server,
// in its order, and our limits), and the fence: a client that comes back is accepted only when
// nothing of its old path can execute or land any more.
#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/canary.h"
#include "base/fnv.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"
#include "rtrs/server.h"

namespace ibnbd::rtrs {
namespace {

constexpr std::uint32_t kConnectionsMax = 8192;  // Below what one Port has room for.
constexpr std::size_t kHeldMax = 1024;
// An honest client introduces itself within milliseconds: after this long a handshake has to make
// room if others need it.
constexpr std::int64_t kHandshakePatienceNs = kNsPerSecond;

// Which reactor serves connection `cid`: neighbours on neighbouring reactors, sessions spread.
std::vector<std::uint32_t> AssignReactors(const proto::ConnReq& request, std::size_t count,
                                          std::uintptr_t salt) {
  const std::uint64_t hash = Fnv1a(std::as_bytes(std::span(request.paths_uuid))) + salt;
  std::vector<std::uint32_t> reactors(request.cid_num.get(), 0);
  for (std::size_t cid = 1; cid < reactors.size(); ++cid) {
    reactors[cid] = static_cast<std::uint32_t>((cid - 1 + hash) % count);
  }
  return reactors;
}

}  // namespace

void Server::Refuse(fabric::Incoming& incoming, int error, const std::string& why) {
  ++stats_.connects_refused;
  incoming.Reject(proto::AsBytes(proto::MakeConnReject(error)));
  if (!stopping_) {
    LogPeer(LogLevel::kWarn, absl::StrCat("connection from ", incoming.peer_address().ToString(),
                                          " refused: ", why));
  }
}

void Server::LogPeer(LogLevel level, const std::string& line) {
  if (!LogEnabled(level) || !log_limiter_.Allow(reactor().now_ns())) return;
  const std::uint64_t suppressed = log_limiter_.TakeSuppressedCount();
  if (suppressed > 0) LOG_WARN(suppressed, " lines of this kind were suppressed");
  LogLine(level, line);
}

void Server::Judge(std::unique_ptr<fabric::Incoming> incoming) {
  proto::ConnReq request;
  const char* reason = proto::DecodeConnReq(incoming->private_data(), &request);
  if (reason != nullptr) return Refuse(*incoming, -ECONNRESET, reason);
  if (stopping_) return Refuse(*incoming, -ESHUTDOWN, "server is stopping");
  // Each round of a path counts as another path, so that nobody waits for the fence.
  if (IBNBD_CANARY(1)) request.sess_uuid[0] ^= static_cast<std::uint8_t>(request.recon_cnt.get());
  if (request.cid.get() == 0) return JudgeFirstConnection(std::move(incoming), request);
  ServerPath* path = FindPath(request);
  if (path == nullptr) return Refuse(*incoming, -ECONNRESET, "connection 0 must come first");
  reason = path->CheckConnect(request);
  if (reason != nullptr) return Refuse(*incoming, -ECONNRESET, reason);
  path->Accept(request.cid.get(), std::move(incoming));
}

void Server::JudgeFirstConnection(std::unique_ptr<fabric::Incoming> incoming,
                                  const proto::ConnReq& request) {
  if (ServerPath* path = FindPath(request); path != nullptr) {
    return JudgeKnownPath(std::move(incoming), request, *path);
  }
  if (!sessions_.contains(request.paths_uuid) && !request.first_conn()) {
    return Refuse(*incoming, -ENXIO, "session is unknown");
  }
  MakeHandshakeRoom(request.cid_num.get());
  const char* why = nullptr;
  const int error = CheckLimits(request, &why);
  if (error != 0) return Refuse(*incoming, error, why);
  StartPath(std::move(incoming), request);
}

// The client has given its old path up, whether we have noticed or not: end it and let the client
// in when it is gone.
void Server::JudgeKnownPath(std::unique_ptr<fabric::Incoming> incoming,
                            const proto::ConnReq& request, ServerPath& path) {
  if (!path.closing()) {
    const proto::le16 old_round = path.request().recon_cnt;
    if (IsNewerRound(old_round, request.recon_cnt)) {
      return Refuse(*incoming, -ECONNRESET, "an older round than the path's");
    }
    if (path.connecting() && request.recon_cnt == old_round) {
      return Refuse(*incoming, -ECONNRESET, "cid is connected already");
    }
    SIM_MARK("server: reconnect broke the old path");
    path.Break("client has come back", Blame::kNetwork);
  }
  SIM_MARK("server: reconnect waits for the fence");
  Hold(std::move(incoming), request);
}

int Server::CheckLimits(const proto::ConnReq& request, const char** why) const {
  const std::uint32_t cid_num = request.cid_num.get();
  std::uint32_t session_connections = cid_num;
  const auto session = sessions_.find(request.paths_uuid);
  if (session != sessions_.end()) {
    if (session->second.paths.size() >= proto::kPathsMax) {
      *why = "too many paths";
      return -ECONNRESET;
    }
    for (const auto& [id, path] : session->second.paths) {
      session_connections += path->request().cid_num.get();
    }
  } else if (sessions_.size() >= options_.sessions_max) {
    *why = "too many sessions";
    return -EMFILE;
  }
  if (session_connections > options_.connections_per_session_max) {
    *why = "too many connections in one session";
    return -E2BIG;
  }
  if (connection_count_ + cid_num > kConnectionsMax) {
    *why = "too many connections";
    return -EMFILE;
  }
  if (!HasHandshakeRoom(cid_num)) {
    *why = "too many handshakes in progress";
    return -EBUSY;
  }
  // Said here for the sake of the error; what counts is taken when the client introduces itself.
  if (options_.path.geometry.byte_count() > options_.chunk_memory_max - stats_.chunk_memory) {
    *why = "chunk memory is used up";
    return -ENOMEM;
  }
  return 0;
}

bool Server::HasHandshakeRoom(std::uint32_t connection_count) const {
  return handshake_count_ < options_.handshakes_max &&
         handshake_connection_count_ + connection_count <= options_.handshake_connections_max;
}

// Whoever connects and then says nothing keeps nobody out for longer than that.
void Server::MakeHandshakeRoom(std::uint32_t connection_count) {
  const std::int64_t late_ns = reactor().now_ns() - kHandshakePatienceNs;
  while (!HasHandshakeRoom(connection_count)) {
    ServerPath* oldest = nullptr;
    ForEachPath([&](ServerPath& path) {
      if (!path.connecting() || path.begun_ns() > late_ns) return;
      if (oldest == nullptr || path.begun_ns() < oldest->begun_ns()) oldest = &path;
    });
    if (oldest == nullptr) return;
    SIM_MARK("server: a slow handshake made room");
    oldest->Break("others need the place of its handshake", Blame::kPeer);
  }
}

void Server::StartPath(std::unique_ptr<fabric::Incoming> incoming, const proto::ConnReq& request) {
  // What depends on an address differs from run to run.
  const std::uintptr_t salt =
      IBNBD_CANARY(7) ? reinterpret_cast<std::uintptr_t>(incoming.get()) / 16 : 0;
  auto path = ServerPath::Create(options_.path, request, *incoming, ports_,
                                 AssignReactors(request, ports_.size(), salt), *this);
  if (!path.ok()) {
    return Refuse(*incoming, ErrnoFromStatus(path.status()), std::string(path.status().message()));
  }
  connection_count_ += request.cid_num.get();
  ++handshake_count_;
  handshake_connection_count_ += request.cid_num.get();
  ServerPath& started = **path;
  sessions_[request.paths_uuid].paths[request.sess_uuid] = *std::move(path);
  started.Accept(0, std::move(incoming));
}

void Server::Hold(std::unique_ptr<fabric::Incoming> incoming, const proto::ConnReq& request) {
  for (Held& held : held_) {
    if (held.request.sess_uuid != request.sess_uuid) continue;
    Refuse(*held.incoming, -ECONNRESET, "the client came back once more");
    held.incoming = std::move(incoming);
    held.request = request;
    return;
  }
  if (held_.size() >= kHeldMax) return Refuse(*incoming, -EBUSY, "too many clients wait");
  const std::int64_t deadline_ns = reactor().now_ns() + options_.path.handshake_timeout_ns;
  held_.push_back({std::move(incoming), request, deadline_ns});
  if (!held_timer_.armed()) held_timer_.ArmAt(deadline_ns);
}

void Server::RefuseLateHeld() {
  const std::int64_t now_ns = reactor().now_ns();
  std::int64_t next_ns = -1;
  std::vector<Held> late;
  for (std::size_t i = 0; i < held_.size();) {
    if (held_[i].deadline_ns <= now_ns) {
      late.push_back(std::move(held_[i]));
      held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    next_ns = next_ns < 0 ? held_[i].deadline_ns : std::min(next_ns, held_[i].deadline_ns);
    ++i;
  }
  if (next_ns >= 0) held_timer_.ArmAt(next_ns);
  for (Held& held : late) {
    Refuse(*held.incoming, -EBUSY, "requests of the old path still execute");
  }
}

void Server::ReconsiderHeld(const proto::Uuid& sess_uuid) {
  const auto held = std::find_if(held_.begin(), held_.end(), [&sess_uuid](const Held& entry) {
    return entry.request.sess_uuid == sess_uuid;
  });
  if (held == held_.end()) return;
  std::unique_ptr<fabric::Incoming> incoming = std::move(held->incoming);
  held_.erase(held);
  SIM_MARK("server: fence lifted");
  Judge(std::move(incoming));
}

}  // namespace ibnbd::rtrs
