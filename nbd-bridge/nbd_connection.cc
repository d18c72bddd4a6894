// SPDX-License-Identifier: Apache-2.0
// A connection's beginning and end; see nbd_connection.h.  The middle is
// nbd_connection_datapath.cc.
#include "nbd-bridge/nbd_connection.h"

#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"

namespace ibnbd::bridge {
void NbdConnection::Start(LoopContext& context, UniqueFd socket, std::string peer) {
  auto* connection = new NbdConnection(context.loop, std::move(socket), std::move(peer));
  connection->context_ = &context;
  connection->handshake_ =
      std::make_unique<NbdHandshake>(context.volumes, &connection->handshake_out_);
  connection->PumpHandshake();
}

void NbdConnection::Resume(LoopContext& context, UniqueFd socket, std::string peer,
                           const ClientState& state) {
  if (state.is_new) return Start(context, std::move(socket), std::move(peer));
  auto* connection = new NbdConnection(context.loop, std::move(socket), std::move(peer));
  connection->context_ = &context;
  connection->phase_ = Phase::kTransmission;
  const std::optional<std::size_t> index = context.volumes.Find(state.export_name);
  if (!index) return connection->Close("its export is gone since another process served it");
  const NbdExport now = context.volumes.Describe(*index);
  const proto::NbdExportLimits limits{.size = now.size,
                                      .block_size_min = now.block_size_min,
                                      .payload_size_max = now.block_size_max,
                                      .flags = now.flags};
  if (const char* why = WhyNotResumed(state, context.volumes.volume(*index).id(), limits)) {
    return connection->Close(why);
  }
  if (state.received.size() > kStagingSize) return connection->Close("it has sent too much");
  if (!connection->TakeExport(*index)) return;
  connection->limits_ = state.limits;
  connection->structured_ = state.structured_replies;
  std::memcpy(connection->staging_.get(), state.received.data(), state.received.size());
  connection->stage_end_ = state.received.size();
  LOG_DEBUG("client ", connection->peer_, " goes on with export \"", state.export_name, "\"");
  connection->StartTransmission();
}

void NbdConnection::Attach(EventLoop& loop, UniqueFd socket, NbdAttachment attachment) {
  auto* connection = new NbdConnection(loop, std::move(socket), "the kernel");
  connection->device_ = attachment.device;
  connection->queue_ = attachment.queue;
  connection->memory_ = std::move(attachment.memory);
  connection->limits_ = attachment.limits;
  connection->on_end_ = std::move(attachment.on_end);
  connection->StartTransmission();
}

NbdConnection::NbdConnection(EventLoop& loop, UniqueFd socket, std::string peer)
    : loop_(loop),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      started_ns_(loop.now_ns()),
      staging_(std::make_unique<std::byte[]>(kStagingSize)) {
  loop.Add(*this);
}

NbdConnection::~NbdConnection() {
  loop_.Remove(*this);
  if (context_ != nullptr) {
    Unlist();
    if (memory_ != nullptr) context_->memory.Give(session_index_, std::move(memory_));
    context_->connection_count.fetch_sub(1, std::memory_order_relaxed);
  }
  memory_.reset();
  if (on_end_) on_end_();
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
      StartChosen();
      return;
    }
    if (staged().empty()) {
      ArmReceive();
      return;
    }
    stage_begin_ += handshake_->Feed(staged(), &handshake_out_);
  }
}

void NbdConnection::StartChosen() {
  if (!TakeExport(handshake_->export_index())) return;
  limits_ = handshake_->limits();
  structured_ = handshake_->structured_replies();
  handshake_.reset();
  LOG_DEBUG("client ", peer_, " export \"", context_->volumes.volume(export_index_).export_name,
            "\"");
  StartTransmission();
}

// False: closed.
bool NbdConnection::TakeExport(std::size_t index) {
  const Volume& volume = context_->volumes.volume(index);
  auto memory = context_->memory.Take(volume.session_index);
  if (!memory.ok()) {
    Close(std::string(memory.status().message()).c_str());
    return false;
  }
  memory_ = *std::move(memory);
  export_index_ = index;
  session_index_ = volume.session_index;
  device_ = volume.device;
  queue_ = context_->queues[volume.session_index];
  return true;
}

void NbdConnection::StartTransmission() {
  // Zeroes are fast where they become holes or unwritten extents, and a device that has those can
  // discard.  The protocol leaves no way to ask the server.
  fast_zero_ = (limits_.flags & proto::kNbdSendTrim) != 0;
  phase_ = Phase::kTransmission;
  if (context_ != nullptr) listed_ = context_->served.insert(FormatClientState(StateNow()));
  Parse();
  ArmReceive();
  if (leaving()) loop_.RequestTurnEnd(*this);
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
      if (leaving()) HandOverIfDone();
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
  if (phase_ == Phase::kHandshake && loop_.now_ns() - started_ns_ >= context_->handshake_ns_max) {
    Close("the handshake took too long");
  }
  if (phase_ == Phase::kHandshake && leaving() && loop_.now_ns() - leaving_ns_ >= kNsPerSecond) {
    Close("it chose no export before another process took over");
  }
}

void NbdConnection::OnDrain() {
  if (context_ != nullptr && context_->hand_over) {
    leaving_ns_ = loop_.now_ns();
    loop_.RequestTurnEnd(*this);
  } else if (phase_ == Phase::kHandshake) {
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

// What was begun is finished as ever; then the client is somebody else's, with what it has sent
// since.
void NbdConnection::HandOverIfDone() {
  if (phase_ != Phase::kTransmission || !between_requests()) return;
  if (receive_busy_) {
    if (!std::exchange(receive_cancelled_, true)) loop_.Cancel(receive_op_);
    return;
  }
  if (memory_->requests_used() != 0 || send_busy_) return;
  ClientState state = StateNow();
  state.received.assign(reinterpret_cast<const char*>(staged().data()), staged().size());
  context_->handed_over.push_back({std::move(socket_), FormatClientState(state)});
  phase_ = Phase::kClosing;  // Without a word to the client.
}

ClientState NbdConnection::StateNow() const {
  const Volume& volume = context_->volumes.volume(export_index_);
  ClientState state;
  state.export_name = volume.export_name;
  state.volume_id = volume.id();
  state.structured_replies = structured_;
  state.limits = limits_;
  return state;
}

void NbdConnection::Unlist() {
  if (listed_) context_->served.erase(*listed_);
  listed_.reset();
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
  Unlist();
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
