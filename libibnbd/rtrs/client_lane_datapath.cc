// SPDX-License-Identifier: Apache-2.0
// The life of a request: waits for a permit and a path, is posted at the end of the turn, is
// answered.  A write also waits for the completion of its send: until then its data is in use (F9).
// Nothing here allocates, locks or logs.
#include <bit>
#include <cerrno>
#include <utility>

#include "base/canary.h"
#include "rtrs/client_lane.h"

namespace ibnbd::rtrs {
namespace {

// The server's own words for errors that mean something else between a lane and its user (S3).
int ErrnoFromServer(int error) {
  if (error == -ENOTCONN) return kServerNotOpen;
  if (error == -ECONNABORTED) return -EIO;
  return error;
}

PathWork WorkOf(const ClientRequest& request) {
  return {static_cast<std::uint32_t>(request.data.size()), request.is_read};
}

// One writer: no read-modify-write needed.
template <class T>
void AddTo(std::atomic<T>& counter, T value) {
  counter.store(counter.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
}

}  // namespace

void ClientLane::Submit(ClientRequest& request) {
  DCHECK(attached_);
  DCHECK_LE(request.message.size(), proto::kUserMessageMax);
  request.permit = PermitPool::kNone;
  waiting_.PushBack(request);
  RequestTurnEnd();
}

void ClientLane::SubmitOn(std::uint32_t path, ClientRequest& request) {
  CHECK(pinned_ == nullptr);
  request.permit = PermitPool::kNone;
  pinned_ = &request;
  pinned_path_ = path;
  RequestTurnEnd();
}

void ClientLane::OnTurnEnd() {
  for (ClientConnection* connection : connections_) {
    if (connection != nullptr) connection->PostReceivesAndService();
  }
  if (pinned_ != nullptr) [[unlikely]] {
    PostPinned();
  }
  if (open_) {
    PostWaiting();
  } else {
    FailWaiting();
  }
  for (ClientConnection* connection : connections_) {
    if (connection != nullptr) connection->PostBatch();
  }
  if (aborting_) [[unlikely]] {
    CheckAborted();
  }
}

void ClientLane::PostWaiting() {
  while (!waiting_.empty() && HasPermitFor(waiting_.front())) {
    ClientConnection* connection = PickConnection(waiting_.front());
    if (connection == nullptr) return;  // One that comes up, or gets a credit, asks for a turn end.
    ClientRequest& request = waiting_.PopFront();
    if (request.permit == PermitPool::kNone) request.permit = permits_.TryAcquire();
    PostOn(*connection, request, request.permit, /*pinned=*/false);
  }
}

void ClientLane::PostPinned() {
  ClientConnection* connection = connections_[pinned_path_];
  if (connection == nullptr || !connection->ready()) {
    return std::exchange(pinned_, nullptr)->OnDone(-ENOTCONN);
  }
  if (!connection->HasCredit() || permits_.empty()) return;  // Either asks for a turn end.
  ClientRequest& request = *std::exchange(pinned_, nullptr);
  request.permit = permits_.TryAcquire();
  PostOn(*connection, request, request.permit, /*pinned=*/true);
}

ClientConnection* ClientLane::PickConnection(const ClientRequest& request) {
  std::uint32_t candidates = enabled_mask_;
  for (std::uint32_t i = 0, mask = candidates; mask != 0; ++i, mask >>= 1) {
    if ((mask & 1) != 0 && !connections_[i]->HasCredit()) candidates &= ~(1u << i);
  }
  if (candidates == 0) return nullptr;
  if (enabled_count_ == 1) [[likely]] {
    return connections_[static_cast<std::size_t>(std::countr_zero(candidates))];
  }
  const int path = policy_.Pick(candidates, WorkOf(request), port_.reactor().now_ns());
  return connections_[static_cast<std::size_t>(path)];
}

void ClientLane::PostOn(ClientConnection& connection, ClientRequest& request, std::uint32_t chunk,
                        bool pinned) {
  const std::uint32_t local = chunk - permits_.range().first;
  Slot& slot = slots_[local];
  slot.request = &request;
  slot.connection = &connection;
  slot.path = static_cast<std::uint8_t>(connection.path());
  slot.pinned = pinned;
  slot.send_pending = !request.is_read && !request.data.empty();
  slot.posted_ns = port_.reactor().now_ns();
  if (!pinned) slot.load = policy_.OnPosted(connection.path(), WorkOf(request), slot.posted_ns);
  AddTo<std::uint32_t>(connection.mutable_counters().inflight, 1);
  connection.AddRequest(request, chunk, local);
}

void ClientLane::OnAnswer(std::uint32_t local, int error, bool may_finish) {
  Slot& slot = slots_[local];
  slot.answered = true;
  slot.error = ErrnoFromServer(error);
  if (!slot.send_pending && may_finish) Finish(slot, local, slot.error);
}

void ClientLane::OnDataSent(std::uint32_t local, const ClientConnection& connection) {
  Slot& slot = slots_[local];
  DCHECK(slot.connection == &connection);
  (void)connection;
  slot.send_pending = false;
  if (slot.answered) Finish(slot, local, slot.error);
}

// The connection has nothing more to do with it.
void ClientLane::LeaveConnection(Slot& slot, bool is_answer) {
  ClientConnection& connection = *std::exchange(slot.connection, nullptr);
  ClientConnection::Counters& counters = connection.mutable_counters();
  const PathWork work = WorkOf(*slot.request);
  AddTo<std::uint32_t>(counters.inflight, ~0u);
  slot.answered = slot.send_pending = false;
  if (slot.pinned) return;
  if (!is_answer) {
    policy_.OnLost(slot.path, work);
    AddTo<std::uint64_t>(counters.lost, 1);
    return;
  }
  const std::int64_t estimate_ns =
      policy_.OnAnswered(slot.path, work, slot.load, slot.posted_ns, port_.reactor().now_ns());
  counters.estimate_ns.store(estimate_ns, std::memory_order_relaxed);
  AddTo<std::uint64_t>(work.is_read ? counters.reads : counters.writes, 1);
  AddTo<std::uint64_t>(counters.bytes, work.byte_count);
  if (enabled_count_ > 1) [[unlikely]] {
    counters.drained_by_policy.store(policy_.drained(slot.path), std::memory_order_relaxed);
  }
}

void ClientLane::Finish(Slot& slot, std::uint32_t local, int error) {
  if (slot.connection != nullptr) LeaveConnection(slot, slot.answered);
  ClientRequest* request = std::exchange(slot.request, nullptr);
  if (request->linked()) request->Unlink();  // It waited to be posted again.
  // A permit that an error of the server's takes along.
  const bool lose = IBNBD_CANARY(4) && (error == -EIO || error == kServerNotOpen) && local == 0;
  if (!lose) permits_.Release(permits_.range().first + local);
  request->permit = PermitPool::kNone;
  request->OnDone(error);
}

// None of them has a permit, or Abort() has ended it before.
void ClientLane::FailWaiting() {
  IntrusiveList<ClientRequest> failed;  // OnDone() may submit again.
  while (!waiting_.empty()) {
    ClientRequest& request = waiting_.PopFront();
    if (request.permit == PermitPool::kNone) failed.PushBack(request);
  }
  while (!failed.empty()) failed.PopFront().OnDone(-ENOTCONN);
}

}  // namespace ibnbd::rtrs
