// SPDX-License-Identifier: Apache-2.0
// Setting a connection up and taking it down.  What happens per request is in
// client_connection_datapath.cc.
#include "rtrs/client_connection.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "rtrs/client_lane.h"

namespace ibnbd::rtrs {
namespace {

constexpr std::int64_t kDrainPollNs = kNsPerMs;
constexpr std::uint32_t kReceivesExtra = 8;  // Heartbeats, INFO_RSP, and some room.
constexpr std::uint32_t kSendsExtra = 16;  // Heartbeats, acknowledgements, INFO_REQ, and some room.

int ErrnoFromWc(fabric::WcStatus status) {
  switch (status) {
    case fabric::WcStatus::kOk:
      return 0;
    case fabric::WcStatus::kFlushed:
      return -ECONNRESET;
    case fabric::WcStatus::kPeerGone:
      return -EPIPE;
    case fabric::WcStatus::kNoReceive:
      return -ENOBUFS;
    case fabric::WcStatus::kRemoteAccess:
      return -EREMOTEIO;
    case fabric::WcStatus::kLocalFault:
      return -EFAULT;
  }
  return -EIO;
}

}  // namespace

ClientConnection::ClientConnection(ClientLane& lane, Reactor& control, ConnectionObserver& observer,
                                   std::uint32_t path)
    : lane_(lane),
      port_(lane.port()),
      control_(control),
      observer_(observer),
      cid_(lane.cid()),
      path_(path) {}

ClientConnection::~ClientConnection() {
  CHECK(connection_ == nullptr);
  CHECK(!attached_);
}

std::string ClientConnection::Name() const { return absl::StrCat("connection ", cid_); }

void ClientConnection::RequestTurnEnd() { lane_.RequestTurnEnd(); }

void ClientConnection::Connect(const LaneConnect& connect) {
  CHECK(state_ == State::kIdle && connection_ == nullptr);
  round_ = connect.round;
  reported_broken_ = disconnected_ = violated_ = enabled_ = false;
  if (!drain_timer_.has_value()) {
    drain_timer_.emplace(port_.reactor().timers(), [this] { CheckDrained(); });
    lane_.AddConnection(*this);
  }
  // A new context, so that nothing of an earlier connection can be taken for one of this.
  if (attached_) port_.Detach(context_);
  context_ = port_.Attach(*this);
  attached_ = true;
  state_ = State::kConnecting;
  absl::Status status = PrepareMemory(connect.permit_count);
  if (status.ok()) status = StartConnect(connect);
  if (!status.ok()) Fail(status);
}

absl::Status ClientConnection::StartConnect(const LaneConnect& connect) {
  sends_posted_ = sends_retired_ = 0;
  unsignaled_count_ = 0;
  signaled_head_ = signaled_count_ = 0;
  acks_owed_ = 0;
  heartbeat_owed_ = notice_owed_ = info_posted_ = info_owed_ = false;
  batch_count_ = 0;
  free_receives_.clear();
  for (std::uint32_t i = receives_max_; i-- > 0;) free_receives_.push_back(i);
  fabric::ConnectionOptions options;
  options.limits.sends_max = sends_max_;
  options.limits.receives_max = receives_max_ + 1;  // INFO_RSP.
  options.limits.sges_max = 2;
  options.context = context_;
  options.source = connect.source;
  ASSIGN_OR_RETURN(connection_, port_.poller().StartConnect(connect.server, options,
                                                            proto::AsBytes(connect.request)));
  return absl::OkStatus();
}

// Sizes everything that depends on the number of permits; keeps it if nothing has changed.
absl::Status ClientConnection::PrepareMemory(std::uint32_t permit_count) {
  if (memory_region_ != nullptr && permit_count == permit_count_max_) return absl::OkStatus();
  memory_region_.reset();
  permit_count_max_ = permit_count;
  receives_max_ = permit_count + kReceivesExtra;
  sends_max_ = 2 * permit_count + kSendsExtra;
  signaled_.assign(sends_max_, 0);
  free_receives_.reserve(receives_max_);
  const std::size_t size = std::size_t{sends_max_} * kHeaderStride + receives_max_ * kReceiveSize;
  ASSIGN_OR_RETURN(memory_, Arena::Create(size));
  ASSIGN_OR_RETURN(memory_region_,
                   port_.fabric().Register(memory_.bytes(), fabric::Access::kLocal));
  return absl::OkStatus();
}

void ClientConnection::OnCmEvent(fabric::CmEvent& event) {
  if (connection_ == nullptr || event.connection != connection_.get()) return;
  switch (event.kind) {
    case fabric::CmEvent::Kind::kIncoming:
      return;
    case fabric::CmEvent::Kind::kEstablished:
      if (state_ == State::kConnecting) OnEstablished(event);
      return;
    case fabric::CmEvent::Kind::kRejected:
    case fabric::CmEvent::Kind::kUnreachable:
      disconnected_ = true;
      OnRefused(event);
      break;
    case fabric::CmEvent::Kind::kDisconnected:
      disconnected_ = true;
      Fail(ErrnoStatus(event.error == 0 ? ECONNRESET : event.error, absl::StrCat(Name(), " lost")));
      break;
  }
  CheckDrained();
}

void ClientConnection::OnEstablished(const fabric::CmEvent& event) {
  proto::ConnRsp offer;
  const char* reason = proto::DecodeConnRsp(event.private_data, &offer);
  if (reason == nullptr && proto::ConnRspError(offer) != 0) {
    reason = "conn_rsp: accepted with an error";
  }
  if (reason != nullptr) {
    violated_ = true;
    Fail(absl::FailedPreconditionError(absl::StrCat(Name(), ": ", reason)), true);
    return;
  }
  state_ = State::kEstablished;
  device_ = connection_->device();
  memory_lkey_ = memory_region_->keys()[device_].lkey;
  std::string addresses = absl::StrCat(connection_->local_address().ToString(), "@",
                                       connection_->peer_address().ToString());
  Report([offer, addresses = std::move(addresses)](ConnectionObserver& observer, std::uint32_t cid,
                                                   std::uint32_t round) {
    observer.OnConnected(cid, round, offer, addresses);
  });
}

void ClientConnection::OnRefused(const fabric::CmEvent& event) {
  if (event.kind == fabric::CmEvent::Kind::kUnreachable) {
    Fail(ErrnoStatus(event.error == 0 ? EHOSTUNREACH : event.error, "connect"));
    return;
  }
  proto::ConnRsp answer;
  const char* reason = proto::DecodeConnRsp(event.private_data, &answer);
  if (reason == nullptr && proto::ConnRspError(answer) != 0) {
    // -ENXIO, of the kernel's server, too: a path that joins found no session to join.
    const int error = proto::ConnRspError(answer);
    Fail(error == -ENXIO ? ErrnoStatus(error,
                                       "connect: not the server that the session is with, "
                                       "or it was restarted just now")
                         : ErrnoStatus(error, "connect: the server refused"));
    return;
  }
  // Nobody of our protocol answered: a closed port says so, too, hence not fatal.
  Fail(ErrnoStatus(ECONNREFUSED, "connect"));
}

// Connection 0: asks for the chunks.  The first receive is INFO_RSP's, the others follow behind it,
// so that a heartbeat that comes at once finds one.
void ClientConnection::RequestInfo(std::uint32_t round, const proto::InfoReq& info,
                                   std::uint32_t queue_depth) {
  if (round != round_ || state_ != State::kEstablished) return;
  const std::size_t size = proto::InfoRspSizeMax(queue_depth);
  if (info_region_ == nullptr || info_region_->memory().size() < size) {
    info_region_.reset();
    absl::StatusOr<Arena> arena = Arena::Create(size);
    if (!arena.ok()) return Fail(arena.status());
    info_memory_ = *std::move(arena);
    auto region = port_.fabric().Register(info_memory_.bytes(), fabric::Access::kLocal);
    if (!region.ok()) return Fail(region.status());
    info_region_ = *std::move(region);
  }
  const fabric::Sge sge{info_memory_.bytes().data(), static_cast<std::uint32_t>(size),
                        info_region_->keys()[device_].lkey};
  const fabric::ReceiveRequest receive{Port::MakeCookie(context_, kInfoKind, {}), {&sge, 1}};
  connection_->PostReceive({&receive, 1});
  info_ = info;
  info_posted_ = info_owed_ = true;
  RequestTurnEnd();
}

void ClientConnection::OnInfo(const fabric::Completion& completion) {
  if (violated_) return;
  if (completion.opcode != fabric::Opcode::kReceive || completion.has_imm ||
      completion.byte_count > info_memory_.bytes().size()) {
    violated_ = true;
    Fail(absl::InternalError(absl::StrCat(Name(), ": something else came instead of INFO_RSP")));
    return;
  }
  const std::span<const std::byte> bytes = info_memory_.bytes().first(completion.byte_count);
  Report([message = std::vector<std::byte>(bytes.begin(), bytes.end())](
             ConnectionObserver& observer, std::uint32_t, std::uint32_t round) {
    observer.OnInfoResponse(round, message);
  });
}

void ClientConnection::Activate(LaneActivation activation) {
  if (activation.round != round_ || state_ != State::kEstablished) return;
  CHECK_LE(activation.permits.count, permit_count_max_);
  CHECK_EQ(activation.chunks.size(), std::size_t{activation.permits.count});
  limits_ = activation.limits;
  new_rkey_ = activation.new_rkey;
  imm_layout_.emplace(limits_.queue_depth);
  permits_ = activation.permits;
  chunks_ = std::move(activation.chunks);
  lane_.SetPermits(permits_);
  state_ = State::kUp;
  RequestTurnEnd();  // The receives.
  Report([](ConnectionObserver& observer, std::uint32_t cid, std::uint32_t round) {
    observer.OnConnectionActive(cid, round);
  });
}

// If it is broken again already, what was in doubt is fenced all the same.
void ClientConnection::Enable(std::uint32_t round) {
  lane_.OnFenced(path_);
  if (round != round_ || state_ != State::kUp) return;
  enabled_ = true;
  lane_.OnEnabled(*this);
}

void ClientConnection::SendHeartbeat(std::uint32_t round) {
  if (round != round_ || state_ != State::kUp) return;
  heartbeat_owed_ = true;
  Notice();
}

void ClientConnection::Notice() {
  if (state_ != State::kUp) return;
  notice_owed_ = true;
  RequestTurnEnd();
}

void ClientConnection::Break(std::uint32_t round) {
  // Never told of this round, or told of it but drained already: the session counts the reports.
  if (round != round_ || state_ == State::kIdle) {
    round_ = round;
    ReportDrained();
    return;
  }
  reported_broken_ = true;  // It knows.
  Fail(absl::CancelledError("path broken"));
}

// The only way into kBroken.  The first caller's reason is reported.
void ClientConnection::Fail(const absl::Status& why, bool fatal) {
  if (!std::exchange(reported_broken_, true)) {
    Report([why, fatal](ConnectionObserver& observer, std::uint32_t cid, std::uint32_t round) {
      observer.OnConnectionBroken(cid, round, why, fatal);
    });
  }
  if (state_ != State::kBroken) {
    state_ = State::kBroken;
    if (std::exchange(enabled_, false)) lane_.OnDisabled(*this);
    batch_count_ = 0;
    if (connection_ != nullptr) connection_->Disconnect();
    drain_timer_->ArmAfter(0);
  }
}

void ClientConnection::FailRequest(fabric::WcStatus status) {
  if (state_ == State::kBroken) return;
  Fail(ErrnoStatus(ErrnoFromWc(status), absl::StrCat(Name(), ": request failed")));
}

// The peer broke the protocol: nothing it says counts any more.
void ClientConnection::FailViolation(const char* reason) {
  violated_ = true;
  Fail(absl::InternalError(absl::StrCat(Name(), ": protocol violation: ", reason)));
}

void ClientConnection::ReportHeartbeatAck() {
  Report([](ConnectionObserver& observer, std::uint32_t, std::uint32_t round) {
    observer.OnHeartbeatAck(round);
  });
}

// F10: only when drained() says so, nothing touches the requests' memory any more.
void ClientConnection::CheckDrained() {
  if (state_ != State::kBroken) return;
  if (connection_ != nullptr && !(disconnected_ && connection_->drained())) {
    drain_timer_->ArmAfter(kDrainPollNs);
    return;
  }
  drain_timer_->Cancel();
  connection_.reset();
  state_ = State::kIdle;
  lane_.OnDrained(*this);
  ReportDrained();
}

void ClientConnection::ReportDrained() {
  Report([](ConnectionObserver& observer, std::uint32_t cid, std::uint32_t round) {
    observer.OnConnectionDrained(cid, round);
  });
}

void ClientConnection::ShutDown() {
  CHECK(state_ == State::kIdle);
  if (drain_timer_.has_value()) lane_.RemoveConnection(*this);
  drain_timer_.reset();
  if (std::exchange(attached_, false)) port_.Detach(context_);
  memory_region_.reset();
  info_region_.reset();
  Report([](ConnectionObserver& observer, std::uint32_t cid, std::uint32_t) {
    observer.OnConnectionShutDown(cid);
  });
}

}  // namespace ibnbd::rtrs
