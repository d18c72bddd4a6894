// SPDX-License-Identifier: Apache-2.0
// Life and death of a lane; requests and answers are in server_lane_datapath.cc.
#include "rtrs/server_lane.h"

#include <string>
#include <utility>
#include <vector>

#include "base/mark.h"
#include "base/status_macros.h"

namespace ibnbd::rtrs {
namespace {

// Beyond one receive per chunk: heartbeats, and a peer that is a little ahead of our reposting.
constexpr std::uint32_t kSpareReceives = 8;
// Answers whose send completion has not been seen yet do not hold up new ones.
constexpr std::uint32_t kSpareSends = 64;
constexpr std::int64_t kDrainPollNs = kNsPerMs;

}  // namespace

ServerLane::ServerLane(const ServerLaneOptions& options, Port& port, Reactor& control,
                       ServerLaneOwner& owner, fabric::Region* info_region)
    : options_(options),
      port_(port),
      control_(control),
      owner_(owner),
      info_region_(info_region),
      imm_layout_(options.geometry.queue_depth) {}

ServerLane::~ServerLane() {
  CHECK(state_ == State::kClosed || state_ == State::kNew);
  CHECK(connection_ == nullptr);
}

void ServerLane::Accept(std::unique_ptr<fabric::Incoming> incoming) {
  DCHECK(port_.reactor().InThread());
  CHECK(state_ == State::kNew);
  drain_timer_.emplace(port_.reactor().timers(), [this] { TryFinish(); });
  context_ = port_.Attach(*this);
  receive_batch_.fill({Port::MakeCookie(context_, kReceiveKind, {}), {}});
  state_ = State::kOpen;
  const absl::Status status = AcceptNow(*incoming);
  if (!status.ok()) Break("accept", ErrnoFromStatus(status), Blame::kNetwork);
}

absl::Status ServerLane::AcceptNow(fabric::Incoming& incoming) {
  const ChunkGeometry& geometry = options_.geometry;
  const std::uint32_t plain = geometry.queue_depth + kSpareReceives;
  std::vector<fabric::ReceiveRequest> receives;
  fabric::Sge info_sge;
  if (info_region_ != nullptr) {
    info_sge = {info_region_->memory().data() + kInfoReqOffset, sizeof(proto::InfoReq),
                info_region_->lkey()};
    receives.push_back({Port::MakeCookie(context_, kInfoReceiveKind, {}), {&info_sge, 1}});
  }
  receives.resize(receives.size() + plain,
                  fabric::ReceiveRequest{Port::MakeCookie(context_, kReceiveKind, {}), {}});

  fabric::ConnectionOptions options;
  const bool per_io = options_.keys == KeyPolicy::kPerIo;
  // With keys per IO an answer is up to three sends, and a close before: who waits for credits is
  // slower, not stuck.
  options.limits.sends_max = geometry.queue_depth * (per_io ? 2 : 1) + kSpareSends;
  if (per_io) options.limits.inline_size_max = sizeof(proto::RkeyRsp);
  options.limits.receives_max = static_cast<std::uint32_t>(receives.size());
  options.limits.sges_max = 2;
  options.context = context_;
  options.receives = receives;
  options.domain = options_.domain;  // Other sessions' chunks are not this client's.
  const proto::ConnRsp response{
      .queue_depth = proto::le16(static_cast<std::uint16_t>(geometry.queue_depth)),
      .max_io_size = proto::le32(geometry.io_size_max),
      .max_hdr_size = proto::le32(proto::kDefaultHdrSizeMax),
      .flags = proto::le32(per_io ? proto::kConnRspNewRkey : 0)};
  ASSIGN_OR_RETURN(connection_, incoming.Accept(port_.poller(), options, proto::AsBytes(response)));
  sends_max_ = connection_->limits().sends_max;
  signal_interval_ = sends_max_ / 4;
  return absl::OkStatus();
}

void ServerLane::OpenWindows(ChunkPool& pool) {
  DCHECK(port_.reactor().InThread());
  if (state_ != State::kOpen) return;
  const std::uint32_t depth = options_.geometry.queue_depth;
  for (std::uint32_t id = 0; id < depth;) {
    std::size_t count = 0;
    for (; count < kPostBatch && id < depth; ++count, ++id) {
      fabric::SendRequest& send = send_batch_[count] = {};
      CHECK(TakeCredit(send, false));
      send.opcode = fabric::Opcode::kOpenWindow;
      send.window = &pool.window(id);
    }
    connection_->PostSend({send_batch_.data(), count});
  }
}

void ServerLane::Grant(ChunkPool& pool, ServerLaneService& service) {
  DCHECK(port_.reactor().InThread());
  if (state_ == State::kOpen) {
    pool_ = &pool;
    service_ = &service;
    registered_buffer_ = pool.AcquireOn(port_.reactor(), options_.reactor_index);
  }
  control_.Post([owner = &owner_] { owner->OnLaneGranted(); });
}

void ServerLane::Drain() {
  DCHECK(port_.reactor().InThread());
  if (state_ == State::kOpen) state_ = State::kDraining;
  TryFinishDrain();
}

// A connection that is closed takes its unsent answers with it: wait until the last has landed.
void ServerLane::TryFinishDrain() {
  if (drain_reported_) return;
  if (state_ == State::kDraining) {
    if (executing_count_ > 0 || !responses_.empty()) return;
    if (sends_outstanding_ > 0) {
      // Unsignaled answers are covered by the completion of an empty write behind them.
      drain_probe_owed_ = sends_since_signal_ > 0;
      if (drain_probe_owed_) RequestTurnEnd();
      return;
    }
  }
  drain_reported_ = true;
  control_.Post([owner = &owner_] { owner->OnLaneDrained(); });
}

void ServerLane::Break(const char* why, int error, Blame blame) {
  DCHECK(port_.reactor().InThread());
  if (!open()) return;
  const bool was_draining = state_ == State::kDraining;
  state_ = State::kBroken;
  const std::string text = error != 0 ? std::string(ErrnoStatus(error, why).message()) : why;
  if (connection_ != nullptr) {
    connection_->Disconnect();
  } else {
    disconnected_ = true;
  }
  while (!responses_.empty()) ReleaseRequest(responses_.PopFront());
  AbandonKeys();
  if (was_draining) TryFinishDrain();
  control_.Post([owner = &owner_, text, blame] { owner->OnLaneBroken(text, blame); });
  RequestTurnEnd();
}

void ServerLane::ResumeOnItsLane(ServerRequest& request) {
  request.lane_->reactor().Post([&request] { request.lane_->Resume(request); });
}

// The request of the same number on another path has ended.  Its client may have given this path
// up, too.
void ServerLane::Resume(ServerRequest& request) {
  SIM_MARK("server: a repeated request waited for the old one");
  if (!open()) return OnRequestComplete(request, -ECONNABORTED);
  service_->OnRequest(request);
}

void ServerLane::OnCmEvent(fabric::CmEvent& event) {
  if (event.kind != fabric::CmEvent::Kind::kDisconnected) return;  // kEstablished tells us nothing.
  disconnected_ = true;
  Break("disconnected", event.error, Blame::kNetwork);
  RequestTurnEnd();
}

void ServerLane::OnInfoReceive(const fabric::Completion& completion) {
  if (completion.opcode != fabric::Opcode::kReceive) {
    return Break("message before INFO_REQ");
  }
  const std::size_t byte_count = completion.byte_count;
  if (byte_count > sizeof(proto::InfoReq)) return Break("info_req: too long");
  owner_.OnLaneInfo(info_region_->memory().subspan(kInfoReqOffset, byte_count));
}

void ServerLane::SendInfoRsp(std::uint32_t byte_count) {
  if (!open()) return;
  info_rsp_size_ = byte_count;
  RequestTurnEnd();
}

void ServerLane::SendHeartbeat() {
  if (!open()) return;
  heartbeat_owed_ = true;
  RequestTurnEnd();
}

// The end: the peer knows, the network is done with our memory, and nothing executes.
void ServerLane::TryFinish() {
  if (state_ != State::kBroken || !disconnected_ || executing_count_ > 0) return;
  if (connection_ != nullptr && !connection_->drained()) {
    if (!drain_timer_->armed()) drain_timer_->ArmAfter(kDrainPollNs);
    return;
  }
  drain_timer_->Cancel();
  connection_.reset();
  port_.Detach(context_);
  if (pool_ != nullptr) pool_->ReleaseOn(port_.reactor(), options_.reactor_index);
  pool_ = nullptr;
  state_ = State::kClosed;
  control_.Post([owner = &owner_] { owner->OnLaneClosed(); });
}

void ServerLane::Reap() { drain_timer_.reset(); }

}  // namespace ibnbd::rtrs
