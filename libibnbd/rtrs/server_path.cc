// SPDX-License-Identifier: Apache-2.0
#include "rtrs/server_path.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/canary.h"
#include "base/mark.h"
#include "base/status_macros.h"

namespace ibnbd::rtrs {
namespace {

// A client that was killed and started again may say its name before we have heard of its death:
// so long, and so often, a name that is taken is asked for again.  One that is about to be free is
// waited for as long as a handshake may take.
constexpr std::int64_t kNameWaitNsMax = kNsPerSecond;
constexpr std::int64_t kNameRetryNs = 20 * kNsPerMs;

}  // namespace

ServerPath::ServerPath(const ServerPathOptions& options, const proto::ConnReq& request,
                       std::string peer, const std::vector<Port*>& ports,
                       std::vector<std::uint32_t> reactors, ServerPathOwner& owner)
    : options_(options),
      request_(request),
      peer_(std::move(peer)),
      ports_(ports),
      reactors_(std::move(reactors)),
      owner_(owner),
      begun_ns_(control().now_ns()),
      lanes_(request.cid_num.get()),
      handshake_timer_(control().timers(),
                       [this] { Break("handshake took too long", Blame::kPeer); }),
      name_timer_(control().timers(), [this] { JoinSession(); }),
      heartbeat_timer_(control().timers(), [this] { OnHeartbeatTick(); }),
      heartbeat_(options.heartbeat_missed_max) {}

absl::StatusOr<std::unique_ptr<ServerPath>> ServerPath::Create(
    const ServerPathOptions& options, const proto::ConnReq& request, fabric::Incoming& incoming,
    const std::vector<Port*>& ports, std::vector<std::uint32_t> reactors, ServerPathOwner& owner) {
  std::unique_ptr<ServerPath> path(new ServerPath(
      options, request, incoming.peer_address().ToString(), ports, std::move(reactors), owner));
  ASSIGN_OR_RETURN(path->domain_, incoming.CreateDomain());
  RETURN_IF_ERROR(path->PrepareInfoMemory());
  path->handshake_timer_.ArmAfter(options.handshake_timeout_ns);
  return path;
}

ServerPath::~ServerPath() {
  CHECK_EQ(reaped_count_, connection_count_);
  lanes_.clear();
  pool_.reset();
  service_.reset();
  if (chunk_memory_ > 0 && !IBNBD_CANARY(6)) owner_.ReturnChunkMemory(chunk_memory_);
}

absl::Status ServerPath::PrepareInfoMemory() {
  const std::size_t size =
      ServerLane::kInfoRspOffset + proto::InfoRspSizeMax(options_.geometry.queue_depth);
  ASSIGN_OR_RETURN(info_arena_, Arena::Create(size));
  ASSIGN_OR_RETURN(info_region_, domain_->Register(info_arena_.bytes(), fabric::Access::kLocal));
  return absl::OkStatus();
}

template <class F>
void ServerPath::ForEachLane(F f) {
  for (const auto& lane : lanes_) {
    if (lane != nullptr) lane->reactor().Post([lane = lane.get(), f] { f(*lane); });
  }
}

const char* ServerPath::CheckConnect(const proto::ConnReq& request) const {
  if (state_ != State::kConnecting) return "path does not wait for connections";
  if (request.recon_cnt != request_.recon_cnt) return "recon_cnt differs from connection 0's";
  if (request.cid_num != request_.cid_num) return "cid_num differs from connection 0's";
  if (lanes_[request.cid.get()] != nullptr) return "cid is connected already";
  return nullptr;
}

void ServerPath::Accept(std::uint32_t cid, std::unique_ptr<fabric::Incoming> incoming) {
  CHECK(state_ == State::kConnecting && lanes_[cid] == nullptr);
  const std::uint32_t reactor = reactors_[cid];
  lanes_[cid] = std::make_unique<ServerLane>(
      ServerLaneOptions{cid, reactor, options_.geometry, options_.keys, domain_.get()},
      *ports_[reactor], control(), *this, cid == 0 ? info_region_.get() : nullptr);
  ++connection_count_;
  ServerLane& lane = *lanes_[cid];
  if (cid == 0) return lane.Accept(std::move(incoming));
  lane.reactor().Post(
      [&lane, incoming = std::move(incoming)]() mutable { lane.Accept(std::move(incoming)); });
}

void ServerPath::LeaveHandshake() {
  handshake_timer_.Cancel();
  if (std::exchange(in_handshake_, false)) owner_.OnPathLeftHandshake(*this);
}

absl::Status ServerPath::ReadInfo(std::span<const std::byte> message) {
  if (state_ != State::kConnecting) return absl::FailedPreconditionError("info_req: not expected");
  // The client sends it when all its connections are established; ours are at least on their way.
  if (connection_count_ != lanes_.size()) {
    return absl::FailedPreconditionError("info_req: connections are missing");
  }
  const char* reason = proto::DecodeInfoReq(message, &info_);
  if (reason != nullptr) return absl::InvalidArgumentError(reason);
  if (request_.minor() < proto::kRtrsMinorIbnbd) info_.client_id = {};  // Whatever is there.
  return absl::OkStatus();
}

void ServerPath::OnLaneInfo(std::span<const std::byte> message) {
  const absl::Status status = ReadInfo(message);
  if (!status.ok()) return Break(std::string(status.message()), Blame::kPeer);
  JoinSession();
}

void ServerPath::JoinSession() {
  absl::Status status = owner_.OnPathNamed(*this, info_);
  const bool in_time = control().now_ns() - begun_ns_ < kNameWaitNsMax;
  if (absl::IsUnavailable(status) || (absl::IsAlreadyExists(status) && in_time)) {
    SIM_MARK("server: waited for a name");
    name_timer_.ArmAfter(kNameRetryNs);
    return;
  }
  if (status.ok()) status = OpenChunks();
  if (!status.ok()) return Break(std::string(status.message()), Blame::kPeer);
  state_ = State::kGranting;
  grants_awaited_ = connection_count_;
  // Before any other lane may touch a window; INFO_RSP goes out behind it, on the same connection.
  info_rsp_size_ = pool_->Describe(info_region_->memory().subspan(ServerLane::kInfoRspOffset));
  if (pool_->has_windows()) lanes_[0]->OpenWindows(*pool_);
  ForEachLane([this](ServerLane& lane) { lane.Grant(*pool_, service_->lane(lane.cid())); });
}

absl::Status ServerPath::OpenChunks() {
  const std::uint64_t byte_count = options_.geometry.byte_count();
  if (!owner_.TakeChunkMemory(byte_count)) {
    return absl::ResourceExhaustedError("chunk memory is used up");
  }
  chunk_memory_ = byte_count;
  ServerPathInfo info;
  info.reactors = reactors_;
  info.peer_is_ibnbd = request_.minor() >= proto::kRtrsMinorIbnbd;
  if (request_.minor() >= proto::kRtrsMinorFence) info.fencer = this;
  info.peer = peer_;
  service_ = owner_.SessionServiceOf(*this).OpenPath(info);
  ASSIGN_OR_RETURN(pool_,
                   ChunkPool::Create(options_.geometry, *options_.memory, options_.keys, *domain_,
                                     ports_.size(), *service_, owner_.FenceOf(*this)));
  return absl::OkStatus();
}

void ServerPath::OnLaneGranted() {
  CHECK_GT(grants_awaited_, 0u);
  if (--grants_awaited_ > 0 || state_ != State::kGranting) return;
  state_ = State::kUp;
  LeaveHandshake();
  heartbeat_timer_.ArmAfter(options_.heartbeat_interval_ns);
  lanes_[0]->SendInfoRsp(static_cast<std::uint32_t>(info_rsp_size_));
}

// Whatever arrives on any connection is a sign of life (proto/README.md, heartbeats).
void ServerPath::OnHeartbeatTick() {
  if (!up()) return;
  std::uint64_t receives = 0;
  for (const auto& lane : lanes_) receives += lane->receive_count();
  if (receives != receives_seen_) heartbeat_.OnSignOfLife();
  receives_seen_ = receives;
  switch (heartbeat_.Tick()) {
    case Heartbeat::Verdict::kDead:
      SIM_MARK("server: heartbeat timed out");
      return Break("no sign of life", Blame::kPeer);
    case Heartbeat::Verdict::kSend:
      lanes_[0]->SendHeartbeat();
      break;
    case Heartbeat::Verdict::kWait:
      break;
  }
  heartbeat_timer_.ArmAfter(options_.heartbeat_interval_ns);
}

void ServerPath::Drain() {
  if (state_ != State::kUp) return Break("server is stopping", Blame::kNetwork);
  state_ = State::kDraining;
  drains_awaited_ = connection_count_;
  ForEachLane([](ServerLane& lane) { lane.Drain(); });
}

void ServerPath::OnLaneDrained() {
  CHECK_GT(drains_awaited_, 0u);
  if (--drains_awaited_ == 0 && state_ == State::kDraining) owner_.OnPathDrained(*this);
}

void ServerPath::Break(const std::string& why, Blame blame) {
  if (state_ == State::kClosing) return;
  state_ = State::kClosing;
  heartbeat_timer_.Cancel();
  name_timer_.Cancel();
  LeaveHandshake();
  owner_.OnPathBroken(*this, why, blame);
  ForEachLane([](ServerLane& lane) { lane.Break("path is closing"); });
}

void ServerPath::OnLaneBroken(const std::string& why, Blame blame) { Break(why, blame); }

void ServerPath::OnLaneClosed() {
  if (++closed_count_ < connection_count_) return;
  // All lanes are silent.  What we posted to them before has run when this has: only then may they
  // go.
  ForEachLane([this](ServerLane& lane) {
    lane.Reap();
    control().Post([this] { OnLaneReaped(); });
  });
}

void ServerPath::OnLaneReaped() {
  if (++reaped_count_ == connection_count_) owner_.OnPathClosed(*this);
}

void ServerPath::FencePath(const proto::Uuid& sess_uuid, proto::le16 recon_cnt, Done done) {
  owner_.FencePath(*this, sess_uuid, recon_cnt, std::move(done));
}

std::uint32_t ServerPath::executing_count() const {
  std::uint32_t count = 0;
  for (const auto& lane : lanes_) count += lane == nullptr ? 0 : lane->executing_count();
  return count;
}

}  // namespace ibnbd::rtrs
