// SPDX-License-Identifier: Apache-2.0
// Requests go out and answers come in on one connection; the lane says which requests, and is told
// of the answers.  Nothing here allocates, locks or logs; a peer that breaks the protocol leaves
// through Fail().
#include <utility>

#include "rtrs/client_connection.h"
#include "rtrs/client_lane.h"

namespace ibnbd::rtrs {
void ClientConnection::OnCompletion(const CookieParts& cookie,
                                    const fabric::Completion& completion) {
  if (completion.status != fabric::WcStatus::kOk) [[unlikely]] {
    // Flushed is an echo: the connection broke earlier, and kDisconnected, which follows, says why.
    if (completion.status != fabric::WcStatus::kFlushed) FailRequest(completion.status);
    return;
  }
  switch (cookie.kind) {
    case kReceiveKind:
      OnReceive(cookie.slot.index, completion);
      break;
    case kDataKind:
      OnSendDone();
      lane_.OnDataSent(cookie.slot.index, *this);
      break;
    case kCreditKind:
      OnSendDone();
      break;
    case kInfoKind:
      OnInfo(completion);
      break;
    default:
      break;
  }
}

// Signaled sends complete in order, so each retires what was posted up to the oldest of them.
void ClientConnection::OnSendDone() {
  CHECK(signaled_count_ > 0);
  sends_retired_ = signaled_[signaled_head_];
  signaled_head_ = signaled_head_ + 1 == signaled_.size() ? 0 : signaled_head_ + 1;
  --signaled_count_;
  const bool wanted = lane_.waits() || acks_owed_ > 0 || heartbeat_owed_ || info_owed_;
  if (wanted) RequestTurnEnd();
}

void ClientConnection::OnReceive(std::uint32_t index, const fabric::Completion& completion) {
  // One writer: no read-modify-write needed.
  receive_count_.store(receive_count_.load(std::memory_order_relaxed) + 1,
                       std::memory_order_relaxed);
  if (!violated_) OnImmediate(index, completion);
  if (state_ == State::kBroken) return;
  free_receives_.push_back(index);  // Reserved: does not allocate.
  RequestTurnEnd();
}

void ClientConnection::OnImmediate(std::uint32_t index, const fabric::Completion& completion) {
  const char* reason = nullptr;
  if (completion.has_invalidate) {
    reason = "an rkey was invalidated unasked";
  } else if (!completion.has_imm) {
    reason = "a message without an immediate";
  } else {
    switch (proto::ImmTypeOf(completion.imm)) {
      case proto::ImmType::kIoRsp:
        reason = OnResponse(index, completion);
        break;
      case proto::ImmType::kIoRspInvalidated:
        reason = "a response that claims an invalidation";
        break;
      case proto::ImmType::kHbMsg:
        if (cid_ == 0) ++acks_owed_;
        break;
      case proto::ImmType::kHbAck:
        if (cid_ == 0) ReportHeartbeatAck();
        break;
      default:  // Unknown types are ignored: they are a later version's.
        break;
    }
  }
  if (reason == nullptr) [[likely]]
    return;
  FailViolation(reason);
}

const char* ClientConnection::OnResponse(std::uint32_t index,
                                         const fabric::Completion& completion) {
  const proto::IoRspImm response = proto::UnpackIoRsp(completion.imm);
  const std::uint32_t local = response.msg_id - permits_.first;  // Wraps to something large.
  if (local >= permits_.count) return "a response for a chunk of another connection";
  const ClientRequest* request = lane_.AwaitedOn(local, *this);
  if (request == nullptr) return "a response without a request";
  const char* reason = CheckResponse(index, completion, response.msg_id, *request, response.error);
  if (reason != nullptr) return reason;
  lane_.OnAnswer(local, response.error, state_ == State::kUp);
  return nullptr;
}

const char* ClientConnection::CheckResponse(std::uint32_t index,
                                            const fabric::Completion& completion,
                                            std::uint32_t msg_id, const ClientRequest& request,
                                            int error) {
  if (new_rkey_) {
    if (completion.opcode != fabric::Opcode::kReceive) return "a response without its rkey";
    if (completion.byte_count != kReceiveSize) return "a response of the wrong size";
    const std::span<const std::byte> receive = memory_.bytes().subspan(
        std::size_t{sends_max_} * kHeaderStride + index * kReceiveSize, kReceiveSize);
    proto::RkeyRsp rkey;
    const char* reason = proto::DecodeRkeyRsp(receive, msg_id, &rkey);
    if (reason != nullptr) return reason;
    chunks_[msg_id - permits_.first].rkey = rkey.rkey.get();
    return nullptr;
  }
  if (completion.opcode != fabric::Opcode::kReceiveWriteImm) return "a response by a send";
  if (completion.byte_count == 0) return nullptr;
  // Read data and response in one write.
  if (!request.is_read || error != 0) return "a response with data that nobody asked for";
  if (completion.byte_count != request.data.size()) return "a read of another size";
  return nullptr;
}

void ClientConnection::PostReceivesAndService() {
  if (state_ != State::kUp && !(state_ == State::kEstablished && info_posted_)) return;
  PostReceives();
  PostService();
}

// Before any send of the turn: what answers it finds a receive (N1).
void ClientConnection::PostReceives() {
  std::array<fabric::ReceiveRequest, kBatchMax> requests;
  std::array<fabric::Sge, kBatchMax> sges;
  std::byte* base = memory_.bytes().data() + std::size_t{sends_max_} * kHeaderStride;
  while (!free_receives_.empty()) {
    std::size_t count = 0;
    for (; count < kBatchMax && !free_receives_.empty(); ++count) {
      const std::uint32_t index = free_receives_.back();
      free_receives_.pop_back();
      sges[count] = {base + std::size_t{index} * kReceiveSize, kReceiveSize, memory_lkey_};
      requests[count] = {Port::MakeCookie(context_, kReceiveKind, {index, 0}), {&sges[count], 1}};
    }
    connection_->PostReceive(std::span(requests).first(count));
  }
}

// Connection 0: acknowledgements, heartbeats, INFO_REQ.  The others: heartbeats, to our own
// servers.
void ClientConnection::PostService() {
  if (cid_ != 0 && !heartbeat_owed_ && !notice_owed_) [[likely]]
    return;
  if (std::exchange(notice_owed_, false)) {  // Whether there was a credit or not.
    notices_.store(notices_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  std::span<std::byte> header;
  for (; acks_owed_ > 0 && HasCredit(); --acks_owed_) {
    fabric::SendRequest& send = AddSend(&header);
    send.imm = proto::kImmHbAck;
    SignalNowAndThen(send);
  }
  if (heartbeat_owed_ && HasCredit()) {
    heartbeat_owed_ = false;
    fabric::SendRequest& send = AddSend(&header);
    send.imm = proto::kImmHbMsg;
    SignalNowAndThen(send);
  }
  if (info_owed_ && HasCredit()) {
    info_owed_ = false;
    fabric::SendRequest& send = AddSend(&header);
    const std::size_t size = proto::Encode(header, info_);
    send.opcode = fabric::Opcode::kSend;
    batch_sges_[batch_count_ - 1][0] = {header.data(), static_cast<std::uint32_t>(size),
                                        memory_lkey_};
    send.sges = std::span(batch_sges_[batch_count_ - 1]).first(1);
    SignalNowAndThen(send);
  }
}

void ClientConnection::AddRequest(ClientRequest& request, std::uint32_t chunk,
                                  std::uint32_t local) {
  const std::uint32_t data_size = static_cast<std::uint32_t>(request.data.size());
  DCHECK_LE(data_size, limits_.io_size_max);
  std::span<std::byte> header;
  fabric::SendRequest& send = AddSend(&header);
  const proto::ChunkAddress& target = chunks_[local];
  send.remote = {target.addr, target.rkey};
  send.imm = imm_layout_->Pack(
      {.mem_id = chunk, .off = data_size + static_cast<std::uint32_t>(request.message.size())});
  if (request.is_read) {
    AddRead(request, send, header);
  } else {
    AddWrite(request, local, send, header);
  }
}

void ClientConnection::AddRead(const ClientRequest& request, fabric::SendRequest& send,
                               std::span<std::byte> header) {
  std::array<fabric::Sge, 2>& sges = batch_sges_[batch_count_ - 1];
  const std::uint32_t data_size = static_cast<std::uint32_t>(request.data.size());
  const proto::SgDesc desc{
      .addr = proto::le64(reinterpret_cast<std::uintptr_t>(request.data.data())),
      .key = proto::le32(data_size == 0 ? 0 : (*request.keys)[device_].rkey),
      .len = proto::le32(data_size)};
  const std::size_t size =
      proto::EncodeReadRequest(header, request.message, data_size == 0 ? nullptr : &desc);
  sges[0] = {header.data(), static_cast<std::uint32_t>(size), memory_lkey_};
  send.sges = std::span(sges).first(1);
  send.remote.addr += data_size;  // The room before it is for the data, on its way back.
  SignalNowAndThen(send);
}

void ClientConnection::AddWrite(const ClientRequest& request, std::uint32_t local,
                                fabric::SendRequest& send, std::span<std::byte> header) {
  std::array<fabric::Sge, 2>& sges = batch_sges_[batch_count_ - 1];
  const std::uint32_t data_size = static_cast<std::uint32_t>(request.data.size());
  const std::size_t size = proto::EncodeWriteRequest(header, request.message);
  const fabric::Sge header_sge{header.data(), static_cast<std::uint32_t>(size), memory_lkey_};
  if (data_size == 0) {
    sges[0] = header_sge;
    send.sges = std::span(sges).first(1);
    SignalNowAndThen(send);
    return;
  }
  sges[0] = {request.data.data(), data_size, (*request.keys)[device_].lkey};
  sges[1] = header_sge;
  send.sges = std::span(sges).first(2);
  SetSignaled(send, kDataKind, local);
}

fabric::SendRequest& ClientConnection::AddSend(std::span<std::byte>* header) {
  DCHECK(HasCredit());
  if (batch_count_ == kBatchMax) PostBatch();
  const std::size_t place = sends_posted_++ % sends_max_;  // N2.
  *header = memory_.bytes().subspan(place * kHeaderStride, kHeaderStride);
  fabric::SendRequest& send = batch_[batch_count_++];
  send = fabric::SendRequest{};
  send.opcode = fabric::Opcode::kWriteImm;
  return send;
}

void ClientConnection::SetSignaled(fabric::SendRequest& send, Kind kind, std::uint32_t index) {
  send.signaled = true;
  send.cookie = Port::MakeCookie(context_, kind, {index, 0});
  unsignaled_count_ = 0;
  const std::size_t tail = signaled_head_ + signaled_count_++;
  signaled_[tail < signaled_.size() ? tail : tail - signaled_.size()] = sends_posted_;
}

// One in a quarter of the credits is signaled, so that credits come back before they run out.
void ClientConnection::SignalNowAndThen(fabric::SendRequest& send) {
  if (++unsignaled_count_ >= sends_max_ / 4) {
    SetSignaled(send, kCreditKind, 0);
    return;
  }
  send.signaled = false;
  send.cookie = Port::MakeCookie(context_, kPlainKind, {});
}

void ClientConnection::PostBatch() {
  if (batch_count_ == 0) return;
  connection_->PostSend(std::span(batch_).first(batch_count_));
  batch_count_ = 0;
}

}  // namespace ibnbd::rtrs
