// SPDX-License-Identifier: Apache-2.0
// Setting up and breaking; see tcp_connection_datapath.cc for what happens in between.
#include "fabric/tcp/tcp_connection.h"

#include <poll.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "fabric/tcp/tcp_domain.h"

namespace ibnbd::tcp {

using fabric::CmEvent;
using fabric::WcStatus;

namespace {

constexpr std::int64_t kGreetingNsMax = 10 * kNsPerSecond;
constexpr std::int64_t kLastWordNsMax = kNsPerSecond;
constexpr std::uint32_t kRequestsMax = 1u << 16;
constexpr std::uint32_t kSgesMin = 2;
constexpr std::uint32_t kSgesMax = 128;  // One frame always fits into a batch.
constexpr std::uint32_t kInlineMin = 64;
constexpr std::uint32_t kInlineMax = 4096;

}  // namespace

absl::StatusOr<fabric::Limits> TcpConnection::Grant(const fabric::Limits& asked) {
  fabric::Limits granted;
  granted.sends_max = std::max(asked.sends_max, 1u);
  granted.receives_max = std::max(asked.receives_max, 1u);
  granted.sges_max = std::max(asked.sges_max, kSgesMin);
  granted.inline_size_max = std::max(asked.inline_size_max, kInlineMin);
  if (granted.sends_max > kRequestsMax || granted.receives_max > kRequestsMax ||
      granted.sges_max > kSgesMax || granted.inline_size_max > kInlineMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tcp: limits beyond ", kRequestsMax, " sends and receives, ", kSgesMax, " sges, ",
        kInlineMax, " bytes inline: sends ", asked.sends_max, " receives ", asked.receives_max,
        " sges ", asked.sges_max, " inline ", asked.inline_size_max));
  }
  return granted;
}

TcpConnection::TcpConnection(TcpPoller& poller, UniqueFd fd, const fabric::Limits& granted,
                             std::uint64_t context)
    : poller_(poller),
      fd_(std::move(fd)),
      limits_(granted),
      context_(context),
      completions_max_(std::size_t{granted.sends_max} + granted.receives_max),
      dirty_hook_(*this),
      recv_op_(*this, &TcpConnection::OnRecvCqe),
      send_op_(*this, &TcpConnection::OnSendCqe),
      timer_(poller.reactor().timers(), [this] { OnTimer(); }) {
  const std::size_t sends = std::bit_ceil(limits_.sends_max);
  const std::size_t receives = std::bit_ceil(limits_.receives_max);
  send_mask_ = static_cast<std::uint32_t>(sends - 1);
  receive_mask_ = static_cast<std::uint32_t>(receives - 1);
  send_slots_ = std::make_unique<SendSlot[]>(sends);
  send_sges_ = std::make_unique<fabric::Sge[]>(sends * limits_.sges_max);
  inline_bytes_.reset(new std::byte[sends * limits_.inline_size_max]);
  receive_slots_ = std::make_unique<ReceiveSlot[]>(receives);
  receive_sges_ = std::make_unique<fabric::Sge[]>(receives * limits_.sges_max);
  poller_.AddConnection(*this, completions_max_);
  poller_.regions().Watch(landing_);
}

TcpConnection::~TcpConnection() {
  CHECK(drained());
  poller_.regions().Unwatch(landing_);
  poller_.RemoveConnection(*this, completions_max_);
}

// --- Setting up. ---

void TcpConnection::StartActive(const SocketAddress& peer, const fabric::ConnectionOptions& options,
                                std::span<const std::byte> private_data) {
  peer_address_ = peer;
  domain_ = TcpDomain::IdOf(options.domain);
  greeting_out_.Set(proto::tcp::GreetingKind::kConnect, private_data);
  PostReceive(options.receives);
  if (state_ != State::kConnecting) return;  // A receive was refused.
  timer_.ArmAt(poller_.reactor().clock().NowNs() + kGreetingNsMax);
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  io_uring_prep_connect(sqe, fd_.get(),
                        reinterpret_cast<const sockaddr*>(peer_address_.bytes.data()),
                        peer_address_.length);
  recv_op_.Prepare(poller_.ring(), sqe);
}

void TcpConnection::OnConnected(int result) {
  if (result < 0) {
    EndAttempt(CmEvent::Kind::kUnreachable, result);
    return;
  }
  local_address_ = LocalAddressOf(fd_.get());
  state_ = State::kGreeting;
  greeting_left_ = greeting_out_.size;
  StartSend();
  ArmGreetingRecv();
}

void TcpConnection::ArmGreetingRecv() {
  const std::span<std::byte> window = greeting_in_.Window();
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  io_uring_prep_recv(sqe, fd_.get(), window.data(), window.size(), 0);
  recv_op_.Prepare(poller_.ring(), sqe);
}

void TcpConnection::OnGreetingBytes(int result) {
  if (result <= 0) {
    EndAttempt(CmEvent::Kind::kUnreachable, result == 0 ? -ECONNRESET : result);
    return;
  }
  const char* reason = greeting_in_.Advance(static_cast<std::size_t>(result));
  if (reason == nullptr && greeting_in_.complete() &&
      greeting_in_.kind() == proto::tcp::GreetingKind::kConnect) {
    reason = "greeting: a question where an answer belongs";
  }
  if (reason != nullptr) {
    if (poller_.MayLog())
      LOG_WARN("tcp connection ", peer_address_.ToString(), " refused: ", reason);
    EndAttempt(CmEvent::Kind::kUnreachable, -EPROTO);
    return;
  }
  if (!greeting_in_.complete()) {
    ArmGreetingRecv();
    return;
  }
  if (greeting_in_.kind() == proto::tcp::GreetingKind::kReject) {
    EndAttempt(CmEvent::Kind::kRejected, 0);
    return;
  }
  timer_.Cancel();
  state_ = State::kUp;
  was_up_ = true;
  ReportEvent(CmEvent::Kind::kEstablished, 0);
  // Reading begins when the event is polled: no message is seen before kEstablished (F12).
}

void TcpConnection::StartPassive(const fabric::ConnectionOptions& options,
                                 std::span<const std::byte> private_data) {
  local_address_ = LocalAddressOf(fd_.get());
  peer_address_ = PeerAddressOf(fd_.get());
  domain_ = TcpDomain::IdOf(options.domain);
  greeting_out_.Set(proto::tcp::GreetingKind::kAccept, private_data);
  greeting_left_ = greeting_out_.size;
  state_ = State::kUp;
  was_up_ = true;
  ReportEvent(CmEvent::Kind::kEstablished, 0);
  PostReceive(options.receives);
  if (state_ != State::kUp) return;
  StartSend();
  ArmRecv(false);
}

void TcpConnection::OnTimer() {
  switch (state_) {
    case State::kConnecting:
    case State::kGreeting:
      EndAttempt(CmEvent::Kind::kUnreachable, -ETIMEDOUT);
      return;
    case State::kUp:  // send_failed_, and the peer's last word did not come.
      Break(WcStatus::kPeerGone, acked_, end_error_);
      return;
    case State::kRefusing:
      Break(WcStatus::kFlushed, acked_, -EPROTO);
      return;
    case State::kBreaking:
    case State::kDown:
      return;
  }
}

void TcpConnection::ReportEvent(CmEvent::Kind kind, int error) {
  CmEvent event;
  event.kind = kind;
  event.context = context_;
  event.connection = this;
  event.error = error;
  if (greeting_in_.complete() && kind != CmEvent::Kind::kDisconnected) {
    event.private_data = greeting_in_.private_data();
  }
  ++unpolled_events_;
  poller_.PushEvent(std::move(event));
}

void TcpConnection::OnEventPolled(CmEvent::Kind kind) {
  --unpolled_events_;
  const bool active = greeting_in_.complete();
  if (kind == CmEvent::Kind::kEstablished && active && state_ == State::kUp) ArmRecv(true);
}

// --- Completions of the two operations. ---

void TcpConnection::OnRecvCqe(int result, std::uint32_t flags) {
  switch (state_) {
    case State::kConnecting:
      OnConnected(result);
      return;
    case State::kGreeting:
      OnGreetingBytes(result);
      return;
    case State::kUp:
      if (recv_waits_for_hangup_) {
        OnHangupPoll(result);
      } else {
        OnRecvBytes(result, flags);
      }
      return;
    case State::kRefusing:
    case State::kDown:
      return;
    case State::kBreaking:
      FinishIfIdle();
      return;
  }
}

void TcpConnection::OnSendCqe(int result, std::uint32_t) {
  if (state_ == State::kBreaking) {
    FinishIfIdle();
    return;
  }
  if (result > 0) {
    OnBatchBytes(result);
    return;
  }
  if (result == -ECANCELED && state_ == State::kUp && !poller_.ring().abandoned()) {
    SubmitBatch();  // The thread that sent has ended; the rest is still to go.
    return;
  }
  // The peer's last words may lie in our receive queue: they say more than EPIPE does.
  send_failed_ = true;
  end_error_ = result;
  if (state_ == State::kRefusing || result == -ECANCELED) {
    Break(WcStatus::kFlushed, acked_, result);
  } else if (state_ == State::kUp) {
    timer_.ArmAt(poller_.reactor().now_ns() + kLastWordNsMax);
  }
}

// --- Breaking. ---

void TcpConnection::Disconnect() { Break(WcStatus::kFlushed, acked_, 0); }

// The send at position `failed_send` completes with `status`, all others as flushed.
void TcpConnection::Break(WcStatus status, std::uint32_t failed_send, int error) {
  if (state_ == State::kBreaking || state_ == State::kDown) return;
  first_send_status_ = status;
  failed_send_ = failed_send;
  end_error_ = error;
  Shut();
}

void TcpConnection::EndAttempt(CmEvent::Kind kind, int error) {
  end_kind_ = kind;
  Break(WcStatus::kFlushed, acked_, error);
}

// Makes the kernel let go of the socket and of the caller's memory.
void TcpConnection::Shut() {
  state_ = State::kBreaking;
  timer_.Cancel();
  if (dirty_hook_.linked()) dirty_hook_.Unlink();
  (void)::shutdown(fd_.get(), SHUT_RDWR);  // ENOTCONN: the peer was faster.
  if (recv_op_.armed()) poller_.ring().Cancel(recv_op_);
  if (send_op_.armed()) poller_.ring().Cancel(send_op_);
  FinishIfIdle();
}

// Tells the peer why before breaking.
void TcpConnection::Refuse(proto::tcp::RefuseReason reason, const char* text) {
  if (poller_.MayLog()) {
    LOG_WARN("tcp connection ", peer_address_.ToString(), " broken: ", text);
  }
  state_ = State::kRefusing;
  refuse_reason_ = reason;
  refuse_pending_ = true;
  timer_.ArmAt(poller_.reactor().now_ns() + kLastWordNsMax);
  if (send_failed_) {
    Break(WcStatus::kFlushed, acked_, -EPROTO);
  } else {
    StartSend();
  }
}

void TcpConnection::FinishIfIdle() {
  if (state_ != State::kBreaking || recv_op_.armed() || send_op_.armed()) return;
  fd_.Reset();
  state_ = State::kDown;
  landing_.store(0, std::memory_order_release);
  // Whoever was never connected hears of it by the event alone.
  const bool owes_completions = end_kind_ == CmEvent::Kind::kDisconnected;
  if (owes_completions) FlushSlots();
  ReportEvent(end_kind_, end_error_);
}

void TcpConnection::FlushSlots() {
  sent_ = batched_;  // The kernel has let go of the last batch, whatever became of it.
  RetireAcked();
  for (; acked_ != posted_; ++acked_) {
    fabric::Completion completion;
    completion.cookie = send_slots_[acked_ & send_mask_].cookie;
    completion.status = acked_ == failed_send_ ? first_send_status_ : WcStatus::kFlushed;
    Complete(completion);
  }
  WcStatus status = first_receive_status_;
  for (; receives_used_ != receives_posted_; ++receives_used_) {
    fabric::Completion completion;
    completion.cookie = receive_slots_[receives_used_ & receive_mask_].cookie;
    completion.status = status;
    status = WcStatus::kFlushed;
    Complete(completion);
  }
}

void TcpConnection::Complete(const fabric::Completion& completion) {
  ++unpolled_completions_;
  poller_.PushCompletion(*this, completion);
}

}  // namespace ibnbd::tcp
