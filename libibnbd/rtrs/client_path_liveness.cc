// SPDX-License-Identifier: Apache-2.0
// Whether anybody is there, at the other end of a path and of each of its connections: one may be
// stuck while the others work, as when a network spreads connections over links and loses one of
// them.  Control thread.
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/mark.h"
#include "base/status_macros.h"
#include "rtrs/client_path.h"

namespace ibnbd::rtrs {

std::int64_t HeartbeatInterval(const ClientSessionOptions& session, const SessionLimits& limits) {
  if (session.heartbeat_interval_ns > 0) return session.heartbeat_interval_ns;
  return limits.peer_is_ibnbd ? kHeartbeatNsIbnbd : kHeartbeatNsKernel;
}

std::uint64_t ClientPath::ReceiveCount() const {
  std::uint64_t count = 0;
  for (const auto& connection : connections_) count += connection->receive_count();
  return count;
}

void ClientPath::RestartWatches() {
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    for (Watch* watch : {&beats_[cid], &probes_[cid]}) {
      watch->heartbeat.Reset();
      watch->receive_count = connections_[cid]->receive_count();
      watch->looks_dead = false;
    }
  }
  receive_count_ = ReceiveCount();
  RestartHeartbeat();
}

void ClientPath::RestartHeartbeat() {
  if (state_ != State::kUp) return;
  heartbeat_.Reset();
  for (Watch& watch : beats_) watch.heartbeat.Reset();
  heartbeat_timer_.ArmAfter(HeartbeatInterval(session_, limits_));
}

void ClientPath::SendHeartbeat(std::uint32_t cid) {
  ++stats_.heartbeats_sent;
  if (cid == 0 && heartbeat_sent_ns_ == 0) heartbeat_sent_ns_ = reactor_.now_ns();
  PostTo(cid, [round = round_](ClientConnection& connection) { connection.SendHeartbeat(round); });
}

void ClientPath::OnHeartbeatAck(std::uint32_t round) {
  if (round != round_ || state_ != State::kUp || heartbeat_sent_ns_ == 0) return;
  stats_.heartbeat_rtt_ns = reactor_.now_ns() - std::exchange(heartbeat_sent_ns_, 0);
}

// The path as a whole, as RTRS has it; then, with our own servers, which answer heartbeats on any
// connection, those of IO that owe an answer.  A server whose control thread alone is held up, as
// by the open of a file on a hung NFS, goes on with IO, and control messages have bounds of their
// own.
void ClientPath::OnHeartbeatTimer() {
  const std::uint64_t count = ReceiveCount();
  if (count != std::exchange(receive_count_, count)) heartbeat_.OnSignOfLife();
  switch (heartbeat_.Tick()) {
    case Heartbeat::Verdict::kDead:
      SIM_MARK("client: heartbeats ended");
      return Break(ErrnoStatus(
          ETIMEDOUT, absl::StrCat("no sign of life for ", heartbeat_.missed(), " heartbeats")));
    case Heartbeat::Verdict::kSend:
      SendHeartbeat(0);
      break;
    case Heartbeat::Verdict::kWait:
      ++stats_.heartbeats_missed;
      AskIoConnections();
      break;
  }
  for (std::uint32_t cid = 1; limits_.peer_is_ibnbd && cid < connections_.size(); ++cid) {
    if (!LooksDead(beats_[cid], cid, inflight(cid) > 0)) continue;
    SIM_MARK("client: heartbeats ended");
    return Break(
        ErrnoStatus(ETIMEDOUT, absl::StrCat("connection ", cid, ": no sign of life for ",
                                            beats_[cid].heartbeat.missed(), " heartbeats")));
  }
  heartbeat_timer_.ArmAfter(HeartbeatInterval(session_, limits_));
}

// Connection 0 says nothing.  Nor do the others of an idle session, unless they are asked, one by
// one: it must not end because the server's control thread is held up.
void ClientPath::AskIoConnections() {
  const auto io_connections = static_cast<std::uint32_t>(connections_.size()) - 1;
  if (!limits_.peer_is_ibnbd || io_connections == 0) return;
  SendHeartbeat(1 + heartbeat_.missed() % io_connections);
}

// One interval has passed.  Who says something by itself is not asked.  An answer may be there
// already and wait for the lane's thread, which a program of our user's runs when it likes: an
// interval in which that thread did nothing says nothing.
bool ClientPath::LooksDead(Watch& watch, std::uint32_t cid, bool owes) {
  const std::uint64_t count = connections_[cid]->receive_count();
  if (count != std::exchange(watch.receive_count, count)) {
    watch.heartbeat.OnSignOfLife();
    return false;
  }
  const bool asked = watch.heartbeat.missed() > 0;
  if (!owes && !asked) return false;
  const std::uint32_t notices = connections_[cid]->notices();
  if (asked && notices == watch.notices) return false;
  watch.notices = notices;
  const Heartbeat::Verdict verdict = watch.heartbeat.Tick();
  if (verdict == Heartbeat::Verdict::kSend) SendHeartbeat(cid);
  if (verdict == Heartbeat::Verdict::kWait) {
    PostTo(cid, [](ClientConnection& connection) { connection.Notice(); });
  }
  return verdict == Heartbeat::Verdict::kDead;
}

// With another path at hand there is no reason to wait for the heartbeats' verdict: a path one of
// whose connections says nothing, while its lane has requests in flight and the same connection of
// another path speaks, is given up.  These two are served by the same thread of the server: one
// that is slow is silent on both, one with a slow disk answers heartbeats.
void ClientPath::Look(std::uint64_t look) {
  if (!limits_.peer_is_ibnbd) return;
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    Watch& watch = probes_[cid];
    const std::uint32_t missed = watch.heartbeat.missed();
    const std::uint64_t count = watch.receive_count;
    watch.looks_dead = LooksDead(watch, cid, owner_.IsLaneBusy(cid));
    if (watch.receive_count != count) watch.alive_look = look;
    if (missed == 1 && watch.heartbeat.missed() == 2) {
      // The question is out for certain.  What others say from now on is later than it.
      watch.asked_look = look;
      owner_.AskOtherPaths(*this, cid);
    }
  }
}

// What another path said before this one was asked is no evidence: the server may have stalled in
// between.
void ClientPath::Judge() {
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    Watch& watch = probes_[cid];
    if (!std::exchange(watch.looks_dead, false)) continue;
    if (!owner_.IsOtherPathAlive(*this, cid, watch.asked_look)) {
      watch.heartbeat.Reset();  // When the server is back, it has its time again.
      continue;
    }
    SIM_MARK("client: a silent path was given up");
    return Break(ErrnoStatus(ETIMEDOUT, absl::StrCat("connection ", cid,
                                                     ": no sign of life, while another path is "
                                                     "alive")));
  }
}

}  // namespace ibnbd::rtrs
