// SPDX-License-Identifier: Apache-2.0
// A session's share of one reactor: permits, the requests that hold them, those that wait for one,
// and a connection of each path to send them over.  Lane i of a session has connection i+1 of every
// path; connections 0, of the control messages, are in an object of the same class on the control
// thread.  A lane lives on the thread of its port; which path a request takes is decided with that
// thread's data alone.  Session and lane talk by Reactor::Post() alone.
//
//   L1  S1 to S3 of client_session.h hold for each request on its own lane.
//   L2  A request keeps its permit until it is over, whatever path it takes: a chunk number never
//       names two requests at once.
//   L3  What was posted on a path that broke is in doubt once the connection is drained.  It is
//       posted again only when control has said that the path is fenced (OnFenced()); reads of
//       data at once, since what is left of the old one changes nothing.
//   L4  Nothing is given up by the lane itself: only control knows whether another path is left. It
//       says so with Abort(), and hears when no request is left.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/intrusive_list.h"
#include "rtrs/client_connection.h"
#include "rtrs/client_session.h"
#include "rtrs/path_policy.h"
#include "rtrs/permit_pool.h"
#include "rtrs/port.h"

namespace ibnbd::rtrs {

// What lanes tell their session, on the control thread.
class LaneObserver {
 public:
  virtual void OnLaneAborted(std::uint32_t cid) = 0;  // Abort() is done: the lane has no request.
  virtual void OnLaneShutDown(std::uint32_t cid) = 0;

 protected:
  ~LaneObserver() = default;
};

class ClientLane final : private PortClient {
 public:
  ClientLane(Port& port, Reactor& control, LaneObserver& observer, std::uint32_t cid);
  ~ClientLane() override;  // Requires: shut down, or never opened.

  // --- On the lane's thread. ---
  // Queues `request`; it is posted with its neighbours at the end of the turn.  Requires: the
  // session was up once, and is not closed.
  void Submit(ClientRequest& request);
  // Posts it on this path and no other, also before Open(); it ends with the path (-ECONNABORTED)
  // or is refused (-ENOTCONN).  One at a time.
  void SubmitOn(std::uint32_t path, ClientRequest& request);
  [[nodiscard]] Port& port() { return port_; }
  [[nodiscard]] std::uint32_t permits_used() const { return permits_.used_count(); }
  [[nodiscard]] std::uint32_t cid() const { return cid_; }

  // --- For the session, on the lane's thread. ---
  void Open();   // Requests flow.
  void Abort();  // What is here ends with -ECONNABORTED or -ENOTCONN; then OnLaneAborted().
  void OnFenced(std::uint32_t path);  // What was in doubt there may be posted again.
  void SetPolicy(PathPolicyKind kind) { policy_.SetKind(kind); }
  void SetWeight(std::uint32_t path, std::uint32_t weight) { policy_.SetWeight(path, weight); }
  void ShutDown();

  // --- For connections. ---
  void AddConnection(ClientConnection& connection);
  void RemoveConnection(ClientConnection& connection);
  void SetPermits(const PermitRange& range);
  void OnEnabled(ClientConnection& connection);
  void OnDisabled(ClientConnection& connection);
  void OnDrained(ClientConnection& connection);
  void RequestTurnEnd() { port_.RequestTurnEnd(context_); }
  [[nodiscard]] bool waits() const { return !waiting_.empty() || pinned_ != nullptr; }
  // The request that this connection owes an answer for, or null.
  [[nodiscard]] const ClientRequest* AwaitedOn(std::uint32_t local,
                                               const ClientConnection& connection) const {
    const Slot& slot = slots_[local];
    return slot.connection == &connection && !slot.answered ? slot.request : nullptr;
  }
  // `may_finish`: the connection is in order.  Otherwise its end finishes the request.
  void OnAnswer(std::uint32_t local, int error, bool may_finish);
  void OnDataSent(std::uint32_t local, const ClientConnection& connection);

 private:
  struct Slot {  // Of one permit.
    ClientRequest* request = nullptr;
    ClientConnection* connection = nullptr;  // That it was posted on; null: it is in doubt.
    bool answered = false;
    bool send_pending = false;  // The data is in use until the send has completed (F9).
    bool pinned = false;
    std::uint8_t path = 0;  // Of the connection, also when that is drained.
    int error = 0;
    std::uint32_t load = 0;  // Of the path, when it was posted.
    std::int64_t posted_ns = 0;
  };

  // client_lane.cc
  void Attach();
  void CheckAborted();
  void GiveUpInDoubt();
  void RepeatInDoubt(std::uint32_t path, bool reads_only);

  // client_lane_datapath.cc
  void OnCompletion(const CookieParts&, const fabric::Completion&) override {}
  void OnCmEvent(fabric::CmEvent&) override {}
  void OnTurnEnd() override;
  void PostWaiting();
  void PostPinned();
  [[nodiscard]] ClientConnection* PickConnection(const ClientRequest& request);
  void PostOn(ClientConnection& connection, ClientRequest& request, std::uint32_t chunk,
              bool pinned);
  void Finish(Slot& slot, std::uint32_t local, int error);
  void LeaveConnection(Slot& slot, bool is_answer);
  void FailWaiting();
  [[nodiscard]] bool HasPermitFor(const ClientRequest& request) const {
    return request.permit != PermitPool::kNone || permits_.free_count() > reserved_;
  }

  Port& port_;
  Reactor& control_;
  LaneObserver& observer_;
  const std::uint32_t cid_;
  bool attached_ = false;
  bool open_ = false;
  bool aborting_ = false;
  std::uint64_t context_ = 0;
  // By number of the path; null: none here (yet).
  std::array<ClientConnection*, kClientPathsMax> connections_{};
  std::uint32_t enabled_mask_ = 0;
  std::uint32_t enabled_count_ = 0;
  PathPolicy policy_;
  PermitPool permits_;
  std::uint32_t reserved_ = 0;  // Permits kept for SubmitOn().
  std::vector<Slot> slots_;
  IntrusiveList<ClientRequest> waiting_;  // Those that have a permit already are in front.
  ClientRequest* pinned_ = nullptr;       // Waits for SubmitOn()'s path.
  std::uint32_t pinned_path_ = 0;
};

}  // namespace ibnbd::rtrs
