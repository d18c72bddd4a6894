// SPDX-License-Identifier: Apache-2.0
#include "rnbd/client_calls.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ibnbd::rnbd {

class ControlCalls::Call final : public rtrs::ClientRequest {
 public:
  Call(ControlCalls& calls, std::span<std::byte> room)
      : room_(room), calls_(calls), timer_(calls.control_.reactor().timers(), [this] {
          calls_.session_->ResetPaths(
              absl::DeadlineExceededError(absl::StrCat(queued_.what, ": no answer")));
        }) {}

  void Begin(Queued queued, const fabric::Keys& its_keys) {
    queued_ = std::move(queued);
    message = queued_.message;
    is_read = queued_.reply_size != 0;
    data = room_.first(queued_.reply_size);
    keys = &its_keys;
    std::fill(data.begin(), data.end(), std::byte{0});  // Nothing of an earlier reply.
    timer_.ArmAfter(calls_.timeout_ns_);
    calls_.session_->SubmitControl(*this);
  }
  void OnDone(int error) override {
    timer_.Cancel();
    calls_.OnCallDone(*this, error);
  }
  Queued TakeQueued() { return std::move(queued_); }

 private:
  const std::span<std::byte> room_;
  ControlCalls& calls_;
  Queued queued_;
  Timer timer_;
};

ControlCalls::ControlCalls(rtrs::Port& control, std::int64_t timeout_ns)
    : control_(control), timeout_ns_(timeout_ns) {}

ControlCalls::~ControlCalls() { CHECK_EQ(free_.size(), calls_.size()); }

absl::StatusOr<std::unique_ptr<ControlCalls>> ControlCalls::Create(rtrs::Port& control,
                                                                   std::int64_t timeout_ns) {
  std::unique_ptr<ControlCalls> self(new ControlCalls(control, timeout_ns));
  ASSIGN_OR_RETURN(self->memory_, Arena::Create(kCallsMax * kReplySizeMax));
  ASSIGN_OR_RETURN(self->region_,
                   control.fabric().Register(self->memory_.bytes(), fabric::Access::kRemoteWrite));
  for (std::uint32_t i = 0; i < kCallsMax; ++i) {
    self->calls_.push_back(std::make_unique<Call>(
        *self, self->memory_.bytes().subspan(i * kReplySizeMax, kReplySizeMax)));
    self->free_.push_back(self->calls_.back().get());
  }
  return self;
}

void ControlCalls::Start(std::string what, std::span<const std::byte> message,
                         std::size_t reply_size, Done done) {
  CHECK_LE(reply_size, kReplySizeMax);
  if (!session_->up()) {
    control_.reactor().Post([done = std::move(done)] { done(-ENOTCONN, {}); });
    return;
  }
  queue_.push_back(
      {std::move(what), {message.begin(), message.end()}, reply_size, std::move(done)});
  StartQueued();
}

void ControlCalls::StartQueued() {
  while (!queue_.empty() && !free_.empty() && session_->up()) {
    Call* call = free_.back();
    free_.pop_back();
    Queued queued = std::move(queue_.front());
    queue_.pop_front();
    call->Begin(std::move(queued), region_->keys());
  }
}

void ControlCalls::OnCallDone(Call& call, int error) {
  const Queued queued = call.TakeQueued();
  // Copied before it is looked at: the server can still write to the room.
  const std::vector<std::byte> reply(call.data.begin(), call.data.end());
  free_.push_back(&call);
  std::deque<Queued> orphans;
  if (!session_->up()) orphans.swap(queue_);  // Never sent, and the path is down.
  queued.done(error, reply);
  for (const Queued& orphan : orphans) orphan.done(-ENOTCONN, {});
  StartQueued();
}

}  // namespace ibnbd::rnbd
