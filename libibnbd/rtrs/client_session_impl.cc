// SPDX-License-Identifier: Apache-2.0
#include "rtrs/client_session_impl.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"

namespace ibnbd::rtrs {
namespace {

constexpr std::uint32_t kControlPermitsMax = 8;  // DealPermits().

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

}  // namespace

ClientSession::Impl::Impl(const ClientSessionOptions& options, Port& control,
                          std::span<Port* const> lane_ports, ClientSessionObserver& observer)
    : options_(options),
      reactor_(control.reactor()),
      observer_(observer),
      backoff_(options.backoff_ns_min, options.backoff_ns_max, Prng(~options.seed)),
      heartbeat_(options.heartbeat_missed_max),
      round_timer_(
          reactor_.timers(),
          [this] {
            BreakPath(absl::DeadlineExceededError(
                          state_ == State::kInfo ? "connect: no INFO_RSP in time"
                                                 : absl::StrCat("connect: connection ", next_cid_,
                                                                " not established in time")),
                      false);
          }),
      backoff_timer_(reactor_.timers(), [this] { StartRound(); }),
      heartbeat_timer_(reactor_.timers(), [this] { OnHeartbeatTimer(); }) {
  Prng prng(options.seed);
  session_uuid_ = DrawUuid(prng);
  path_uuid_ = DrawUuid(prng);
  lanes_.push_back(std::make_unique<ClientLane>(control, reactor_, *this, 0));
  for (Port* port : lane_ports) {
    const auto cid = static_cast<std::uint32_t>(lanes_.size());
    lanes_.push_back(std::make_unique<ClientLane>(*port, reactor_, *this, cid));
  }
  lane_done_.resize(lanes_.size());
}

ClientSession::Impl::~Impl() { CHECK(state_ == State::kClosed || state_ == State::kIdle); }

template <class F>
void ClientSession::Impl::PostToLane(std::uint32_t cid, F f) {
  ClientLane* lane = lanes_[cid].get();
  lane->port().reactor().Post([lane, f = std::move(f)]() mutable { f(*lane); });
}

absl::Status ClientSession::Impl::WithName(const absl::Status& why) const {
  return Annotate(why, absl::StrCat("session ", options_.name, " to ", options_.server.ToString()));
}

void ClientSession::Impl::Start() {
  CHECK(state_ == State::kIdle);
  StartRound();
}

void ClientSession::Impl::StartRound() {
  ++round_;
  ++stats_.connect_rounds;
  state_ = State::kConnecting;
  next_cid_ = 0;
  addresses_.clear();
  round_timer_.ArmAfter(options_.connect_timeout_ns);
  ConnectNext();
}

void ClientSession::Impl::ConnectNext() {
  LaneConnect connect;
  connect.round = round_;
  connect.server = options_.server;
  connect.request.cid = proto::le16(static_cast<std::uint16_t>(next_cid_));
  connect.request.cid_num = proto::le16(static_cast<std::uint16_t>(lanes_.size()));
  connect.request.recon_cnt = proto::le16(static_cast<std::uint16_t>(round_));
  connect.request.sess_uuid = path_uuid_;
  connect.request.paths_uuid = session_uuid_;
  connect.request.flags = proto::kConnReqFirstConn;
  connect.permit_count =
      next_cid_ == 0
          ? kControlPermitsMax
          : DealPermits(limits_.queue_depth, static_cast<std::uint32_t>(lane_count()), next_cid_)
                .count;
  PostToLane(next_cid_, [connect](ClientLane& lane) { lane.Connect(connect); });
}

void ClientSession::Impl::OnLaneConnected(std::uint32_t cid, std::uint32_t round,
                                          const proto::ConnRsp& offer,
                                          const std::string& addresses) {
  if (round != round_ || state_ != State::kConnecting || cid != next_cid_) return;
  if (cid == 0) {
    addresses_ = addresses;
    const absl::Status status = TakeOffer(offer);
    if (!status.ok()) return BreakPath(status, true);
  }
  if (++next_cid_ < lanes_.size()) return ConnectNext();
  state_ = State::kInfo;
  PostToLane(0, [round, name = options_.name, depth = limits_.queue_depth](ClientLane& lane) {
    lane.RequestInfo(round, name, depth);
  });
}

// Only connection 0's counts; DecodeConnRsp() has checked it for itself.
absl::Status ClientSession::Impl::TakeOffer(const proto::ConnRsp& offer) {
  SessionLimits limits;
  limits.queue_depth = offer.queue_depth.get();
  limits.io_size_max = offer.max_io_size.get() / 4096 * 4096;
  if (limits.io_size_max == 0) limits.io_size_max = offer.max_io_size.get() / 512 * 512;
  limits.chunk_size = offer.chunk_size();
  limits.peer_is_ibnbd = offer.minor() >= proto::kRtrsMinorIbnbd;
  if (limits.queue_depth < lanes_.size()) {
    return absl::FailedPreconditionError(absl::StrCat("connect: the server's queue depth ",
                                                      limits.queue_depth, " is too small for ",
                                                      lanes_.size(), " connections"));
  }
  if (was_up_ &&
      (limits.queue_depth != limits_.queue_depth || limits.io_size_max != limits_.io_size_max ||
       limits.chunk_size != limits_.chunk_size)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "connect: the server changed what it grants: queue depth ", limits_.queue_depth, " to ",
        limits.queue_depth, ", io size ", limits_.io_size_max, " to ", limits.io_size_max));
  }
  limits_ = limits;
  new_rkey_ = offer.new_rkey();
  return absl::OkStatus();
}

void ClientSession::Impl::OnInfoResponse(std::uint32_t round,
                                         const std::vector<std::byte>& message) {
  if (round != round_ || state_ != State::kInfo || pending_lanes_ != 0) return;
  std::vector<proto::ChunkAddress> chunks(limits_.queue_depth);
  const char* reason = proto::DecodeInfoRsp(message, limits_.chunk_size, chunks);
  if (reason != nullptr) {
    return BreakPath(absl::InternalError(absl::StrCat("connect: ", reason)), false);
  }
  ActivateLanes(chunks);
}

void ClientSession::Impl::ActivateLanes(const std::vector<proto::ChunkAddress>& chunks) {
  pending_lanes_ = static_cast<std::uint32_t>(lanes_.size());
  lane_done_.assign(lanes_.size(), false);
  for (std::uint32_t cid = 0; cid < lanes_.size(); ++cid) {
    LaneActivation activation;
    activation.round = round_;
    activation.limits = limits_;
    activation.permits =
        DealPermits(limits_.queue_depth, static_cast<std::uint32_t>(lane_count()), cid);
    activation.new_rkey = new_rkey_;
    const auto first = chunks.begin() + activation.permits.first;
    activation.chunks.assign(first, first + activation.permits.count);
    PostToLane(cid, [activation = std::move(activation)](ClientLane& lane) mutable {
      lane.Activate(std::move(activation));
    });
  }
}

void ClientSession::Impl::OnLaneActive(std::uint32_t cid, std::uint32_t round) {
  if (round != round_ || state_ != State::kInfo || lane_done_[cid]) return;
  lane_done_[cid] = true;
  if (--pending_lanes_ == 0) OnUp();
}

void ClientSession::Impl::OnUp() {
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
  heartbeat_.Reset();
  receive_count_ = ReceiveCount();
  heartbeat_timer_.ArmAfter(options_.heartbeat_interval_ns);
  LOG_INFO("session ", options_.name, " path ", addresses_, " up, queue depth ",
           limits_.queue_depth, ", io size ", limits_.io_size_max, ", connections ", lanes_.size());
  observer_.OnSessionUp();
}

void ClientSession::Impl::OnLaneBroken(std::uint32_t, std::uint32_t round, const absl::Status& why,
                                       bool fatal) {
  if (round == round_) BreakPath(why, fatal);
}

void ClientSession::Impl::ResetPath(const absl::Status& why) { BreakPath(why, false); }

// The only way down.  Does nothing if the path is not there or already being taken down.
void ClientSession::Impl::BreakPath(const absl::Status& why, bool fatal) {
  if (state_ != State::kConnecting && state_ != State::kInfo && state_ != State::kUp) return;
  const bool was_up = state_ == State::kUp;
  state_ = State::kBroken;
  round_timer_.Cancel();
  heartbeat_timer_.Cancel();
  fatal_ = fatal;
  // A server that lets us in and throws us out again is not besieged.
  if (was_up && reactor_.now_ns() - up_since_ns_ >= options_.backoff_ns_max) backoff_.Reset();
  const absl::Status named = WithName(why);
  last_error_ = std::string(named.message());
  pending_lanes_ = static_cast<std::uint32_t>(lanes_.size());
  lane_done_.assign(lanes_.size(), false);
  for (std::uint32_t cid = 0; cid < lanes_.size(); ++cid) {
    PostToLane(cid, [round = round_](ClientLane& lane) { lane.Break(round); });
  }
  if (was_up) {
    if (!close_requested_) LOG_WARN("path down: ", named.message());
    observer_.OnSessionDown(named);
    return;
  }
  ++stats_.connect_failures;
  LOG_INFO("connect failed: ", named.message());
  if (!close_requested_) observer_.OnConnectFailed(named, fatal);
}

void ClientSession::Impl::OnLaneDrained(std::uint32_t cid, std::uint32_t round) {
  if (round != round_ || lane_done_[cid]) return;
  // A lane that fails by itself may be drained before we hear that it is broken: its reports come
  // in order, and Break() makes it report once more.
  if (state_ != State::kBroken) return;
  lane_done_[cid] = true;
  if (--pending_lanes_ == 0) OnAllDrained();
}

void ClientSession::Impl::OnAllDrained() {
  if (close_requested_) return ShutDownLanes();
  state_ = State::kBackoff;
  backoff_timer_.ArmAfter(fatal_ ? backoff_.Longest() : backoff_.Next());
}

void ClientSession::Impl::Close() {
  if (std::exchange(close_requested_, true)) return;
  if (state_ == State::kIdle || state_ == State::kBackoff) return ShutDownLanes();
  BreakPath(absl::CancelledError("closed"), false);
}

void ClientSession::Impl::ShutDownLanes() {
  backoff_timer_.Cancel();
  state_ = State::kClosing;
  pending_lanes_ = static_cast<std::uint32_t>(lanes_.size());
  for (std::uint32_t cid = 0; cid < lanes_.size(); ++cid) {
    PostToLane(cid, [](ClientLane& lane) { lane.ShutDown(); });
  }
}

void ClientSession::Impl::OnLaneShutDown(std::uint32_t) {
  if (--pending_lanes_ > 0) return;
  state_ = State::kClosed;
  observer_.OnSessionClosed();  // May destroy us.
}

void ClientSession::Impl::SubmitControl(ClientRequest& request) {
  CHECK(state_ == State::kUp);
  lanes_[0]->Submit(request);
}

std::uint64_t ClientSession::Impl::ReceiveCount() const {
  std::uint64_t count = 0;
  for (const auto& lane : lanes_) count += lane->receive_count();
  return count;
}

void ClientSession::Impl::OnHeartbeatTimer() {
  const std::uint64_t count = ReceiveCount();
  if (count != std::exchange(receive_count_, count)) heartbeat_.OnSignOfLife();
  switch (heartbeat_.Tick()) {
    case Heartbeat::Verdict::kDead:
      SIM_MARK("client: heartbeats ended");
      BreakPath(ErrnoStatus(ETIMEDOUT, absl::StrCat("no sign of life for ", heartbeat_.missed(),
                                                    " heartbeats")),
                false);
      return;
    case Heartbeat::Verdict::kSend:
      ++stats_.heartbeats_sent;
      heartbeat_sent_ns_ = reactor_.now_ns();
      PostToLane(0, [round = round_](ClientLane& lane) { lane.SendHeartbeat(round); });
      break;
    case Heartbeat::Verdict::kWait:
      ++stats_.heartbeats_missed;
      break;
  }
  heartbeat_timer_.ArmAfter(options_.heartbeat_interval_ns);
}

void ClientSession::Impl::OnHeartbeatAck(std::uint32_t round) {
  if (round != round_ || state_ != State::kUp || heartbeat_sent_ns_ == 0) return;
  stats_.heartbeat_rtt_ns = reactor_.now_ns() - std::exchange(heartbeat_sent_ns_, 0);
}

std::string ClientSession::Impl::Describe() const {
  const std::string path = addresses_.empty() ? options_.server.ToString() : addresses_;
  const std::string why = last_error_.empty() ? "" : absl::StrCat(": ", last_error_);
  switch (state_) {
    case State::kIdle:
      return absl::StrCat("path ", path, " idle");
    case State::kConnecting:
      return absl::StrCat("path ", path, " connecting ", next_cid_, "/", lanes_.size(), why);
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
