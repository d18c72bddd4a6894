// SPDX-License-Identifier: Apache-2.0
// Keys per IO: a chunk changes hands between two lanes of a path, each on its own thread.  Rare:
// the client has used a chunk through another connection before we have seen that our answer
// landed. The lane that answered keeps the chunk until then; the other one's request waits, and
// counts as executing meanwhile, so that neither lane goes away.
#include <utility>

#include "base/mark.h"
#include "rtrs/server_lane.h"

namespace ibnbd::rtrs {

// A request for a chunk in kAnswered.
void ServerLane::Want(ServerRequest& request, std::uint32_t off) {
  Turn seen = Turn::kAnswered;
  if (request.turn_.compare_exchange_strong(seen, Turn::kWanted, std::memory_order_acquire)) {
    ServerLane& owner = *request.lane_;
    if (&owner == this) {
      request.Unlink();
      request.turn_.store(Turn::kTaken, std::memory_order_relaxed);
      return Begin(request, off);
    }
    SIM_MARK("server: a chunk was used on another connection before its answer had landed");
    executing_seen_.store(++executing_count_, std::memory_order_relaxed);
    owner.reactor().Post([&owner, &request, this, off] { owner.OnWanted(request, *this, off); });
    return;
  }
  // It has landed just now.
  if (seen == Turn::kFree &&
      request.turn_.compare_exchange_strong(seen, Turn::kTaken, std::memory_order_acquire)) {
    return Begin(request, off);
  }
  Break("request: its chunk is still executing");
}

// We have answered it, and `lane` has the next request for it.
void ServerLane::OnWanted(ServerRequest& request, ServerLane& lane, std::uint32_t off) {
  request.wanted_by_ = &lane;
  request.wanted_off_ = off;
  if (request.unsettled_ == 0) HandOver(request);
}

void ServerLane::HandOver(ServerRequest& request) {
  ServerLane* lane = std::exchange(request.wanted_by_, nullptr);
  lane->reactor().Post(
      [lane, &request, off = request.wanted_off_] { lane->OnHandedOver(request, off); });
}

void ServerLane::OnHandedOver(ServerRequest& request, std::uint32_t off) {
  executing_seen_.store(--executing_count_, std::memory_order_relaxed);
  if (state_ != State::kOpen) {  // As when it comes then.
    ReleaseRequest(request);
    return RequestTurnEnd();
  }
  request.turn_.store(Turn::kTaken, std::memory_order_relaxed);
  Begin(request, off);
}

// The connection broke: what waits for a window never executes, and no answer will land.
void ServerLane::AbandonKeys() {
  to_close_.Splice(closing_);
  while (!to_close_.empty()) {
    ReleaseRequest(to_close_.PopFront());
    executing_seen_.store(--executing_count_, std::memory_order_relaxed);
  }
  while (!answered_.empty()) {
    ServerRequest& request = answered_.PopFront();
    request.unsettled_ = 0;
    Turn seen = Turn::kAnswered;
    if (request.turn_.compare_exchange_strong(seen, Turn::kFree, std::memory_order_release)) {
      continue;
    }
    if (request.wanted_by_ != nullptr) HandOver(request);
  }
}

}  // namespace ibnbd::rtrs
