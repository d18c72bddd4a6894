// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/sim_connection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_network.h"
#include "fabric/sim/sim_poller.h"

namespace ibnbd::sim {
namespace {
// What an ordinary adapter grants; asking for more fails there, so it fails here.
constexpr fabric::Limits kLimitsMax{16'384, 16'384, 30, 220};
constexpr std::uint32_t kSgesMin = 2;
constexpr std::int64_t kCompletionNsMax = 2 * kNsPerUs;
constexpr std::int64_t kDisconnectNsMax = 20 * kNsPerUs;
}  // namespace

absl::StatusOr<fabric::Limits> SimConnection::GrantLimits(const fabric::Limits& asked) {
  const auto refuse = [](const char* what, std::uint32_t wanted, std::uint32_t most) {
    return absl::ResourceExhaustedError(
        absl::StrCat("sim connection: ", what, ": ", wanted, " asked, ", most, " possible"));
  };
  if (asked.sends_max > kLimitsMax.sends_max) {
    return refuse("sends_max", asked.sends_max, kLimitsMax.sends_max);
  }
  if (asked.receives_max > kLimitsMax.receives_max) {
    return refuse("receives_max", asked.receives_max, kLimitsMax.receives_max);
  }
  if (asked.sges_max > kLimitsMax.sges_max) {
    return refuse("sges_max", asked.sges_max, kLimitsMax.sges_max);
  }
  if (asked.inline_size_max > kLimitsMax.inline_size_max) {
    return refuse("inline_size_max", asked.inline_size_max, kLimitsMax.inline_size_max);
  }
  fabric::Limits granted = asked;
  granted.sges_max = std::max(asked.sges_max, kSgesMin);
  return granted;
}

SimConnection::SimConnection(std::shared_ptr<Link> link, Side side, SimPoller& poller,
                             const fabric::Limits& limits, std::uint64_t context)
    : link_(std::move(link)), side_(side), poller_(poller), limits_(limits), context_(context) {
  link_->AttachEnd(side_, *this);
  poller_.AddConnection(*this);
}

SimConnection::~SimConnection() {
  // A crashed host's connections are gone already; only their owner does not know.
  CHECK(drained() || poller_.fabric().dead());
  poller_.RemoveConnection(*this);
  link_->DetachEnd(side_);
}

bool SimConnection::drained() const {
  if (completions_owed_ != 0) return false;
  if (end_polled_) return true;
  return disconnect_polled_ && network().world().now_ns() >= drain_ns_;
}

void SimConnection::CheckRequest(const fabric::SendRequest& request) const {
  CHECK_LE(request.sges.size(), limits_.sges_max);
  CHECK(request.opcode != fabric::Opcode::kReceive &&
        request.opcode != fabric::Opcode::kReceiveWriteImm);
  CHECK_LT(sends_posted_ - sends_covered_, limits_.sends_max);
  CHECK(!drained());
}

Message SimConnection::MakeMessage(const fabric::SendRequest& request) {
  Message message;
  message.sequence = ++sends_posted_;
  message.request = request;
  message.request.sges = {};
  message.sges.assign(request.sges.begin(), request.sges.end());
  for (const fabric::Sge& sge : message.sges) message.length += sge.length;
  if (request.window != nullptr) {
    message.window_rkey = static_cast<SimWindow*>(request.window)
                              ->Post(request.opcode == fabric::Opcode::kOpenWindow);
  }
  if (message.length <= limits_.inline_size_max) {
    message.payload = GatherSges(message.sges);
    message.payload_taken = true;
    return message;
  }
  // Memory that no key names must not be looked at; it is refused when the message would land.
  const auto readable = [this](const fabric::Sge& sge) {
    return link_->fabric(side_)->CheckLocal(sge, link_->domain(side_));
  };
  if (std::all_of(message.sges.begin(), message.sges.end(), readable)) {
    message.checksum = ChecksumSges(message.sges);
  }
  return message;
}

void SimConnection::PostSend(std::span<const fabric::SendRequest> requests) {
  // F12: an active side must have been told that it is connected.
  CHECK(side_ == Side::kPassive || established_polled_);
  for (const fabric::SendRequest& request : requests) {
    CheckRequest(request);
    if (state_ == State::kUp) {
      unflushed_.push_back(MakeMessage(request));
    } else {
      CompleteSend(++sends_posted_, request, fabric::WcStatus::kFlushed, 0);
    }
  }
}

void SimConnection::PostReceive(std::span<const fabric::ReceiveRequest> requests) {
  for (const fabric::ReceiveRequest& request : requests) {
    CHECK_LT(receives_outstanding_, limits_.receives_max);
    CHECK_LE(request.sges.size(), std::max(limits_.sges_max, kSgesMin));
    ++receives_outstanding_;
    if (state_ == State::kDead) continue;  // Dead and drained: nothing is owed.
    receives_.push_back({request.cookie, {request.sges.begin(), request.sges.end()}});
    if (state_ != State::kBroken) continue;
    CHECK(!drained());
    CompleteReceive(Junk(request.cookie, fabric::WcStatus::kFlushed));
  }
  if (state_ == State::kUp) link_->OnReceivePosted(side_);
}

void SimConnection::Disconnect() {
  if (disconnecting_ || state_ == State::kBroken || state_ == State::kDead) return;
  network().world().Trace("disconnect", id());
  LaunchPosts();
  disconnecting_ = true;  // Later posts stay here and are flushed.
  const std::int64_t delay_ns = network().prng().Between(0, kDisconnectNsMax);
  network().world().Schedule(delay_ns, [link = link_, side = side_] {
    link->SeeBreak(side, fabric::WcStatus::kFlushed, 0);
  });
}

void SimConnection::LaunchPosts() {
  if (disconnecting_) return;
  while (!unflushed_.empty()) {
    Message message = std::move(unflushed_.front());
    unflushed_.pop_front();
    link_->Launch(side_, std::move(message));
  }
}

void SimConnection::BecomeUp() {
  CHECK(state_ == State::kConnecting);
  state_ = State::kUp;
}

void SimConnection::BecomeDead() {
  CHECK(state_ == State::kConnecting);
  state_ = State::kDead;
  receives_.clear();
}

bool SimConnection::CanLand() const {
  return state_ == State::kUp && (side_ == Side::kPassive || established_polled_);
}

const PostedReceive* SimConnection::FirstReceive() const {
  return receives_.empty() ? nullptr : &receives_.front();
}

void SimConnection::CompleteReceive(const fabric::Completion& result) {
  CHECK(!receives_.empty());
  fabric::Completion completion = result;
  completion.cookie = receives_.front().cookie;
  receives_.pop_front();
  PushCompletion(false, 0, completion);
}

void SimConnection::CompleteSend(std::uint64_t sequence, const fabric::SendRequest& request,
                                 fabric::WcStatus status, std::uint32_t byte_count) {
  if (status != fabric::WcStatus::kOk) {
    PushCompletion(true, sequence, Junk(request.cookie, status));
    return;
  }
  if (!request.signaled) return;
  fabric::Completion completion;
  completion.cookie = request.cookie;
  completion.opcode = request.opcode;
  completion.byte_count = byte_count;
  PushCompletion(true, sequence, completion);
}

fabric::Completion SimConnection::Junk(fabric::Cookie cookie, fabric::WcStatus status) {
  const std::uint64_t noise = network().prng().Next();
  fabric::Completion completion;
  completion.cookie = cookie;
  completion.status = status;
  completion.opcode = static_cast<fabric::Opcode>(noise % 9);
  completion.has_imm = (noise & 0x100) != 0;
  completion.has_invalidate = (noise & 0x200) != 0;
  completion.imm = static_cast<std::uint32_t>(noise >> 32);
  completion.invalidated_rkey = static_cast<std::uint32_t>(noise >> 11);
  completion.byte_count = static_cast<std::uint32_t>(noise >> 7);
  return completion;
}

void SimConnection::PushCompletion(bool is_send, std::uint64_t sequence,
                                   fabric::Completion completion) {
  World& world = network().world();
  std::int64_t delay_ns = network().prng().Between(0, kCompletionNsMax);
  if (network().Draw(link_->plan().slow_completion_ppm)) {
    ++network().counts().slow_completions;
    delay_ns += link_->plan().slow_completion_ns.Draw(network().prng());
  }
  // In order within a queue; nothing orders the two queues, nor two connections.
  std::int64_t& floor_ns = is_send ? send_floor_ns_ : receive_floor_ns_;
  floor_ns = std::max(floor_ns, world.now_ns() + delay_ns);
  ++completions_owed_;
  world.Schedule(floor_ns - world.now_ns(),
                 [link = link_, side = side_, is_send, sequence, completion] {
                   SimConnection* self = link->end(side);
                   if (self == nullptr) return;  // A crashed host's.
                   self->poller_.AddCompletion(*self, is_send, sequence, completion);
                 });
}

void SimConnection::Break(const std::deque<Message>& unfinished, fabric::WcStatus first_send,
                          fabric::WcStatus first_receive, int error) {
  World& world = network().world();
  CHECK(state_ == State::kUp || state_ == State::kConnecting);
  world.Trace("break", id(), static_cast<std::uint64_t>(first_send),
              static_cast<std::uint64_t>(-error), unfinished.size());
  const bool was_up = state_ == State::kUp;
  state_ = State::kBroken;
  fabric::WcStatus status = first_send;
  for (const std::deque<Message>* queue : {&unfinished, &std::as_const(unflushed_)}) {
    for (const Message& message : *queue) {
      CompleteSend(message.sequence, message.request, status, 0);
      status = fabric::WcStatus::kFlushed;
    }
  }
  unflushed_.clear();
  status = was_up ? first_receive : fabric::WcStatus::kFlushed;
  while (!receives_.empty()) {
    CompleteReceive(Junk(0, status));
    status = fabric::WcStatus::kFlushed;
  }
  drain_ns_ = world.now_ns() + link_->plan().drain_ns.Draw(network().prng());
  world.Schedule(drain_ns_ - world.now_ns(), [link = link_, side = side_] {
    if (link->end(side) != nullptr) link->end(side)->poller().Wake();  // drained() may hold now.
  });
  PendingEvent event;
  event.kind = fabric::CmEvent::Kind::kDisconnected;
  event.link = link_;
  event.side = side_;
  event.error = error;
  poller_.PushEvent(network().prng().Between(0, kDisconnectNsMax), std::move(event));
}

void SimConnection::OnSendPolled(std::uint64_t sequence) {
  CHECK(completions_owed_ > 0);
  --completions_owed_;
  sends_covered_ = std::max(sends_covered_, sequence);
}

void SimConnection::OnReceivePolled() {
  CHECK(completions_owed_ > 0 && receives_outstanding_ > 0);
  --completions_owed_;
  --receives_outstanding_;
}

void SimConnection::OnEstablishedPolled() {
  established_polled_ = true;
  link_->Kick();
}

}  // namespace ibnbd::sim
