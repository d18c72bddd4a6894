// SPDX-License-Identifier: Apache-2.0
// A request's way through a connection; see nbd_connection.h.  In the order of events: received,
// parsed, filled (its payload or its blocks), submitted, done, finished, sent.  No allocation, no
// lock, no log line per IO.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "nbd-bridge/nbd_connection.h"

namespace ibnbd::bridge {
namespace {

constexpr std::uint32_t kPieceMax = BuddyAllocator::kBlockMax;

enum ibnbd_op OpOf(proto::NbdCmd cmd) {
  switch (cmd) {
    case proto::NbdCmd::kRead:
      return IBNBD_OP_READ;
    case proto::NbdCmd::kWrite:
      return IBNBD_OP_WRITE;
    case proto::NbdCmd::kTrim:
      return IBNBD_OP_DISCARD;
    case proto::NbdCmd::kWriteZeroes:
      return IBNBD_OP_WRITE_ZEROES;
    default:
      return IBNBD_OP_FLUSH;
  }
}

}  // namespace

// One receive at a time.  Where the bytes go was decided by what Parse() waits for.
void NbdConnection::ArmReceive() {
  const bool wanted = phase_ == Phase::kHandshake || (phase_ == Phase::kTransmission && !stalled_ &&
                                                      !(leaving() && between_requests()));
  if (receive_busy_ || !wanted) return;
  std::size_t count = 0;
  int flags = MSG_NOSIGNAL;
  std::uint32_t payload_left = 0;
  if (filling_ != nullptr) {
    payload_left = filling_->block.length - filling_have_;
    receive_iov_[count++] = {filling_->block.data + filling_have_, payload_left};
  }
  if (payload_left >= kLargePayload) {
    flags |= MSG_WAITALL;  // The kernel collects the pieces: one completion for all of them.
  } else {
    const std::size_t staged_size = staged().size();  // Less than a header.
    if (stage_begin_ != 0 && staged_size != 0) {
      std::memmove(staging_.get(), staging_.get() + stage_begin_, staged_size);
    }
    stage_begin_ = 0;
    stage_end_ = staged_size;
    const std::size_t limit = large_payloads_ ? kStagingSizeLarge : kStagingSize;
    receive_iov_[count++] = {staging_.get() + stage_end_, limit - stage_end_};
  }
  receive_message_.msg_iov = receive_iov_.data();
  receive_message_.msg_iovlen = count;
  receive_busy_ = true;
  io_uring_sqe* sqe = loop_.GetSqe();
  io_uring_prep_recvmsg(sqe, socket_.get(), &receive_message_, static_cast<unsigned>(flags));
  loop_.Bind(sqe, receive_op_);
}

void NbdConnection::OnReceived(int result) {
  receive_busy_ = false;
  if (phase_ == Phase::kDraining || phase_ == Phase::kClosing) {
    loop_.RequestTurnEnd(*this);
    return;
  }
  if (leaving()) {
    loop_.RequestTurnEnd(*this);
    if (result == -ECANCELED) return;
  }
  if (result == -EINTR || result == -EAGAIN) {
    ArmReceive();
    return;
  }
  if (result <= 0) {  // Gone, with or without saying so.
    Close(nullptr);
    return;
  }
  std::size_t size = static_cast<std::size_t>(result);
  if (filling_ != nullptr) {
    const std::size_t take = std::min<std::size_t>(size, filling_->block.length - filling_have_);
    filling_have_ += static_cast<std::uint32_t>(take);
    size -= take;
  }
  stage_end_ += size;
  if (phase_ == Phase::kHandshake) {
    PumpHandshake();
    return;
  }
  Parse();
  ArmReceive();
}

// Works through what is staged until it needs more bytes, or something to put them in.
void NbdConnection::Parse() {
  stalled_ = false;
  while (phase_ == Phase::kTransmission) {
    if (first_unsubmitted_ != nullptr) {  // The queue is full.
      stalled_ = true;
      return;
    }
    if (current_ != nullptr) {
      if (!ContinueCurrent()) return;
    } else if (skipping_ != nullptr) {
      SkipPayload();
      if (skipping_ != nullptr) return;
    } else if (leaving() || staged().size() < sizeof(proto::NbdRequest) || !StartRequest()) {
      return;
    }
  }
}

// Takes a header off the staging buffer.  False if it has to stay there.
bool NbdConnection::StartRequest() {
  proto::NbdRequest wire;
  if (const char* reason = proto::DecodeNbdRequest(staged(), &wire); reason != nullptr) {
    Close(reason);
    return false;
  }
  if (wire.cmd() == proto::NbdCmd::kDisc) {
    BeginDrain();
    return false;
  }
  const std::uint32_t length = wire.length.get();
  const bool is_write = wire.cmd() == proto::NbdCmd::kWrite;
  if (is_write && length > 2 * limits_.payload_size_max) {
    Close("nbd_request: payload is far longer than announced");
    return false;
  }
  Request* request = memory_->TryClaimRequest();
  if (request == nullptr) {
    stalled_ = true;
    return false;
  }
  stage_begin_ += sizeof(wire);
  const std::uint32_t flags = wire.flags.get();
  request->connection = this;
  request->cmd = wire.cmd();
  request->cookie = wire.cookie;
  request->offset = wire.offset.get();
  request->length = length;
  request->filled = 0;
  request->error = 0;
  request->io_flags = 0;
  request->flush_after = false;
  const proto::NbdRefusal refusal = proto::CheckNbdRequest(wire, limits_);
  request->error = proto::ErrnoFromNbd(refusal.error);
  if ((flags & proto::kNbdCmdFastZero) != 0 && !fast_zero_) request->error = -EOPNOTSUPP;
  if (request->error != 0) {
    request->state = Request::State::kExecuting;
    if (is_write && length != 0) {
      // Answered when its payload has passed: some clients look for answers only to what they have
      // sent in full.
      skipping_ = request;
      skip_left_ = length;
    } else {
      Finish(request);
    }
    return true;
  }
  const bool fua = (flags & proto::kNbdCmdFua) != 0;
  const bool trim = request->cmd == proto::NbdCmd::kTrim;
  const bool takes_fua = is_write || request->cmd == proto::NbdCmd::kWriteZeroes;
  if (fua && takes_fua) request->io_flags |= IBNBD_IO_FUA;
  request->flush_after = fua && trim && (limits_.flags & proto::kNbdSendFlush) != 0;
  if ((flags & proto::kNbdCmdNoHole) != 0) request->io_flags |= IBNBD_IO_NO_UNMAP;
  if (is_write) large_payloads_ = length >= kLargePayload;
  request->state = Request::State::kFilling;
  current_ = request;
  return true;
}

void NbdConnection::SkipPayload() {
  const auto take = static_cast<std::uint32_t>(std::min<std::size_t>(staged().size(), skip_left_));
  stage_begin_ += take;
  skip_left_ -= take;
  if (skip_left_ == 0) Finish(std::exchange(skipping_, nullptr));
}

// False if bytes or memory are missing.
bool NbdConnection::ContinueCurrent() {
  Request* request = current_;
  switch (request->cmd) {
    case proto::NbdCmd::kRead:
      if (!FillRead(request)) return false;
      break;
    case proto::NbdCmd::kWrite:
      if (!FillWrite(request)) return false;
      break;
    default:
      if (!SubmitWithoutData(request)) return false;
      break;
  }
  current_ = nullptr;
  request->state = Request::State::kExecuting;
  FinishIfDone(request);
  return true;
}

// Issues a read piece by piece as blocks are there.  Only the first request in line waits for
// blocks, and all that it waits for come back on their own: no two can wait for each other.
bool NbdConnection::FillRead(Request* request) {
  while (request->filled < request->length) {
    const std::uint32_t length = std::min(request->length - request->filled, kPieceMax);
    Part* part = TryAddPart(request, length);
    if (part == nullptr) return false;
    if (request->last_part == nullptr) {
      request->first_part = part;
    } else {
      request->last_part->next = part;
    }
    request->last_part = part;
    request->filled += length;
    Submit(part);
  }
  return true;
}

// Each piece of a payload leaves as soon as it is complete, while the next one arrives.
bool NbdConnection::FillWrite(Request* request) {
  while (request->filled < request->length) {
    if (filling_ == nullptr) {
      filling_ = TryAddPart(request, std::min(request->length - request->filled, kPieceMax));
      if (filling_ == nullptr) return false;
      filling_have_ = 0;
    }
    const std::uint32_t length = filling_->block.length;
    const auto take = std::min<std::size_t>(staged().size(), length - filling_have_);
    if (take != 0) {
      std::memcpy(filling_->block.data + filling_have_, staged().data(), take);
      stage_begin_ += take;
      filling_have_ += static_cast<std::uint32_t>(take);
    }
    if (filling_have_ < length) return false;
    request->filled += length;
    Submit(std::exchange(filling_, nullptr));
  }
  return true;
}

bool NbdConnection::SubmitWithoutData(Request* request) {
  Part* part = TryAddPart(request, 0);
  if (part == nullptr) return false;
  part->io.length = request->cmd == proto::NbdCmd::kFlush ? 0 : request->length;
  if (request->cmd == proto::NbdCmd::kFlush) part->io.offset = 0;
  Submit(part);
  return true;
}

// A slot, with a block unless `length` is 0, for what comes next in the request.  Null: stalled.
Part* NbdConnection::TryAddPart(Request* request, std::uint32_t length) {
  Part* part = memory_->TryClaimPart();
  if (part == nullptr) {
    stalled_ = true;
    return nullptr;
  }
  if (length != 0) {
    part->block = memory_->pool().TryClaim(length);
    if (part->block.data == nullptr) {
      memory_->Release(part);
      stalled_ = true;
      return nullptr;
    }
  }
  part->request = request;
  part->next_unsubmitted = nullptr;
  ibnbd_io& io = part->io;
  io.op = OpOf(request->cmd);
  io.flags = request->io_flags;
  io.offset = request->offset + request->filled;
  io.length = length;
  io.data = part->block.data;
  io.buffer = length != 0 ? memory_->pool().buffer() : nullptr;
  io.done = &NbdConnection::OnIoDone;
  io.opaque = part;
  return part;
}

void NbdConnection::Submit(Part* part) {
  ++part->request->parts_executing;
  const int result = ibnbd_submit(queue_, device_, &part->io);
  if (result == 0) {
    loop_.NoteSubmitted();
  } else if (result == -EAGAIN) {
    if (first_unsubmitted_ == nullptr) {
      first_unsubmitted_ = part;
    } else {
      last_unsubmitted_->next_unsubmitted = part;
    }
    last_unsubmitted_ = part;
    loop_.RequestRetry(*this);
  } else {
    OnPartDone(part, result);
  }
}

void NbdConnection::RetryUnsubmitted() {
  Part* part = std::exchange(first_unsubmitted_, nullptr);
  while (part != nullptr) {
    Part* next = std::exchange(part->next_unsubmitted, nullptr);
    --part->request->parts_executing;
    Submit(part);
    part = next;
  }
}

void NbdConnection::OnIoDone(ibnbd_io* io, int result) {
  Part* part = static_cast<Part*>(io->opaque);
  part->request->connection->OnPartDone(part, result);
}

void NbdConnection::OnPartDone(Part* part, int result) {
  Request* request = part->request;
  if (result < 0 && request->error == 0) request->error = result;
  DCHECK(request->parts_executing > 0);
  --request->parts_executing;
  if (request->cmd != proto::NbdCmd::kRead) memory_->Release(part);
  if (stalled_) loop_.RequestTurnEnd(*this);
  FinishIfDone(request);
}

void NbdConnection::FinishIfDone(Request* request) {
  if (request->state != Request::State::kExecuting || request->parts_executing != 0) return;
  if (request->flush_after && request->error == 0) {
    request->flush_after = false;
    Part* part = TryAddPart(request, 0);
    if (part != nullptr) {
      part->io.op = IBNBD_OP_FLUSH;
      part->io.flags = 0;
      part->io.offset = 0;
      Submit(part);
      return;
    }
    request->error = -ENOMEM;  // Cannot happen: the slot of the TRIM was released just now.
  }
  Finish(request);
}

void NbdConnection::Finish(Request* request) {
  loop_.RequestTurnEnd(*this);
  if (phase_ == Phase::kClosing) {
    ReleaseRequest(request);
    return;
  }
  BuildHeader(request);
  request->state = Request::State::kReplying;
  ready_.PushBack(*request);
}

// Parts that wait for -EAGAIN to pass are never among those of a request that is released.
void NbdConnection::ReleaseRequest(Request* request) {
  for (Part* part = request->first_part; part != nullptr;) {
    memory_->Release(std::exchange(part, part->next));
  }
  request->first_part = request->last_part = nullptr;
  memory_->Release(request);
}

void NbdConnection::BuildHeader(Request* request) const {
  const std::span<std::byte> out(request->header);
  if (request->cmd == proto::NbdCmd::kRead && structured_) {
    request->header_size = static_cast<std::uint32_t>(
        request->error != 0
            ? proto::Encode(out, proto::MakeNbdError(request->cookie, request->error))
            : proto::Encode(out, proto::MakeNbdOffsetData(request->cookie, request->offset,
                                                          request->length)));
    return;
  }
  // With structured replies, too, what carries no data may be answered simply.
  request->header_size = static_cast<std::uint32_t>(
      proto::Encode(out, proto::MakeNbdSimpleReply(request->cookie, request->error)));
}

// Everything that is ready, in one sendmsg, straight from the registered blocks.
void NbdConnection::FlushReplies() {
  if (send_busy_ || ready_.empty()) return;
  std::size_t count = 0;
  while (!ready_.empty() && count + kIovecsPerReply <= kIovecs) {
    Request& request = ready_.PopFront();
    sending_.PushBack(request);
    send_iov_[count++] = {request.header.data(), request.header_size};
    if (request.error != 0) continue;
    for (Part* part = request.first_part; part != nullptr; part = part->next) {
      send_iov_[count++] = {part->block.data, part->block.length};
    }
  }
  send_message_.msg_iov = send_iov_.data();
  send_message_.msg_iovlen = count;
  ArmSend();
}

void NbdConnection::ArmSend() {
  send_busy_ = true;
  io_uring_sqe* sqe = loop_.GetSqe();
  // The kernel goes on with the rest by itself when the socket was full.
  io_uring_prep_sendmsg(sqe, socket_.get(), &send_message_, MSG_NOSIGNAL | MSG_WAITALL);
  loop_.Bind(sqe, send_op_);
}

void NbdConnection::OnSent(int result) {
  send_busy_ = false;
  if (result > 0) {
    std::size_t sent = static_cast<std::size_t>(result);
    while (send_message_.msg_iovlen != 0 && sent >= send_message_.msg_iov->iov_len) {
      sent -= send_message_.msg_iov->iov_len;
      ++send_message_.msg_iov;
      --send_message_.msg_iovlen;
    }
    if (send_message_.msg_iovlen != 0) {
      iovec& partial = *send_message_.msg_iov;
      partial.iov_base = static_cast<std::byte*>(partial.iov_base) + sent;
      partial.iov_len -= sent;
    }
  }
  const bool again = result > 0 || result == -EINTR || result == -EAGAIN;
  if (again && send_message_.msg_iovlen != 0 && phase_ != Phase::kClosing) {
    ArmSend();
    return;
  }
  while (!sending_.empty()) ReleaseRequest(&sending_.PopFront());
  handshake_out_.clear();
  if (!again) Close(nullptr);
  loop_.RequestTurnEnd(*this);
}

}  // namespace ibnbd::bridge
