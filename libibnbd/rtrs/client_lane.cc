// SPDX-License-Identifier: Apache-2.0
// What happens to a lane's requests when paths come and go.  What happens per request is in
// client_lane_datapath.cc.
#include "rtrs/client_lane.h"

#include <cerrno>
#include <utility>

#include "base/mark.h"

namespace ibnbd::rtrs {

ClientLane::ClientLane(Port& port, Reactor& control, LaneObserver& observer, std::uint32_t cid)
    : port_(port), control_(control), observer_(observer), cid_(cid) {}

ClientLane::~ClientLane() { CHECK(!attached_); }

void ClientLane::Attach() {
  if (std::exchange(attached_, true)) return;
  context_ = port_.Attach(*this);
}

void ClientLane::AddConnection(ClientConnection& connection) {
  Attach();
  CHECK(connections_[connection.path()] == nullptr);
  connections_[connection.path()] = &connection;
}

void ClientLane::RemoveConnection(ClientConnection& connection) {
  connections_[connection.path()] = nullptr;
}

void ClientLane::SetPermits(const PermitRange& range) {
  if (permits_.range() == range) return;
  CHECK_EQ(permits_.used_count(), 0u);  // The session was never up.
  permits_ = PermitPool(range);
  slots_.assign(range.count, Slot{});
  // Control messages never take the last one: a fence must not wait for what waits for it.
  reserved_ = cid_ == 0 && range.count > 1 ? 1 : 0;
}

void ClientLane::OnEnabled(ClientConnection& connection) {
  policy_.Add(connection.path());
  enabled_mask_ |= 1u << connection.path();
  ++enabled_count_;
  RequestTurnEnd();
}

void ClientLane::OnDisabled(ClientConnection& connection) {
  policy_.Remove(connection.path());
  enabled_mask_ &= ~(1u << connection.path());
  --enabled_count_;
}

void ClientLane::Open() {
  Attach();
  open_ = true;
  RequestTurnEnd();
}

void ClientLane::Abort() {
  Attach();
  open_ = false;
  aborting_ = true;
  FailWaiting();
  GiveUpInDoubt();
  RequestTurnEnd();  // What OnDone() submitted meanwhile, and CheckAborted().
}

void ClientLane::GiveUpInDoubt() {
  for (std::uint32_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.request == nullptr || slot.connection != nullptr) continue;
    Finish(slot, i, -ECONNABORTED);
  }
}

void ClientLane::CheckAborted() {
  if (!aborting_ || !waiting_.empty() || permits_.used_count() > 0) return;
  aborting_ = false;
  control_.Post([observer = &observer_, cid = cid_] { observer->OnLaneAborted(cid); });
}

// Nothing of the network touches the memory of the connection's requests any more.
void ClientLane::OnDrained(ClientConnection& connection) {
  for (std::uint32_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.connection != &connection) continue;
    if (slot.answered) {  // An answer that came before the end is an answer.
      Finish(slot, i, slot.error);
      continue;
    }
    LeaveConnection(slot, false);
    if (slot.pinned || !open_) Finish(slot, i, -ECONNABORTED);
  }
  if (open_ && cid_ != 0) RepeatInDoubt(connection.path(), /*reads_only=*/true);
  RequestTurnEnd();  // CheckAborted().
}

void ClientLane::OnFenced(std::uint32_t path) { RepeatInDoubt(path, /*reads_only=*/false); }

void ClientLane::RepeatInDoubt(std::uint32_t path, bool reads_only) {
  // From the last to the first, to the front: what has a permit goes before what needs one.
  for (std::size_t i = slots_.size(); i-- > 0;) {
    Slot& slot = slots_[i];
    if (slot.request == nullptr || slot.connection != nullptr || slot.path != path) continue;
    if (slot.request->linked() || (reads_only && !slot.request->is_read)) continue;
    SIM_MARK("client: request repeated on another path");
    waiting_.PushFront(*slot.request);
  }
  RequestTurnEnd();
}

void ClientLane::ShutDown() {
  CHECK_EQ(permits_.used_count(), 0u);
  FailWaiting();
  if (std::exchange(attached_, false)) port_.Detach(context_);
  control_.Post([observer = &observer_, cid = cid_] { observer->OnLaneShutDown(cid); });
}

}  // namespace ibnbd::rtrs
