// SPDX-License-Identifier: Apache-2.0
// One connection of a client's path and everything that happens on it: permits, requests,
// responses, send credits, receives.  Lane i of a session has connection i+1; the session keeps
// connection 0, for control messages and heartbeats, in an object of the same class.  A lane lives
// on the thread of its port.  The session talks to it, and it to the session, by Reactor::Post()
// alone.
//
//   L1  S1 to S3 of client_session.h hold for each request on its own lane.
//   L2  Receives are posted for every permit and some more before a request leaves.
//   L3  A header is written to memory that no uncovered send uses (F9): header areas are numbered
//   by
//       the send that uses them, modulo the send credits.
//   L4  After the last report, OnLaneShutDown(), a lane posts nothing more.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/arena.h"
#include "base/intrusive_list.h"
#include "proto/rtrs.h"
#include "reactor/timers.h"
#include "rtrs/client_session.h"
#include "rtrs/permit_pool.h"
#include "rtrs/port.h"

namespace ibnbd::rtrs {

// What lanes tell their session.  On the control thread; `round` is the one the lane was told.
class LaneObserver {
 public:
  virtual ~LaneObserver() = default;
  virtual void OnLaneConnected(std::uint32_t cid, std::uint32_t round, const proto::ConnRsp& offer,
                               const std::string& addresses) = 0;
  virtual void OnLaneActive(std::uint32_t cid, std::uint32_t round) = 0;
  virtual void OnLaneBroken(std::uint32_t cid, std::uint32_t round, const absl::Status& why,
                            bool fatal) = 0;
  virtual void OnLaneDrained(std::uint32_t cid, std::uint32_t round) = 0;
  virtual void OnLaneShutDown(std::uint32_t cid) = 0;
  // Connection 0 only.
  virtual void OnInfoResponse(std::uint32_t round, const std::vector<std::byte>& message) = 0;
  virtual void OnHeartbeatAck(std::uint32_t round) = 0;
};

struct LaneConnect {
  std::uint32_t round = 0;
  SocketAddress server;
  proto::ConnReq request;
  std::uint32_t permit_count = 0;  // At most; sizes queues and memory.
};

struct LaneActivation {
  std::uint32_t round = 0;
  SessionLimits limits;
  PermitRange permits;
  bool new_rkey = false;  // Responses bring the chunk's next rkey (a kernel server).
  std::vector<proto::ChunkAddress> chunks;  // Of `permits`.
};

class ClientLane final : private PortClient {
 public:
  ClientLane(Port& port, Reactor& control, LaneObserver& observer, std::uint32_t cid);
  ~ClientLane() override;  // Requires: shut down, or never connected.

  // --- On the lane's thread. ---
  // Queues `request`; it is posted with its neighbours at the end of the turn.  Requires: the
  // session was up once, and is not closed.
  void Submit(ClientRequest& request);
  [[nodiscard]] Port& port() { return port_; }
  [[nodiscard]] bool usable() const { return state_ == State::kUp; }

  // --- Any thread. ---
  [[nodiscard]] std::uint64_t receive_count() const {
    return receive_count_.load(std::memory_order_relaxed);
  }

  // --- For the session, on the lane's thread. ---
  void Connect(const LaneConnect& connect);
  void RequestInfo(std::uint32_t round, const std::string& name, std::uint32_t queue_depth);
  void Activate(LaneActivation activation);
  void SendHeartbeat(std::uint32_t round);
  // Ends the connection; OnLaneDrained() follows once nothing uses our memory any more.
  void Break(std::uint32_t round);
  void ShutDown();

 private:
  enum class State : std::uint8_t {
    kIdle,         // Waits for Connect().
    kConnecting,   // Waits for kEstablished.
    kEstablished,  // Waits for Activate(); connection 0: for INFO_RSP.
    kUp,           // Requests flow.
    kBroken,       // Waits for kDisconnected, then until the connection is drained.
  };
  enum Kind : std::uint8_t { kReceiveKind, kInfoKind, kDataKind, kCreditKind, kPlainKind };
  struct Slot {  // Of one permit.
    ClientRequest* request = nullptr;
    bool answered = false;
    bool send_pending = false;  // The data is in use until the send has completed (F9).
    int error = 0;
  };
  static constexpr std::uint32_t kReceiveSize = sizeof(proto::RkeyRsp);
  static constexpr std::uint32_t kHeaderStride = 512;
  static constexpr std::uint32_t kBatchMax = 32;
  static_assert(kHeaderStride >= proto::kRequestTailMax && kHeaderStride >= sizeof(proto::InfoReq));

  // client_lane.cc
  void OnCmEvent(fabric::CmEvent& event) override;
  void OnEstablished(const fabric::CmEvent& event);
  void OnRefused(const fabric::CmEvent& event);
  absl::Status StartConnect(const LaneConnect& connect);
  absl::Status PrepareMemory(std::uint32_t permit_count);
  void Fail(const absl::Status& why, bool fatal = false);
  void FailRequest(fabric::WcStatus status);
  void FailViolation(const char* reason);
  void ReportHeartbeatAck();
  void CheckDrained();
  void FailPosted();
  void ReportDrained();
  void OnInfo(const fabric::Completion& completion);
  [[nodiscard]] std::string Name() const;
  template <class F>
  void Report(F f) {
    control_.Post([observer = &observer_, cid = cid_, round = round_, f = std::move(f)]() mutable {
      f(*observer, cid, round);
    });
  }

  // client_lane_datapath.cc
  void OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) override;
  void OnTurnEnd() override;
  void OnReceive(std::uint32_t index, const fabric::Completion& completion);
  void OnImmediate(std::uint32_t index, const fabric::Completion& completion);
  const char* OnResponse(std::uint32_t index, const fabric::Completion& completion);
  const char* CheckResponse(std::uint32_t index, const fabric::Completion& completion,
                            std::uint32_t msg_id, const Slot& slot, int error);
  void OnSendDone();
  void Finish(Slot& slot, std::uint32_t chunk, int error);
  void FailWaiting();
  void PostReceives();
  void PostService();
  void PostWaiting();
  void AddRequest(ClientRequest& request);
  // A place in the batch, with its header area; Requires: a send credit.
  fabric::SendRequest& AddSend(std::span<std::byte>* header);
  void SetSignaled(fabric::SendRequest& send, Kind kind, std::uint32_t index);
  void SignalNowAndThen(fabric::SendRequest& send);
  void PostBatch();
  [[nodiscard]] bool HasCredit() const { return sends_posted_ - sends_retired_ < sends_max_; }

  Port& port_;
  Reactor& control_;
  LaneObserver& observer_;
  const std::uint32_t cid_;
  State state_ = State::kIdle;
  bool attached_ = false;
  bool reported_broken_ = false;
  bool disconnected_ = false;  // The event was seen.
  bool violated_ = false;      // The peer broke the protocol: nothing it says counts any more.
  std::uint32_t round_ = 0;
  std::uint64_t context_ = 0;
  std::optional<Timer> drain_timer_;  // Until ShutDown(): a timer ends on the thread it runs on.

  Arena memory_;  // Header areas, then receives.
  std::unique_ptr<fabric::Region> memory_region_;
  Arena info_memory_;
  std::unique_ptr<fabric::Region> info_region_;
  std::unique_ptr<fabric::Connection> connection_;  // Destroyed before what it uses.

  SessionLimits limits_;
  bool new_rkey_ = false;
  std::optional<proto::IoReqImmLayout> imm_layout_;
  std::vector<proto::ChunkAddress> chunks_;
  PermitPool permits_;
  std::vector<Slot> slots_;
  IntrusiveList<ClientRequest> waiting_;

  std::uint32_t permit_count_max_ = 0;
  std::uint32_t receives_max_ = 0;
  std::vector<std::uint32_t> free_receives_;  // To be posted (again).

  std::uint32_t sends_max_ = 0;
  std::uint32_t unsignaled_count_ = 0;  // Since the last signaled send.
  std::uint64_t sends_posted_ = 0;
  std::uint64_t sends_retired_ = 0;
  std::vector<std::uint64_t> signaled_;  // Ring: what each signaled send retires.
  std::size_t signaled_head_ = 0;
  std::size_t signaled_count_ = 0;

  std::uint32_t acks_owed_ = 0;
  bool heartbeat_owed_ = false;
  std::string info_name_;
  bool info_posted_ = false;  // Its receive is the first; only then others may follow.
  bool info_owed_ = false;

  std::array<fabric::SendRequest, kBatchMax> batch_;
  std::array<std::array<fabric::Sge, 2>, kBatchMax> batch_sges_;
  std::uint32_t batch_count_ = 0;
  std::atomic<std::uint64_t> receive_count_{0};
};

}  // namespace ibnbd::rtrs
