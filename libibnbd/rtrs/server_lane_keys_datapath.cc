// SPDX-License-Identifier: Apache-2.0
// Keys per IO, the server's side (wire.md 4.4, NEW_RKEY): a write's window is closed before the
// write executes, so that nobody changes the data under the backend; each answer opens the window
// of its chunk under the next key, and tells it.  All of an answer is posted under one doorbell.
// On the lane's thread.
//
// A chunk is free for another connection's requests only when its answer has landed: on another
// queue pair a close could overtake the opening, and the key would live while a write executes.  An
// honest client may be that fast; its request waits (server_lane_keys.cc).
#include "rtrs/server_lane.h"

namespace ibnbd::rtrs {

bool ServerLane::NextClose(fabric::SendRequest& send) {
  if (!TakeCredit(send, true, kCloseKind)) return false;
  ServerRequest& request = to_close_.PopFront();
  send.opcode = fabric::Opcode::kCloseWindow;
  send.window = &pool_->window(request.chunk_id_);
  closing_.PushBack(request);
  return true;
}

// They complete in the order in which they were posted.
void ServerLane::OnWindowClosed() {
  DCHECK(!closing_.empty());
  Execute(closing_.PopFront());
}

// The peer has the key that the answer brought.
void ServerLane::OnAnswerLanded(ServerRequest& request) {
  DCHECK_GT(request.unsettled_, 0u);
  if (--request.unsettled_ > 0) return;
  Turn seen = request.turn_.load(std::memory_order_relaxed);
  if (seen == Turn::kTaken) return;  // By this lane again: its queue pair keeps the order.
  request.Unlink();
  seen = Turn::kAnswered;
  if (request.turn_.compare_exchange_strong(seen, Turn::kFree, std::memory_order_release)) return;
  if (request.wanted_by_ != nullptr) HandOver(request);  // Else OnWanted() is on its way.
}

// The data, if there is any; then the window; then the message with its key.
bool ServerLane::NextKeyedResponse(fabric::SendRequest& send, fabric::Sge& sge) {
  ServerRequest& request = responses_.front();
  const bool is_message = step_ == Step::kMessage;
  if (!TakeCredit(send, is_message, is_message ? kAnswerKind : kSendKind, request.chunk_id_)) {
    return false;
  }
  const bool has_data = request.wire_.has_desc && request.error_ == 0 && request.wire_.data_len > 0;
  if (step_ == Step::kData && has_data) {
    sge = {request.data_.data(), request.wire_.data_len, pool_->lkey(request.chunk_id_)};
    send.opcode = fabric::Opcode::kWrite;
    send.sges = {&sge, 1};
    send.remote = {request.wire_.desc_addr, request.wire_.desc_key};
    step_ = Step::kWindow;
    return true;
  }
  if (!is_message) {
    fabric::Window& window = pool_->window(request.chunk_id_);
    next_rkey_ = window.next_rkey();
    send.opcode = fabric::Opcode::kOpenWindow;
    send.window = &window;
    step_ = Step::kMessage;
    return true;
  }
  // Inline: the batch is all that it lives for.
  proto::RkeyRsp& message = rkey_batch_[static_cast<std::size_t>(&send - send_batch_.data())];
  message = {.buf_id = proto::le16(static_cast<std::uint16_t>(request.chunk_id_)),
             .rkey = proto::le32(next_rkey_)};
  sge = {reinterpret_cast<std::byte*>(&message), sizeof message, 0};
  send.opcode = fabric::Opcode::kSendImm;
  send.sges = {&sge, 1};
  send.imm = proto::PackIoRsp(proto::ImmType::kIoRsp,
                              {.msg_id = request.chunk_id_, .error = request.error_});
  step_ = Step::kData;
  responses_.PopFront();
  answered_.PushBack(request);
  ++request.unsettled_;
  request.turn_.store(Turn::kAnswered, std::memory_order_release);
  return true;
}

}  // namespace ibnbd::rtrs
