// SPDX-License-Identifier: Apache-2.0
#include "rtrs/client_path.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"
#include "rtrs/client_lane.h"

namespace ibnbd::rtrs {
namespace {

constexpr std::uint32_t kControlPermitsMax = 8;  // DealPermits().

}  // namespace

bool IsKnown(const PathOptions& path) { return path.text.empty() || path.server.length != 0; }

std::string TargetOf(const PathOptions& path) {
  return IsKnown(path) ? path.server.ToString() : path.text;
}

proto::Uuid DrawUuid(Prng& prng) {
  proto::Uuid uuid;
  for (std::size_t i = 0; i < uuid.size(); i += 8) {
    const std::uint64_t value = prng.Next();
    for (std::size_t j = 0; j < 8; ++j) uuid[i + j] = static_cast<std::uint8_t>(value >> (8 * j));
  }
  uuid[6] = static_cast<std::uint8_t>((uuid[6] & 0x0f) | 0x40);  // Version 4, variant 1: as
  uuid[8] = static_cast<std::uint8_t>((uuid[8] & 0x3f) | 0x80);  // everybody's random UUIDs.
  return uuid;
}

ClientPath::ClientPath(const ClientSessionOptions& session, const PathOptions& options,
                       std::uint32_t id, std::uint32_t number, const proto::Uuid& session_uuid,
                       Prng prng, std::span<ClientLane* const> lanes, Reactor& reactor,
                       ClientPathOwner& owner)
    : session_(session),
      options_(options),
      id_(id),
      number_(number),
      session_uuid_(session_uuid),
      uuid_(DrawUuid(prng)),
      reactor_(reactor),
      owner_(owner),
      found_(IsKnown(options_)),
      backoff_(session.backoff_ns_min, session.backoff_ns_max, prng),
      heartbeat_(kHeartbeatMissedMax),
      beats_(lanes.size(), Watch(kHeartbeatMissedMax - 1)),
      probes_(lanes.size(), Watch(kProbesMissedMax)),
      round_timer_(reactor_.timers(), [this] { Break(absl::DeadlineExceededError(WhatIsLate())); }),
      backoff_timer_(reactor_.timers(), [this] { StartRound(); }),
      heartbeat_timer_(reactor_.timers(), [this] { OnHeartbeatTimer(); }) {
  for (ClientLane* lane : lanes) {
    connections_.push_back(std::make_unique<ClientConnection>(*lane, reactor_, *this, number_));
  }
  done_.resize(connections_.size());
}

ClientPath::~ClientPath() { CHECK(state_ == State::kClosed || state_ == State::kIdle); }

absl::Status ClientPath::WithName(const absl::Status& why) const {
  return Annotate(why, absl::StrCat("session ", session_.name, " to ", TargetOf(options_)));
}

std::string ClientPath::WhatIsLate() const {
  if (state_ == State::kFinding) return "its name was not looked up in time";
  if (state_ == State::kInfo) return "connect: no INFO_RSP in time";
  return absl::StrCat("connect: connection ", next_cid_, " not established in time");
}

void ClientPath::Start() {
  CHECK(state_ == State::kIdle);
  StartRound();
}

void ClientPath::StartRound() {
  ++round_;
  ++stats_.connect_rounds;
  state_ = State::kFinding;
  next_cid_ = 0;
  hurry_ = enabled_ = first_conn_ = false;
  addresses_.clear();
  round_timer_.ArmAfter(session_.connect_timeout_ns);
  if (found_) return ConnectFirst();
  // An answer that a former round did not wait for is as good.
  if (!std::exchange(finding_, true)) owner_.FindWay(*this);
}

void ClientPath::OnFound(absl::StatusOr<PathOptions> found) {
  finding_ = false;
  if (state_ != State::kFinding) return;
  if (!found.ok()) return Break(found.status());
  options_.server = found->server;
  options_.source = found->source;
  found_ = true;
  ConnectFirst();
}

void ClientPath::ConnectFirst() {
  state_ = State::kConnecting;
  first_conn_ = owner_.MayCreateSession(*this);
  ConnectNext();
}

void ClientPath::ConnectNext() {
  LaneConnect connect;
  connect.round = round_;
  connect.server = options_.server;
  connect.source = options_.source;
  connect.request.cid = proto::le16(static_cast<std::uint16_t>(next_cid_));
  connect.request.cid_num = proto::le16(static_cast<std::uint16_t>(connections_.size()));
  connect.request.recon_cnt = proto::le16(static_cast<std::uint16_t>(round_));
  connect.request.sess_uuid = uuid_;
  connect.request.paths_uuid = session_uuid_;
  connect.request.flags = first_conn_ ? proto::kConnReqFirstConn : 0;
  connect.permit_count = next_cid_ == 0
                             ? kControlPermitsMax
                             : DealPermits(limits_.queue_depth, lane_count(), next_cid_).count;
  PostTo(next_cid_, [connect](ClientConnection& connection) { connection.Connect(connect); });
}

void ClientPath::OnConnected(std::uint32_t cid, std::uint32_t round, const proto::ConnRsp& offer,
                             const std::string& addresses) {
  if (round != round_ || state_ != State::kConnecting || cid != next_cid_) return;
  if (cid == 0) {
    addresses_ = addresses;
    const absl::Status status = TakeOffer(offer);
    if (!status.ok()) return Break(status, true);
  }
  if (++next_cid_ < connections_.size()) return ConnectNext();
  state_ = State::kInfo;
  PostTo(0, [round, info = MakeInfo(), depth = limits_.queue_depth](ClientConnection& connection) {
    connection.RequestInfo(round, info, depth);
  });
}

proto::InfoReq ClientPath::MakeInfo() const {
  proto::InfoReq info;
  CHECK(proto::SetName(&info.name, session_.name));
  if (limits_.peer_is_ibnbd) {
    info.client_id = proto::le64(session_.client_id);
    info.incarnation = proto::le32(session_.incarnation);
  }
  return info;
}

// Only connection 0's counts; DecodeConnRsp() has checked it for itself.
absl::Status ClientPath::TakeOffer(const proto::ConnRsp& offer) {
  SessionLimits limits;
  limits.queue_depth = offer.queue_depth.get();
  limits.io_size_max = offer.max_io_size.get() / 4096 * 4096;
  if (limits.io_size_max == 0) limits.io_size_max = offer.max_io_size.get() / 512 * 512;
  limits.chunk_size = offer.chunk_size();
  limits.peer_is_ibnbd = offer.minor() >= proto::kRtrsMinorIbnbd;
  limits.peer_fences = offer.minor() >= proto::kRtrsMinorFence;
  if (limits.queue_depth < connections_.size()) {
    return absl::FailedPreconditionError(absl::StrCat("connect: the server's queue depth ",
                                                      limits.queue_depth, " is too small for ",
                                                      connections_.size(), " connections"));
  }
  ASSIGN_OR_RETURN(limits_, owner_.OnPathOffer(*this, limits));
  has_offer_ = true;
  new_rkey_ = offer.new_rkey();
  return absl::OkStatus();
}

void ClientPath::OnInfoResponse(std::uint32_t round, const std::vector<std::byte>& message) {
  if (round != round_ || state_ != State::kInfo || pending_ != 0) return;
  std::vector<proto::ChunkAddress> chunks(limits_.queue_depth);
  const char* reason = proto::DecodeInfoRsp(message, limits_.chunk_size, chunks);
  if (reason != nullptr) return Break(absl::InternalError(absl::StrCat("connect: ", reason)));
  ActivateConnections(chunks);
}

void ClientPath::ActivateConnections(const std::vector<proto::ChunkAddress>& chunks) {
  pending_ = static_cast<std::uint32_t>(connections_.size());
  done_.assign(connections_.size(), false);
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    LaneActivation activation;
    activation.round = round_;
    activation.limits = limits_;
    activation.permits = DealPermits(limits_.queue_depth, lane_count(), cid);
    activation.new_rkey = new_rkey_;
    const auto first = chunks.begin() + activation.permits.first;
    activation.chunks.assign(first, first + activation.permits.count);
    PostTo(cid, [activation = std::move(activation)](ClientConnection& connection) mutable {
      connection.Activate(std::move(activation));
    });
  }
}

void ClientPath::OnConnectionActive(std::uint32_t cid, std::uint32_t round) {
  if (round != round_ || state_ != State::kInfo || done_[cid]) return;
  done_[cid] = true;
  if (--pending_ == 0) OnUp();
}

void ClientPath::OnUp() {
  round_timer_.Cancel();
  state_ = State::kUp;
  if (was_up_) {
    SIM_MARK("client: reconnected");
    ++stats_.reconnects;
  }
  was_up_ = true;
  fatal_ = false;
  last_error_.clear();
  up_since_ns_ = reactor_.now_ns();
  RestartWatches();
  LOG_INFO("session ", session_.name, " path ", addresses_, " up, queue depth ",
           limits_.queue_depth, ", io size ", limits_.io_size_max, ", connections ",
           connections_.size());
  owner_.OnPathUp(*this);
}

void ClientPath::Enable() {
  enabled_ = true;
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    PostTo(cid, [round = round_](ClientConnection& connection) { connection.Enable(round); });
  }
}

void ClientPath::OnConnectionBroken(std::uint32_t, std::uint32_t round, const absl::Status& why,
                                    bool fatal) {
  if (round == round_) Break(why, fatal);
}

void ClientPath::Break(const absl::Status& why, bool fatal) {
  if (state_ < State::kFinding || state_ > State::kUp) return;
  const bool was_up = state_ == State::kUp;
  state_ = State::kBroken;
  has_offer_ = false;
  round_timer_.Cancel();
  heartbeat_timer_.Cancel();
  fatal_ = fatal;
  // A server that lets us in and throws us out again is not besieged.
  if (was_up && reactor_.now_ns() - up_since_ns_ >= session_.backoff_ns_max) backoff_.Reset();
  const absl::Status named = WithName(why);
  last_error_ = std::string(named.message());
  pending_ = static_cast<std::uint32_t>(connections_.size());
  done_.assign(connections_.size(), false);
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    PostTo(cid, [round = round_](ClientConnection& connection) { connection.Break(round); });
  }
  if (was_up) {
    if (enabled_) {
      unfenced = true;
      unfenced_round = round_;
    }
    if (!close_requested_ && !hurry_) LOG_WARN("path down: ", named.message());
    return owner_.OnPathDown(*this, named);
  }
  ++stats_.connect_failures;
  found_ = options_.text.empty();  // Its name, the routes or the devices may be others now.
  if (!hurry_) LOG_INFO("connect failed: ", named.message());
  if (!close_requested_) owner_.OnPathFailed(*this, named, fatal);
}

void ClientPath::HurryBack() {
  hurry_ = true;
  if (state_ == State::kBackoff && backoff_timer_.armed()) backoff_timer_.ArmAfter(0);
}

void ClientPath::OnConnectionDrained(std::uint32_t cid, std::uint32_t round) {
  if (round != round_ || done_[cid]) return;
  // One that fails by itself may be drained before we hear that it is broken: its reports come in
  // order, and Break() makes it report once more.
  if (state_ != State::kBroken) return;
  done_[cid] = true;
  if (--pending_ == 0) OnAllDrained();
}

void ClientPath::OnAllDrained() {
  state_ = State::kBackoff;
  if (!close_requested_) {
    const std::int64_t pause_ns = fatal_ ? backoff_.Longest() : backoff_.Next();
    backoff_timer_.ArmAfter(hurry_ ? 0 : pause_ns);
  }
  owner_.OnPathDrained(*this);  // May shut us down, if we are to be closed.
}

// The owner shuts it down, once it is drained and fenced, by calling Close() again.
void ClientPath::Close() {
  close_requested_ = true;
  backoff_timer_.Cancel();
  if (state_ == State::kIdle || state_ == State::kBackoff) {
    if (!unfenced) ShutDownConnections();
    return;
  }
  Break(absl::CancelledError("closed"));
}

void ClientPath::ShutDownConnections() {
  state_ = State::kClosing;
  pending_ = static_cast<std::uint32_t>(connections_.size());
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) {
    PostTo(cid, [](ClientConnection& connection) { connection.ShutDown(); });
  }
}

void ClientPath::OnConnectionShutDown(std::uint32_t) {
  if (--pending_ > 0) return;
  state_ = State::kClosed;
  owner_.OnPathShutDown(*this);  // May destroy us.
}

Reactor& ClientPath::ReactorOf(std::uint32_t cid) {
  return connections_[cid]->lane().port().reactor();
}

std::uint32_t ClientPath::inflight(std::uint32_t cid) const {
  return connections_[cid]->counters().inflight.load(std::memory_order_relaxed);
}

std::uint32_t ClientPath::inflight() const {
  std::uint32_t count = 0;
  for (std::uint32_t cid = 0; cid < connections_.size(); ++cid) count += inflight(cid);
  return count;
}

PathInfo ClientPath::Info() const {
  PathInfo info;
  info.id = id_;
  info.text = options_.text;
  if (options_.source.has_value()) info.source = options_.source->ToString();
  if (IsKnown(options_)) info.server = options_.server.ToString();
  info.addresses = addresses_;
  info.weight = options_.weight;
  info.last_error = last_error_;
  info.reconnects = stats_.reconnects;
  info.connect_failures = stats_.connect_failures;
  info.heartbeat_rtt_ns = stats_.heartbeat_rtt_ns;
  info.inflight = inflight();
  for (const auto& connection : connections_) {
    const ClientConnection::Counters& counters = connection->counters();
    info.reads += counters.reads.load(std::memory_order_relaxed);
    info.writes += counters.writes.load(std::memory_order_relaxed);
    info.bytes += counters.bytes.load(std::memory_order_relaxed);
    info.lost += counters.lost.load(std::memory_order_relaxed);
    if (&connection == &connections_[0]) continue;  // Control messages are slow by nature.
    info.latency_ns =
        std::max(info.latency_ns, counters.estimate_ns.load(std::memory_order_relaxed));
    info.drained_by_policy |= counters.drained_by_policy.load(std::memory_order_relaxed);
  }
  switch (state_) {
    case State::kIdle:
    case State::kFinding:
    case State::kConnecting:
    case State::kInfo:
      info.state = PathState::kConnecting;
      break;
    case State::kUp:
      info.state = PathState::kUp;
      break;
    case State::kBroken:
      info.state = PathState::kDraining;
      break;
    case State::kBackoff:
      info.state = close_requested_ ? PathState::kClosing : PathState::kBackoff;
      break;
    case State::kClosing:
    case State::kClosed:
      info.state = PathState::kClosing;
      break;
  }
  return info;
}

std::string ClientPath::Describe() const {
  const std::string path = addresses_.empty() ? TargetOf(options_) : addresses_;
  const std::string why = last_error_.empty() ? "" : absl::StrCat(": ", last_error_);
  switch (state_) {
    case State::kIdle:
      return absl::StrCat("path ", path, " idle");
    case State::kFinding:
      return absl::StrCat("path ", path, " being looked for", why);
    case State::kConnecting:
      return absl::StrCat("path ", path, " connecting ", next_cid_, "/", connections_.size(), why);
    case State::kInfo:
      return absl::StrCat("path ", path, " waiting for INFO", why);
    case State::kUp:
      return absl::StrCat("path ", path, " up");
    case State::kBroken:
      return absl::StrCat("path ", path, " draining", why);
    case State::kBackoff:
      return absl::StrCat("path ", path, " pausing before a reconnect", why);
    case State::kClosing:
      return absl::StrCat("path ", path, " closing");
    case State::kClosed:
      return absl::StrCat("path ", path, " closed");
  }
  return "";
}

}  // namespace ibnbd::rtrs
