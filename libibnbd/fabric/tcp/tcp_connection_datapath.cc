// SPDX-License-Identifier: Apache-2.0
// What happens per IO.  Nothing here allocates, locks or logs; the exits to Refuse() and Break()
// leave the data path for good.
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "fabric/tcp/tcp_connection.h"

namespace ibnbd::tcp {

using fabric::Opcode;
using fabric::WcStatus;
using proto::tcp::FrameHeader;
using proto::tcp::FrameOpcode;

namespace {

// After so many frames an acknowledgement no longer waits for one to ride on.
constexpr std::uint32_t kOwedFramesMax = 32;

FrameOpcode ToFrame(Opcode opcode) {
  switch (opcode) {
    case Opcode::kSend:
      return FrameOpcode::kSend;
    case Opcode::kSendImm:
      return FrameOpcode::kSendImm;
    case Opcode::kSendInvalidate:
      return FrameOpcode::kSendInvalidate;
    case Opcode::kWrite:
      return FrameOpcode::kWrite;
    case Opcode::kWriteImm:
      return FrameOpcode::kWriteImm;
    case Opcode::kOpenWindow:
    case Opcode::kCloseWindow:  // Nobody has a window of ours.
    case Opcode::kReceive:
    case Opcode::kReceiveWriteImm:
      break;
  }
  CHECK(false);  // Not opcodes of a send.
}

}  // namespace

std::span<fabric::Sge> TcpConnection::SendSges(std::uint32_t index) {
  const std::size_t slot = index & send_mask_;
  return {&send_sges_[slot * limits_.sges_max], send_slots_[slot].sge_count};
}

std::span<fabric::Sge> TcpConnection::ReceiveSges(std::uint32_t index) {
  const std::size_t slot = index & receive_mask_;
  return {&receive_sges_[slot * limits_.sges_max], receive_slots_[slot].sge_count};
}

bool TcpConnection::SourcesAreOurs(std::span<const fabric::Sge> sges) const {
  return std::all_of(sges.begin(), sges.end(), [this](const fabric::Sge& sge) {
    return sge.length == 0 || poller_.regions().CoversLocal(sge, domain_);
  });
}

// --- Posting. ---

void TcpConnection::PostSend(std::span<const fabric::SendRequest> requests) {
  CHECK(state_ != State::kConnecting && state_ != State::kGreeting);  // F12.
  for (const fabric::SendRequest& request : requests) {
    CHECK_LE(request.sges.size(), limits_.sges_max);
    if (state_ == State::kDown) {
      fabric::Completion completion;
      completion.cookie = request.cookie;
      completion.status = WcStatus::kFlushed;
      Complete(completion);
      poller_.Kick();
      continue;
    }
    CHECK_LT(posted_ - acked_, limits_.sends_max);
    FillSlot(request);
  }
  if (state_ == State::kUp && !dirty_hook_.linked()) poller_.MarkDirty(dirty_hook_);
}

void TcpConnection::FillSlot(const fabric::SendRequest& request) {
  const std::uint32_t index = posted_++;
  const std::size_t slot_index = index & send_mask_;
  SendSlot& slot = send_slots_[slot_index];
  std::uint64_t length = 0;
  for (const fabric::Sge& sge : request.sges) length += sge.length;
  CHECK_LE(length, std::numeric_limits<std::uint32_t>::max());
  slot.cookie = request.cookie;
  slot.length = static_cast<std::uint32_t>(length);
  slot.opcode = request.opcode;
  slot.signaled = request.signaled;
  slot.sge_count = 0;
  FrameHeader& header = slot.header;
  header = FrameHeader{};
  header.opcode = ToFrame(request.opcode);
  header.magic = proto::le16(proto::tcp::kFrameMagic);
  header.length = proto::le32(slot.length);
  header.sequence = proto::le32(index);
  if (proto::tcp::HasImm(header.opcode)) header.imm = proto::le32(request.imm);
  if (request.opcode == Opcode::kSendInvalidate) {
    header.rkey = proto::le32(request.invalidate_rkey);
  } else if (proto::tcp::IsWrite(header.opcode) && length > 0) {
    header.rkey = proto::le32(request.remote.rkey);
    header.addr = proto::le64(request.remote.addr);
  }
  fabric::Sge* sges = &send_sges_[slot_index * limits_.sges_max];
  if (length > 0 && length <= limits_.inline_size_max) {
    std::byte* copy = &inline_bytes_[slot_index * limits_.inline_size_max];
    std::size_t offset = 0;
    for (const fabric::Sge& sge : request.sges) {
      if (sge.length > 0) std::memcpy(copy + offset, sge.addr, sge.length);
      offset += sge.length;
    }
    sges[0] = {copy, slot.length, 0};
    slot.sge_count = 1;
    return;
  }
  if (!SourcesAreOurs(request.sges)) {
    Break(WcStatus::kLocalFault, index, -EFAULT);
    return;
  }
  for (const fabric::Sge& sge : request.sges) {
    if (sge.length > 0) sges[slot.sge_count++] = sge;
  }
}

void TcpConnection::PostReceive(std::span<const fabric::ReceiveRequest> requests) {
  for (const fabric::ReceiveRequest& request : requests) {
    CHECK_LE(request.sges.size(), limits_.sges_max);
    if (state_ == State::kDown) {
      if (end_kind_ != fabric::CmEvent::Kind::kDisconnected) continue;  // Never connected.
      fabric::Completion completion;
      completion.cookie = request.cookie;
      completion.status = WcStatus::kFlushed;
      Complete(completion);
      poller_.Kick();
      continue;
    }
    CHECK_LT(receives_posted_ - receives_used_, limits_.receives_max);
    const std::size_t index = receives_posted_ & receive_mask_;
    ReceiveSlot& slot = receive_slots_[index];
    slot.cookie = request.cookie;
    slot.capacity = 0;
    slot.sge_count = 0;
    for (const fabric::Sge& sge : request.sges) {
      if (sge.length == 0) continue;
      receive_sges_[index * limits_.sges_max + slot.sge_count++] = sge;
      slot.capacity += sge.length;
    }
    const bool first = receives_posted_++ == receives_used_;
    if (!SourcesAreOurs(request.sges)) {
      if (first) first_receive_status_ = WcStatus::kLocalFault;
      Break(WcStatus::kFlushed, acked_, -EFAULT);
    }
  }
  // A frame waits for what was just posted: it goes on when the poll for the peer's end has ended.
  if (recv_waits_for_hangup_ && state_ == State::kUp && receives_posted_ != receives_used_) {
    poller_.ring().Cancel(recv_op_);
  }
}

// --- Sending. ---

bool TcpConnection::HasSomethingToSend() const {
  return greeting_left_ > 0 || refuse_pending_ || ack_now_ || batched_ != posted_;
}

void TcpConnection::StartSend() {
  if (send_op_.armed() || send_failed_ || !HasSomethingToSend()) return;
  if (state_ == State::kBreaking || state_ == State::kDown) return;
  FillBatch();
  SubmitBatch();
}

// Everything that was posted and fits, in one gather list; payloads from where they are.
void TcpConnection::FillBatch() {
  batch_begin_ = batch_end_ = batch_bytes_ = 0;
  if (greeting_left_ > 0) {
    batch_[batch_end_++] = {greeting_out_.bytes.data(), greeting_left_};
    greeting_left_ = 0;
  }
  if (!was_up_) return;
  if (refuse_pending_) {
    refuse_pending_ = false;
    refuse_batched_ = true;
    AppendControlFrame(FrameOpcode::kRefuse);
    return;
  }
  while (batched_ != posted_ && batch_bytes_ < kBatchBytesMax &&
         batch_end_ + 1 + send_slots_[batched_ & send_mask_].sge_count <= batch_.size()) {
    AppendFrame(batched_++);
  }
  if (ack_now_) AppendControlFrame(FrameOpcode::kAck);
}

void TcpConnection::AppendFrame(std::uint32_t index) {
  SendSlot& slot = send_slots_[index & send_mask_];
  // More than half of the sends are open: the peer should not wait for something to ride on.
  const bool urgent = (posted_ - acked_) * 2 > limits_.sends_max;
  slot.header.flags = static_cast<std::uint8_t>(
      slot.signaled ? proto::tcp::kAckWanted | (urgent ? proto::tcp::kAckNow : 0) : 0);
  slot.header.ack_count = proto::le32(decoder_.data_frame_count());
  ack_owed_ = ack_now_ = false;
  owed_frames_ = 0;
  batch_[batch_end_++] = {&slot.header, sizeof slot.header};
  for (const fabric::Sge& sge : SendSges(index)) batch_[batch_end_++] = {sge.addr, sge.length};
  batch_bytes_ += slot.length;
}

void TcpConnection::AppendControlFrame(FrameOpcode opcode) {
  control_frame_ = FrameHeader{};
  control_frame_.opcode = opcode;
  control_frame_.magic = proto::le16(proto::tcp::kFrameMagic);
  control_frame_.sequence = proto::le32(batched_);
  control_frame_.ack_count = proto::le32(decoder_.data_frame_count());
  if (opcode == FrameOpcode::kRefuse) {
    control_frame_.imm = proto::le32(static_cast<std::uint32_t>(refuse_reason_));
  }
  ack_owed_ = ack_now_ = false;
  owed_frames_ = 0;
  batch_[batch_end_++] = {&control_frame_, sizeof control_frame_};
}

void TcpConnection::SubmitBatch() {
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  // WAITALL: the kernel goes on by itself when the socket buffer was full.
  constexpr int kFlags = MSG_NOSIGNAL | MSG_WAITALL;
  const std::size_t pieces = batch_end_ - batch_begin_;
  if (pieces == 1) {
    const iovec& piece = batch_[batch_begin_];
    io_uring_prep_send(sqe, fd_.get(), piece.iov_base, piece.iov_len, kFlags);
  } else {
    send_message_.msg_iov = &batch_[batch_begin_];
    send_message_.msg_iovlen = pieces;
    io_uring_prep_sendmsg(sqe, fd_.get(), &send_message_, kFlags);
  }
  send_op_.Prepare(poller_.ring(), sqe);
}

void TcpConnection::OnBatchBytes(int result) {
  auto left = static_cast<std::size_t>(result);
  while (left > 0) {
    iovec& piece = batch_[batch_begin_];
    const std::size_t count = std::min(left, piece.iov_len);
    piece.iov_base = static_cast<std::byte*>(piece.iov_base) + count;
    piece.iov_len -= count;
    left -= count;
    if (piece.iov_len == 0) ++batch_begin_;
  }
  if (batch_begin_ != batch_end_) {
    SubmitBatch();
    return;
  }
  sent_ = batched_;
  RetireAcked();
  if (refuse_batched_) {
    Break(WcStatus::kFlushed, acked_, -EPROTO);
  } else if (HasSomethingToSend() && !dirty_hook_.linked()) {
    poller_.MarkDirty(dirty_hook_);
  }
}

bool TcpConnection::TakeAck(std::uint32_t ack_count) {
  if (ack_count - ack_seen_ > batched_ - ack_seen_) return false;
  ack_seen_ = ack_count;
  RetireAcked();
  return true;
}

// The peer may speak of frames whose batch is still with the kernel, truly or not: their memory is
// not given back before the batch has ended.
void TcpConnection::RetireAcked() {
  const std::uint32_t end = sent_ - acked_ < ack_seen_ - acked_ ? sent_ : ack_seen_;
  for (; acked_ != end; ++acked_) {
    const SendSlot& slot = send_slots_[acked_ & send_mask_];
    if (!slot.signaled) continue;
    fabric::Completion completion;
    completion.cookie = slot.cookie;
    completion.opcode = slot.opcode;
    completion.byte_count = slot.length;
    Complete(completion);
  }
}

// --- Receiving. ---

// `more_is_there`: try at once; otherwise the kernel first waits for the socket to become readable,
// which saves it a fruitless look.
void TcpConnection::ArmRecv(bool more_is_there) {
  const std::size_t pieces = decoder_.Window(window_);
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  if (pieces == 1) {
    io_uring_prep_recv(sqe, fd_.get(), window_[0].iov_base, window_[0].iov_len, 0);
  } else {
    recv_message_.msg_iov = window_.data();
    recv_message_.msg_iovlen = pieces;
    io_uring_prep_recvmsg(sqe, fd_.get(), &recv_message_, 0);
  }
  if (!more_is_there) sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
  recv_op_.Prepare(poller_.ring(), sqe);
}

void TcpConnection::OnRecvBytes(int result, std::uint32_t flags) {
  // Cancelled: the thread that asked for it has ended, another one uses the queue now.
  const bool cancelled = result == -ECANCELED && !poller_.ring().abandoned();
  if (result == -EINTR || result == -EAGAIN || cancelled) {
    ArmRecv(false);
    return;
  }
  if (result <= 0) {
    Break(WcStatus::kPeerGone, acked_, result);
    return;
  }
  decoder_.Advance(static_cast<std::size_t>(result));
  Parse((flags & IORING_CQE_F_SOCK_NONEMPTY) != 0);
}

void TcpConnection::Parse(bool more_is_there) {
  for (;;) {
    switch (decoder_.Next()) {
      case FrameDecoder::Step::kNeedBytes:
        ArmRecv(more_is_there);
        return;
      case FrameDecoder::Step::kHeader:
        if (!PlaceFrame()) return;
        break;
      case FrameDecoder::Step::kFrame:
        OnFramePlaced();
        if (state_ != State::kUp) return;
        break;
      case FrameDecoder::Step::kMalformed:
        Refuse(proto::tcp::RefuseReason::kMalformed, decoder_.reason());
        return;
    }
  }
}

// Checks all that a header claims before a byte of its payload moves (F6).  False if there is no
// going on now.
bool TcpConnection::PlaceFrame() {
  const FrameHeader& header = decoder_.header();
  if (!TakeAck(header.ack_count.get())) {
    Refuse(proto::tcp::RefuseReason::kMalformed, "frame: acknowledges what was never sent");
    return false;
  }
  if (proto::tcp::ConsumesReceive(header.opcode) && receives_posted_ == receives_used_) {
    Stall();
    return false;
  }
  if (!proto::tcp::IsWrite(header.opcode)) return PlaceMessage(header);
  if (header.length.get() == 0) {
    decoder_.Place({});
    return true;
  }
  std::byte* target = FindTarget(header);
  if (target == nullptr) {
    Refuse(proto::tcp::RefuseReason::kRemoteAccess, "write outside of what the rkey allows");
    return false;
  }
  decoder_.PlaceAt(target);
  return true;
}

// A payload may take its time, so what it lands in must not die before this connection is drained.
// Regions of a domain of their own live that long; in the common one their owners need to be told
// (Region::Revoke()).
std::byte* TcpConnection::FindTarget(const FrameHeader& header) {
  const std::uint32_t rkey = header.rkey.get();
  if (domain_ == RegionTable::kCommonDomain) landing_.store(rkey, std::memory_order_seq_cst);
  return poller_.regions().FindRemote(rkey, header.addr.get(), header.length.get(), domain_);
}

bool TcpConnection::PlaceMessage(const FrameHeader& header) {
  if (!proto::tcp::IsData(header.opcode)) {
    decoder_.Place({});
    return true;
  }
  if (header.length.get() > receive_slots_[receives_used_ & receive_mask_].capacity) {
    first_receive_status_ = WcStatus::kLocalFault;
    Refuse(proto::tcp::RefuseReason::kRemoteAccess, "message longer than the posted receive");
    return false;
  }
  if (header.opcode == FrameOpcode::kSendInvalidate &&
      !poller_.regions().MayInvalidate(header.rkey.get(), domain_)) {
    Refuse(proto::tcp::RefuseReason::kRemoteAccess, "invalidation of a key that may not be");
    return false;
  }
  decoder_.Place(ReceiveSges(receives_used_));
  return true;
}

// No receive is posted (F5): the peer waits, and only its end is looked out for.
void TcpConnection::Stall() {
  recv_waits_for_hangup_ = true;
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  io_uring_prep_poll_add(sqe, fd_.get(), POLLRDHUP);  // And POLLHUP, POLLERR.
  recv_op_.Prepare(poller_.ring(), sqe);
}

void TcpConnection::OnHangupPoll(int result) {
  recv_waits_for_hangup_ = false;
  if (result >= 0) {
    Break(WcStatus::kPeerGone, acked_, 0);
  } else {
    Parse(true);  // Cancelled by PostReceive(), or by mistake: then it stalls again.
  }
}

void TcpConnection::OnFramePlaced() {
  const FrameHeader& header = decoder_.header();
  landing_.store(0, std::memory_order_release);
  if (header.opcode == FrameOpcode::kRefuse) {
    OnRefused(header);
  } else if (proto::tcp::IsData(header.opcode)) {
    if (proto::tcp::ConsumesReceive(header.opcode)) CompleteReceive(header);
    if (state_ == State::kUp) OweAck(header.flags);
  }
}

void TcpConnection::CompleteReceive(const FrameHeader& header) {
  fabric::Completion completion;
  if (header.opcode == FrameOpcode::kSendInvalidate) {
    if (!poller_.regions().Invalidate(header.rkey.get(), domain_)) {
      Refuse(proto::tcp::RefuseReason::kRemoteAccess, "invalidation of a key that is dead");
      return;
    }
    completion.has_invalidate = true;
    completion.invalidated_rkey = header.rkey.get();
  }
  completion.cookie = receive_slots_[receives_used_ & receive_mask_].cookie;
  completion.opcode =
      header.opcode == FrameOpcode::kWriteImm ? Opcode::kReceiveWriteImm : Opcode::kReceive;
  completion.has_imm = proto::tcp::HasImm(header.opcode);
  completion.imm = header.imm.get();
  completion.byte_count = header.length.get();
  ++receives_used_;
  Complete(completion);
}

void TcpConnection::OnRefused(const FrameHeader& header) {
  WcStatus status = WcStatus::kPeerGone;
  if (header.imm.get() == static_cast<std::uint32_t>(proto::tcp::RefuseReason::kRemoteAccess)) {
    status = WcStatus::kRemoteAccess;
  } else if (header.imm.get() == static_cast<std::uint32_t>(proto::tcp::RefuseReason::kNoReceive)) {
    status = WcStatus::kNoReceive;
  }
  Break(status, header.ack_count.get(), -EPROTO);
}

// The sender wants to know that its frame landed.  A frame that goes back anyway carries the word;
// one goes out of its own only if none does for a while, or if the sender is in need.
void TcpConnection::OweAck(std::uint8_t flags) {
  if ((flags & proto::tcp::kAckWanted) == 0) return;
  if (!ack_owed_) ack_owed_since_ns_ = poller_.reactor().now_ns();
  ack_owed_ = true;
  if ((flags & proto::tcp::kAckNow) != 0 || ++owed_frames_ >= kOwedFramesMax) {
    ack_now_ = true;
    if (!dirty_hook_.linked()) poller_.MarkDirty(dirty_hook_);
  } else {
    poller_.ArmAckTimer();
  }
}

bool TcpConnection::SendOverdueAck(std::int64_t before_ns) {
  if (!ack_owed_ || state_ != State::kUp) return false;
  if (ack_owed_since_ns_ > before_ns) return true;
  ack_now_ = true;
  StartSend();
  return false;
}

}  // namespace ibnbd::tcp
