// SPDX-License-Identifier: Apache-2.0
// Traffic: from Launch() to the acknowledgement.  Breaking is in sim_link_break.cc.
#include "fabric/sim/sim_link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "fabric/sim/sim_connection.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_network.h"
#include "fabric/sim/sim_poller.h"

namespace ibnbd::sim {
namespace {
using fabric::Opcode;
using fabric::WcStatus;

// A sender without a receive at its peer tries again for so long; RTRS asks for "for ever", but a
// receive that never comes is a bug that should end somewhere.
constexpr std::int64_t kNoReceiveNsMax = 5 * kNsPerSecond;
constexpr std::int64_t kReceiverNotReadyNs = 50 * kNsPerUs;
}  // namespace

Link::Link(Network& network, std::uint64_t id, SimFabric& active, std::uint32_t rail)
    : network_(network), id_(id), rail_(rail), fabrics_{&active, nullptr} {}

const FaultPlan& Link::plan() const { return network_.plan(rail_); }

void Link::AttachEnd(Side side, SimConnection& end) {
  CHECK(ends_[Index(side)] == nullptr);
  ends_[Index(side)] = &end;
}

void Link::DetachEnd(Side side) {
  ends_[Index(side)] = nullptr;
  wire(side).inflight.clear();  // Only a crashed host's has any left.
  wire(side).landed.clear();
  if (ends_[0] == nullptr && ends_[1] == nullptr) network_.Forget(*this);
}

Host& Link::host(Side side) const { return fabrics_[Index(side)]->host(); }

bool Link::Blocked(Side from) const {
  if (fabrics_[Index(Side::kPassive)] == nullptr) return false;  // Nobody has heard of it yet.
  if (swallowed_) return true;
  return network_.Blocked({host(from), host(Other(from)), rail_});
}

std::int64_t Link::DrawDelay(Side from, std::uint32_t byte_count) {
  return network_.DrawDelay({host(from), host(Other(from)), rail_}, byte_count);
}

void Link::ScheduleSelf(std::int64_t delay_ns, void (Link::*step)(Side), Side side) {
  network_.world().Schedule(delay_ns,
                            [self = shared_from_this(), step, side] { (self.get()->*step)(side); });
}

void Link::Launch(Side side, Message message) {
  Wire& out = wire(side);
  const std::int64_t now_ns = network_.world().now_ns();
  const bool cut_here = network_.ThrowPostDice({host(side), host(Other(side)), rail_});
  const std::int64_t delay_ns = DrawDelay(side, message.length);
  out.arrival_floor_ns = std::max(out.arrival_floor_ns, now_ns + delay_ns);
  message.arrival_ns = out.arrival_floor_ns;
  network_.world().Trace("launch", id_ * 2 + Index(side), message.sequence,
                         static_cast<std::uint64_t>(message.request.opcode), message.length);
  out.inflight.push_back(std::move(message));
  if (out.severed) {
    ArmRetry(side);
    return;
  }
  ScheduleSelf(out.arrival_floor_ns - now_ns, &Link::Progress, side);
  if (!cut_here) return;
  // At this post: before it landed, as it lands, or before its acknowledgement.
  network_.world().Schedule(network_.prng().Between(0, 2 * delay_ns),
                            [self = shared_from_this()] { self->Cut(-ECONNRESET); });
}

void Link::Kick() {
  for (const Side side : {Side::kActive, Side::kPassive}) {
    Progress(side);
    ProgressAcks(side);
  }
}

void Link::OnReceivePosted(Side side) {
  const Wire& in = wire(Other(side));
  if (in.inflight.empty() || !in.inflight.front().receive_missed) return;
  ScheduleSelf(network_.prng().Between(0, kReceiverNotReadyNs), &Link::Progress, Other(side));
}

// Lands what has arrived, in order, until something is in the way.
void Link::Progress(Side side) {
  Wire& out = wire(side);
  const std::int64_t now_ns = network_.world().now_ns();
  while (!out.severed && !out.inflight.empty() && out.inflight.front().arrival_ns <= now_ns) {
    if (Blocked(side)) {
      ArmRetry(side);
      return;
    }
    SimConnection* target = end(Other(side));
    if (target == nullptr || !target->CanLand()) return;  // Gone, or not yet told: see Kick().
    Message& message = out.inflight.front();
    const Verdict verdict = Land(side, message);
    if (verdict.wait && WaitForReceive(side, message)) return;
    if (verdict.wait || verdict.sender != WcStatus::kOk) {
      FailHead(side, verdict.wait ? Verdict{WcStatus::kNoReceive} : verdict);
      return;
    }
    ++network_.counts().landed;
    out.ack_floor_ns = std::max(out.ack_floor_ns, now_ns + DrawDelay(Other(side)));
    message.ack_ns = out.ack_floor_ns;
    out.landed.push_back(std::move(message));
    out.inflight.pop_front();
    ScheduleSelf(out.ack_floor_ns - now_ns, &Link::ProgressAcks, side);
    ThrowLandingDice(Other(side));
  }
}

void Link::ThrowLandingDice(Side target) {
  if (!network_.Draw(plan().stall_ppm)) return;
  network_.world().StallReactor(end(target)->poller().reactor(),
                                plan().stall_ns.Draw(network_.prng()));
}

void Link::ProgressAcks(Side side) {
  Wire& out = wire(side);
  const std::int64_t now_ns = network_.world().now_ns();
  while (!out.severed && !out.landed.empty() && out.landed.front().ack_ns <= now_ns) {
    if (Blocked(Other(side))) {
      ArmRetry(side);
      return;
    }
    const Message message = std::move(out.landed.front());
    out.landed.pop_front();
    end(side)->CompleteSend(message.sequence, message.request, WcStatus::kOk, message.length);
  }
}

bool Link::WaitForReceive(Side side, Message& message) {
  const std::int64_t waited_ns = network_.world().now_ns() - message.arrival_ns;
  if (waited_ns >= kNoReceiveNsMax) return false;
  if (message.receive_missed) return true;
  message.receive_missed = true;
  ++network_.counts().receives_missing;
  network_.world().Trace("no receive", id_ * 2 + Index(Other(side)));
  if (network_.Draw(plan().no_receive_break_ppm)) return false;
  ScheduleSelf(kNoReceiveNsMax - waited_ns, &Link::Progress, side);
  return true;
}

// Reads the source, which F9 says must still be what was posted.
bool Link::TakePayload(Side side, Message& message) {
  if (message.payload_taken) return true;
  for (const fabric::Sge& sge : message.sges) {
    if (fabric(side)->CheckLocal(sge, domain(side))) continue;
    network_.world().AddViolation(absl::StrCat("a send's lkey or bounds are not registered: host ",
                                               host(side).name(), " cookie ",
                                               message.request.cookie));
    return false;
  }
  if (ChecksumSges(message.sges) != message.checksum) {
    network_.world().AddViolation(absl::StrCat(
        "F9: a source changed before its completion: host ", host(side).name(), " to ",
        host(Other(side)).name(), " cookie ", message.request.cookie, " length ", message.length));
  }
  message.payload = GatherSges(message.sges);
  message.payload_taken = true;
  return true;
}

Link::Verdict Link::Land(Side side, Message& message) {
  if (message.request.window != nullptr) {  // It goes nowhere; the order is that of posting.
    static_cast<SimWindow*>(message.request.window)->TakeEffect(message.window_rkey);
    return {};
  }
  if (!TakePayload(side, message)) return {WcStatus::kLocalFault};
  SimConnection& target = *end(Other(side));
  const Opcode opcode = message.request.opcode;
  if (opcode != Opcode::kWrite && target.FirstReceive() == nullptr) {
    return {WcStatus::kOk, WcStatus::kFlushed, /*wait=*/true};
  }
  const bool is_write = opcode == Opcode::kWrite || opcode == Opcode::kWriteImm;
  Verdict verdict = is_write ? LandWrite(side, message) : LandSend(side, message);
  if (verdict.sender == WcStatus::kOk && opcode != Opcode::kWrite) CompleteReceive(side, message);
  return verdict;
}

Link::Verdict Link::LandWrite(Side side, const Message& message) {
  CHECK(!end(Other(side))->drained());  // F10.
  if (message.length == 0) return {};
  std::uint64_t offset = 0;
  const Side target = Other(side);
  std::byte* place =
      fabric(target)->CheckRemote(message.request.remote, message.length, domain(target), offset);
  network_.world().Trace("write", id_ * 2 + Index(side), message.sequence, offset,
                         place != nullptr ? message.length : 0);
  if (place == nullptr) return {WcStatus::kRemoteAccess};
  std::memcpy(place, message.payload.data(), message.payload.size());
  return {};
}

Link::Verdict Link::LandSend(Side side, const Message& message) {
  SimConnection& target = *end(Other(side));
  CHECK(!target.drained());  // F10.
  const PostedReceive& receive = *target.FirstReceive();
  std::size_t room = 0;
  for (const fabric::Sge& sge : receive.sges) {
    room += sge.length;
    if (fabric(Other(side))->CheckLocal(sge, domain(Other(side)))) continue;
    network_.world().AddViolation(
        absl::StrCat("a receive's lkey or bounds are not registered: host ",
                     host(Other(side)).name(), " cookie ", receive.cookie));
    return {WcStatus::kRemoteAccess, WcStatus::kLocalFault};
  }
  if (message.request.opcode == Opcode::kSendInvalidate &&
      !fabric(Other(side))->CanInvalidate(message.request.invalidate_rkey, domain(Other(side)))) {
    return {WcStatus::kRemoteAccess};
  }
  const bool too_long = message.length > room;
  std::size_t from = 0;  // A message that is too long fills the receive, as hardware may.
  for (const fabric::Sge& sge : receive.sges) {
    const std::size_t part = std::min<std::size_t>(sge.length, message.payload.size() - from);
    if (part > 0) std::memcpy(sge.addr, message.payload.data() + from, part);
    from += part;
  }
  if (too_long) return {WcStatus::kRemoteAccess, WcStatus::kLocalFault};
  if (message.request.opcode == Opcode::kSendInvalidate) {
    fabric(Other(side))->Invalidate(message.request.invalidate_rkey);
  }
  return {};
}

void Link::CompleteReceive(Side side, const Message& message) {
  fabric::Completion completion;
  const Opcode opcode = message.request.opcode;
  completion.opcode = opcode == Opcode::kWriteImm ? Opcode::kReceiveWriteImm : Opcode::kReceive;
  completion.has_imm = opcode == Opcode::kWriteImm || opcode == Opcode::kSendImm;
  if (completion.has_imm) completion.imm = message.request.imm;
  completion.has_invalidate = opcode == Opcode::kSendInvalidate;
  if (completion.has_invalidate) completion.invalidated_rkey = message.request.invalidate_rkey;
  completion.byte_count = message.length;
  end(Other(side))->CompleteReceive(completion);
}

}  // namespace ibnbd::sim
