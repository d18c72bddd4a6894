// SPDX-License-Identifier: Apache-2.0
// A connection's beginning and end; see nbd_connection.h.  The middle is
// nbd_connection_datapath.cc.
#include "nbd-bridge/nbd_connection.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"

namespace ibnbd::bridge {

void NbdConnection::Start(LoopContext& context, UniqueFd socket, std::string peer) {
  auto* connection = new NbdConnection(context, std::move(socket), std::move(peer));
  context.loop.Add(*connection);
  connection->PumpHandshake();
}

NbdConnection::NbdConnection(LoopContext& context, UniqueFd socket, std::string peer)
    : context_(context),
      loop_(context.loop),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      started_ns_(context.loop.now_ns()),
      staging_(std::make_unique<std::byte[]>(kStagingSize)) {
  handshake_ = std::make_unique<NbdHandshake>(context.volumes, &handshake_out_);
}

NbdConnection::~NbdConnection() {
  loop_.Remove(*this);
  if (memory_ != nullptr) context_.memory.Give(volume_->session_index, std::move(memory_));
  context_.connection_count.fetch_sub(1, std::memory_order_relaxed);
}

// Sends what the handshake has to say, then feeds it, in turns: what it produces is bounded because
// it is fed no more than one option before that was sent.
void NbdConnection::PumpHandshake() {
  while (phase_ == Phase::kHandshake && !send_busy_) {
    if (!handshake_out_.empty()) {
      send_iov_[0] = {handshake_out_.data(), handshake_out_.size()};
      send_message_.msg_iov = send_iov_.data();
      send_message_.msg_iovlen = 1;
      ArmSend();
      return;
    }
    if (handshake_->state() == NbdHandshake::State::kClosed) {
      Close(handshake_->reason());
      return;
    }
    if (handshake_->state() == NbdHandshake::State::kTransmission) {
      StartTransmission();
      return;
    }
    if (staged().empty()) {
      ArmReceive();
      return;
    }
    stage_begin_ += handshake_->Feed(staged(), &handshake_out_);
  }
}

void NbdConnection::StartTransmission() {
  volume_ = &context_.volumes.volume(handshake_->export_index());
  queue_ = context_.queues[volume_->session_index];
  limits_ = handshake_->limits();
  structured_ = handshake_->structured_replies();
  // Zeroes are fast where they become holes or unwritten extents, and a device that has those can
  // discard.  The protocol leaves no way to ask the server.
  fast_zero_ = (limits_.flags & proto::kNbdSendTrim) != 0;
  auto memory = context_.memory.Take(volume_->session_index);
  if (!memory.ok()) {
    Close(std::string(memory.status().message()).c_str());
    volume_ = nullptr;
    return;
  }
  memory_ = *std::move(memory);
  handshake_.reset();
  phase_ = Phase::kTransmission;
  LOG_DEBUG("client ", peer_, " export \"", volume_->export_name, "\"");
  Parse();
  ArmReceive();
}

void NbdConnection::OnTurnEnd() {
  switch (phase_) {
    case Phase::kHandshake:
      PumpHandshake();
      break;
    case Phase::kTransmission:
      RetryUnsubmitted();
      if (stalled_) {
        Parse();
        ArmReceive();
      }
      FlushReplies();
      break;
    case Phase::kDraining:
      RetryUnsubmitted();
      FlushReplies();
      if (memory_->requests_used() == 0 && !send_busy_) Close(nullptr);
      break;
    case Phase::kClosing:
      break;
  }
  if (phase_ == Phase::kClosing) DestroyIfIdle();
}

void NbdConnection::OnTick() {
  if (phase_ == Phase::kHandshake && loop_.now_ns() - started_ns_ >= context_.handshake_ns_max) {
    Close("the handshake took too long");
  }
}

void NbdConnection::OnDrain() {
  if (phase_ == Phase::kHandshake) {
    Close(nullptr);
  } else if (phase_ == Phase::kTransmission) {
    BeginDrain();
  }
}

void NbdConnection::BeginDrain() {
  phase_ = Phase::kDraining;
  AbandonIncoming();
  loop_.RequestTurnEnd(*this);
}

// Forgets the request that has not arrived in full.
void NbdConnection::AbandonIncoming() {
  stalled_ = false;
  if (filling_ != nullptr) {
    memory_->Release(filling_);
    filling_ = nullptr;
  }
  if (skipping_ != nullptr) ReleaseRequest(std::exchange(skipping_, nullptr));
  if (current_ != nullptr) {
    Request* request = std::exchange(current_, nullptr);
    request->error = -ESHUTDOWN;
    request->flush_after = false;
    request->state = Request::State::kExecuting;
    FinishIfDone(request);
  }
}

void NbdConnection::Close(const char* reason) {
  if (phase_ == Phase::kClosing) return;
  if (reason != nullptr && loop_.MayLog()) {
    LOG_WARN("closed the connection of ", peer_, ": ", reason);
  }
  phase_ = Phase::kClosing;
  ::shutdown(socket_.get(), SHUT_RDWR);  // Ends the operations that are under way.
  if (memory_ != nullptr) {
    AbandonIncoming();
    while (first_unsubmitted_ != nullptr) {
      Part* part = first_unsubmitted_;
      first_unsubmitted_ = part->next_unsubmitted;
      OnPartDone(part, -ECANCELED);
    }
    while (!ready_.empty()) ReleaseRequest(&ready_.PopFront());
  }
  loop_.RequestTurnEnd(*this);
}

void NbdConnection::DestroyIfIdle() {
  if (receive_busy_ || send_busy_) return;
  socket_.Reset();
  if (memory_ == nullptr || memory_->requests_used() == 0) delete this;
}

}  // namespace ibnbd::bridge
