// SPDX-License-Identifier: Apache-2.0
// Requests come in, answers go out: the per-IO part of a server lane, on the lane's thread.  Posts
// are collected during a turn and handed over at its end in one batch, receives before answers, so
// that the peer, when it sees an answer, finds a receive for its next request.
#include <algorithm>

#include "base/canary.h"
#include "rtrs/server_lane.h"

namespace ibnbd::rtrs {
namespace {

constexpr std::uint32_t kAcksOwedMax = 8;  // A flood of heartbeats is answered, not mirrored.

}  // namespace

void ServerRequest::Complete(int error) { lane_->OnRequestComplete(*this, error); }

void ServerLane::OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) {
  if (!open()) return;
  if (completion.status != fabric::WcStatus::kOk) [[unlikely]] {
    if (completion.status == fabric::WcStatus::kRemoteAccess) {
      return Break("the client refused what it had asked for");
    }
    return Break("connection lost", 0, Blame::kNetwork);
  }
  if (cookie.kind >= kSendKind) {
    const bool is_answer = cookie.kind == kAnswerKind;
    // How many sends this completion covers.
    const std::uint32_t count = is_answer ? cookie.slot.generation : cookie.slot.index;
    DCHECK_GE(sends_outstanding_, count);
    sends_outstanding_ -= count;
    if (is_answer) OnAnswerLanded(pool_->request(cookie.slot.index));
    if (cookie.kind == kCloseKind) OnWindowClosed();
    if (!to_close_.empty()) RequestTurnEnd();
    if (!responses_.empty() || state_ == State::kDraining) RequestTurnEnd();
    return;
  }
  receive_count_.store(receive_count_.load(std::memory_order_relaxed) + 1,
                       std::memory_order_relaxed);
  OnReceive(cookie, completion);
}

void ServerLane::OnReceive(const CookieParts& cookie, const fabric::Completion& completion) {
  if (cookie.kind == kInfoReceiveKind) [[unlikely]] {
    return OnInfoReceive(completion);
  }
  if (completion.opcode != fabric::Opcode::kReceiveWriteImm || !completion.has_imm) [[unlikely]] {
    return Break("a message that is neither a request nor a heartbeat");
  }
  ++receives_owed_;
  RequestTurnEnd();
  switch (proto::ImmTypeOf(completion.imm)) {
    case proto::ImmType::kIoReq:
      return OnIoRequest(completion.imm);
    case proto::ImmType::kHbMsg:
      if (acks_owed_ < kAcksOwedMax) ++acks_owed_;
      return;
    default:
      return;  // HB_ACK has done its work by arriving; unknown types are ignored (wire.md 3).
  }
}

void ServerLane::OnIoRequest(std::uint32_t imm) {
  if (pool_ == nullptr) [[unlikely]] {
    return Break("request before INFO_RSP");
  }
  const proto::IoReqImm fields = imm_layout_.Unpack(imm);
  if (fields.mem_id >= options_.geometry.queue_depth) [[unlikely]] {
    return Break("request: mem_id >= queue_depth");
  }
  // The path is about to be closed: what is not begun is the client's to repeat.
  if (state_ == State::kDraining) [[unlikely]] {
    return;
  }
  ServerRequest& request = pool_->request(fields.mem_id);
  Turn seen = Turn::kFree;
  if (request.turn_.compare_exchange_strong(seen, Turn::kTaken, std::memory_order_acquire))
      [[likely]] {
    return Begin(request, fields.off);
  }
  if (seen == Turn::kAnswered) return Want(request, fields.off);
  Break("request: its chunk is still executing");
}

void ServerLane::Begin(ServerRequest& request, std::uint32_t off) {
  const std::span<std::byte> chunk = pool_->chunk(request.chunk_id_);
  const char* reason = proto::DecodeIoRequest(
      chunk, off, {.max_io_size = options_.geometry.io_size_max}, &request.wire_);
  if (reason != nullptr) [[unlikely]] {
    ReleaseRequest(request);
    return Break(reason);
  }
  request.data_ = chunk.first(request.wire_.data_len);
  request.lane_ = this;
  request.registered_buffer_ = registered_buffer_;
  executing_seen_.store(++executing_count_, std::memory_order_relaxed);
  if (pool_->has_windows() && !request.wire_.is_read && !request.data_.empty()) {
    to_close_.PushBack(request);  // Posted at the end of the turn; OnWindowClosed() follows.
    return RequestTurnEnd();
  }
  Execute(request);
}

void ServerLane::Execute(ServerRequest& request) {
  if (!pool_->fence().Enter(request)) [[unlikely]] {
    return;  // Resume() follows.
  }
  service_->OnRequest(request);
}

void ServerLane::OnRequestComplete(ServerRequest& request, int error) {
  DCHECK(port_.reactor().InThread());
  DCHECK(request.turn_.load(std::memory_order_relaxed) == Turn::kTaken);
  DCHECK_GT(executing_count_, 0u);
  const bool answers = LeaveFence(request);
  // Abandoned ones count for ever, and who waits for their end waits for ever.
  if (!(IBNBD_CANARY(8) && !open())) --executing_count_;
  executing_seen_.store(executing_count_, std::memory_order_relaxed);
  request.error_ = error;
  RequestTurnEnd();
  if (!answers) [[unlikely]] {
    Break("its client went on over another path", 0, Blame::kNetwork);
  }
  if (!open()) [[unlikely]] {
    return ReleaseRequest(request);  // Abandoned: nobody to answer.
  }
  responses_.PushBack(request);
}

// False: another one of its number is to execute yet, and may be answered, this one not.
bool ServerLane::LeaveFence(ServerRequest& request) {
  ServerRequest* waiter = pool_->fence().Leave(request);
  if (waiter == nullptr) [[likely]] {
    return true;
  }
  ResumeOnItsLane(*waiter);
  return false;
}

void ServerLane::ReleaseRequest(ServerRequest& request) {
  request.turn_.store(Turn::kFree, std::memory_order_release);
}

void ServerLane::OnTurnEnd() {
  if (open()) [[likely]] {
    if (receives_owed_ > 0) PostReceives();
    PostSends();
    if (state_ == State::kDraining) [[unlikely]] {
      TryFinishDrain();
      if (drain_probe_owed_) PostSends();
    }
    return;
  }
  TryFinish();
}

void ServerLane::PostReceives() {
  while (receives_owed_ > 0) {
    const std::size_t count = std::min<std::size_t>(receives_owed_, kPostBatch);
    connection_->PostReceive({receive_batch_.data(), count});
    receives_owed_ -= static_cast<std::uint32_t>(count);
  }
}

// Takes a send credit and decides whether this send is the one that gives some back; false if there
// is none: the completion of a signaled send asks for another turn end.
bool ServerLane::TakeCredit(fabric::SendRequest& send, bool force_signal, Kind kind,
                            std::uint32_t chunk_id) {
  if (sends_outstanding_ >= sends_max_) {
    ++credit_waits_;
    return false;
  }
  ++sends_outstanding_;
  ++sends_since_signal_;
  send.signaled = force_signal || sends_since_signal_ >= signal_interval_;
  // How many sends its completion covers.  The generation has room for an answer's few.
  DCHECK(kind != kAnswerKind || sends_since_signal_ < 1u << kSlotGenerationBits);
  send.cookie = kind == kAnswerKind
                    ? Port::MakeCookie(context_, kind, {chunk_id, sends_since_signal_})
                    : Port::MakeCookie(context_, kind, {sends_since_signal_, 0});
  if (send.signaled) sends_since_signal_ = 0;
  return true;
}

// Fills one send with what is owed; the order is that of urgency.  False if nothing is, or no
// credit.
bool ServerLane::NextSend(fabric::SendRequest& send, fabric::Sge& sge) {
  send = {};
  if (info_rsp_size_ > 0) [[unlikely]] {
    if (!TakeCredit(send, true)) return false;
    sge = {info_region_->memory().data() + kInfoRspOffset, info_rsp_size_, info_region_->lkey()};
    send.opcode = fabric::Opcode::kSend;
    send.sges = {&sge, 1};
    info_rsp_size_ = 0;
    return true;
  }
  send.opcode = fabric::Opcode::kWriteImm;
  if (acks_owed_ > 0 || heartbeat_owed_) [[unlikely]] {
    if (!TakeCredit(send, false)) return false;
    send.imm = acks_owed_ > 0 ? proto::kImmHbAck : proto::kImmHbMsg;
    if (acks_owed_ > 0) {
      --acks_owed_;
    } else {
      heartbeat_owed_ = false;
    }
    return true;
  }
  if (!to_close_.empty()) return NextClose(send);
  if (!responses_.empty() && pool_->has_windows()) return NextKeyedResponse(send, sge);
  if (!responses_.empty()) {
    if (!TakeCredit(send, state_ == State::kDraining)) return false;
    FillResponse(send, sge, responses_.PopFront());
    return true;
  }
  if (drain_probe_owed_) [[unlikely]] {
    if (!TakeCredit(send, true)) return false;
    send.opcode = fabric::Opcode::kWrite;  // Of nothing, to nowhere: the peer does not notice.
    drain_probe_owed_ = false;
    return true;
  }
  return false;
}

// The answer to a read carries the data in the same message.  The chunk is the client's again from
// here on: it cannot know of the answer before the data has left the chunk.
void ServerLane::FillResponse(fabric::SendRequest& send, fabric::Sge& sge, ServerRequest& request) {
  send.imm = proto::PackIoRsp(proto::ImmType::kIoRsp,
                              {.msg_id = request.chunk_id_, .error = request.error_});
  if (request.wire_.has_desc && request.error_ == 0) {
    sge = {request.data_.data(), request.wire_.data_len, pool_->lkey(request.chunk_id_)};
    send.sges = {&sge, 1};
    send.remote = {request.wire_.desc_addr, request.wire_.desc_key};
    // Beside the buffer, if it is one of sectors: the client has to get that far.
    if (IBNBD_CANARY(5) && sge.length % 512 == 0) send.remote.addr -= 8;
  }
  ReleaseRequest(request);
}

void ServerLane::PostSends() {
  std::size_t count = kPostBatch;
  while (count == kPostBatch) {
    count = 0;
    while (count < kPostBatch && NextSend(send_batch_[count], sge_batch_[count])) ++count;
    if (count > 0) connection_->PostSend({send_batch_.data(), count});
  }
}

}  // namespace ibnbd::rtrs
