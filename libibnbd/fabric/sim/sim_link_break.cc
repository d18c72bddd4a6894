// SPDX-License-Identifier: Apache-2.0
// How a link ends: what becomes of the messages in flight (F4), and when each end sees it (F3).
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "fabric/sim/sim_connection.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_link.h"
#include "fabric/sim/sim_network.h"

namespace ibnbd::sim {
namespace {
using fabric::Opcode;
using fabric::WcStatus;

bool IsWrite(const Message& message) {
  return message.request.opcode == Opcode::kWrite || message.request.opcode == Opcode::kWriteImm;
}
}  // namespace

void Link::Cut(int error, bool silent) {
  if (cut_) return;
  cut_ = true;
  ++network_.counts().cuts;
  network_.world().Trace("cut", id_);
  for (const Side side : {Side::kActive, Side::kPassive}) Sever(side);
  for (const Side side : {Side::kActive, Side::kPassive}) {
    if (!silent) TellLater(side, error);
  }
  if (!silent) return;
  for (const Side side : {Side::kActive, Side::kPassive}) {
    if (end(side) == nullptr || told_[Index(side)]) continue;
    told_[Index(side)] = true;
    network_.world().Schedule(
        plan().one_sided_ns.Draw(network_.prng()),
        [self = shared_from_this(), side] { self->SeePeerGone(side, -ETIMEDOUT); });
  }
}

void Link::TellLater(Side side, int error) {
  if (end(side) == nullptr || told_[Index(side)]) return;
  told_[Index(side)] = true;
  std::int64_t delay_ns = plan().notice_ns.Draw(network_.prng());
  const bool may_be_blind = side == Side::kPassive || !plan().one_sided_passive;
  if (may_be_blind && network_.Draw(plan().one_sided_ppm)) {
    ++network_.counts().one_sided_breaks;
    delay_ns = plan().one_sided_ns.Draw(network_.prng());
  }
  // A network that holds a message back for seconds holds the notice back as well, often enough.
  const std::int64_t late_ns = wire(Other(side)).late_until_ns - network_.world().now_ns();
  if (late_ns > 0 && network_.prng().Chance(500'000)) delay_ns = std::max(delay_ns, 2 * late_ns);
  network_.world().Schedule(delay_ns, [self = shared_from_this(), side, error] {
    if (self->Blocked(Other(side))) {  // Not even this message passes.
      self->told_[Index(side)] = false;
      self->network_.world().Schedule(self->plan().one_sided_ns.Draw(self->network_.prng()),
                                      [self, side, error] { self->TellLater(side, error); });
      return;
    }
    self->SeePeerGone(side, error);
  });
}

// An end that still awaits its answer learns of the break by not getting one.
void Link::SeePeerGone(Side side, int error) {
  const SimConnection* self = end(side);
  if (self == nullptr || self->state() == SimConnection::State::kConnecting) return;
  SeeBreak(side, WcStatus::kPeerGone, error);
}

// A message that cannot be executed breaks the link: its sender learns why, after the
// acknowledgements of all before it; its target sees its end flushed.
void Link::FailHead(Side side, const Verdict& verdict) {
  cut_ = true;
  ++network_.counts().dropped;
  network_.world().Trace("refuse", id_ * 2 + Index(side),
                         static_cast<std::uint64_t>(verdict.sender));
  Wire& out = wire(side);
  SimConnection* sender = end(side);
  while (sender != nullptr && !out.landed.empty()) {
    const Message message = std::move(out.landed.front());
    out.landed.pop_front();
    sender->CompleteSend(message.sequence, message.request, WcStatus::kOk, message.length);
  }
  out.severed = true;  // What is behind the head never arrives.
  told_[Index(side)] = true;
  Sever(Other(side));
  SeeBreak(Other(side), WcStatus::kFlushed, -ECONNABORTED, verdict.receiver);
  if (sender == nullptr) return;
  network_.world().Schedule(DrawDelay(Other(side)),
                            [self = shared_from_this(), side, status = verdict.sender] {
                              self->SeeBreak(side, status, -ECONNABORTED);
                            });
}

void Link::SeeBreak(Side side, WcStatus first_send, int error, WcStatus first_receive) {
  SimConnection* self = end(side);
  if (self == nullptr || self->state() == SimConnection::State::kBroken ||
      self->state() == SimConnection::State::kDead) {
    return;
  }
  Sever(side);
  Wire& out = wire(side);
  std::deque<Message> unfinished = std::move(out.landed);
  for (Message& message : out.inflight) unfinished.push_back(std::move(message));
  out.landed.clear();
  out.inflight.clear();
  self->Break(unfinished, first_send, first_receive, error);
  if (fabrics_[Index(Other(side))] != nullptr) TellLater(Other(side), error);
}

// Nothing that `side` posts from now on gets through.  Of what is in flight a prefix lands, perhaps
// late, perhaps its last message in part: the posting order holds even now (F2).
void Link::Sever(Side side) {
  Wire& out = wire(side);
  if (out.severed) return;
  out.severed = true;
  const std::int64_t now_ns = network_.world().now_ns();
  const std::size_t whole_count = network_.prng().Below(out.inflight.size() + 1);
  const bool late = network_.Draw(plan().late_landing_ppm);
  std::int64_t due_ns = late ? now_ns + plan().late_landing_ns.Draw(network_.prng()) : now_ns;
  for (std::size_t i = 0; i < out.inflight.size() && i <= whole_count; ++i) {
    Message& message = out.inflight[i];
    Stray stray;
    stray.whole = i < whole_count;
    if (message.request.window != nullptr) {  // Local: its owner may be gone when strays land.
      if (stray.whole) (void)Land(side, message);
      continue;
    }
    if (!TakePayload(side, message)) break;
    stray.byte_count = stray.whole
                           ? message.length
                           : static_cast<std::size_t>(network_.prng().Below(message.length + 1ull));
    if (!stray.whole && stray.byte_count == 0) break;
    stray.message = message;
    due_ns = std::max(due_ns, message.arrival_ns);
    if (late) due_ns += DrawDelay(side);
    if (late) out.late_until_ns = due_ns;
    out.strays.push_back(std::move(stray));
    ScheduleSelf(due_ns - now_ns, &Link::LandStray, side);
  }
  if (!out.inflight.empty() || !out.landed.empty()) ArmRetry(side);
}

void Link::LandStray(Side side) {
  Wire& out = wire(side);
  if (out.strays.empty()) return;  // One before it found nobody, or could not land.
  Stray stray = std::move(out.strays.front());
  out.strays.pop_front();
  SimConnection* target = end(Other(side));
  if (target == nullptr || target->drained() || fabric(Other(side))->dead()) {
    network_.counts().dropped += out.strays.size() + 1;
    out.strays.clear();
    return;
  }
  FaultCounts& counts = network_.counts();
  const std::int64_t late_ns = network_.world().now_ns() - stray.message.arrival_ns;
  network_.world().Trace("stray", id_ * 2 + Index(side), stray.message.sequence, stray.byte_count,
                         static_cast<std::uint64_t>(late_ns));
  if (late_ns > 0) ++counts.landed_late;
  if (!stray.whole) ++counts.landed_partly;
  if (stray.whole && target->CanLand()) {
    // The target knows of nothing: to it this is a message like any other.
    const Verdict verdict = Land(side, stray.message);
    if (verdict.wait || verdict.sender != WcStatus::kOk) out.strays.clear();
    return;
  }
  ++counts.landed_after_break;
  LandStrayBytes(side, stray);
  if (!stray.whole) out.strays.clear();
}

// Only the bytes: the message never completes, or its target is past completions.
void Link::LandStrayBytes(Side side, const Stray& stray) {
  CHECK(!end(Other(side))->drained());  // F10.
  if (stray.byte_count == 0) return;
  const Message& message = stray.message;
  if (IsWrite(message)) {
    std::uint64_t offset = 0;
    const Side target = Other(side);
    std::byte* place =
        fabric(target)->CheckRemote(message.request.remote, message.length, domain(target), offset);
    if (place != nullptr) std::memcpy(place, message.payload.data(), stray.byte_count);
    return;
  }
  const PostedReceive* receive = end(Other(side))->FirstReceive();
  if (receive == nullptr) return;
  std::size_t from = 0;
  for (const fabric::Sge& sge : receive->sges) {
    if (!fabric(Other(side))->CheckLocal(sge, domain(Other(side)))) return;
    const std::size_t part = std::min<std::size_t>(sge.length, stray.byte_count - from);
    if (part > 0) std::memcpy(sge.addr, message.payload.data() + from, part);
    from += part;
  }
}

void Link::ArmRetry(Side side) {
  Wire& out = wire(side);
  if (out.retry_armed || end(side) == nullptr) return;
  out.retry_armed = true;
  ScheduleSelf(plan().retry_timeout_ns.Draw(network_.prng()), &Link::OnRetryTimeout, side);
}

// The sender has tried for long enough.
void Link::OnRetryTimeout(Side side) {
  Wire& out = wire(side);
  out.retry_armed = false;
  if (out.inflight.empty() && out.landed.empty()) return;
  if (!out.severed && !Blocked(side) && !Blocked(Other(side))) return;  // It passes again.
  network_.world().Trace("retries exhausted", id_ * 2 + Index(side));
  SeeBreak(side, WcStatus::kPeerGone, -ETIMEDOUT);
}

}  // namespace ibnbd::sim
