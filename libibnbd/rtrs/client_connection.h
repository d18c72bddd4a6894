// SPDX-License-Identifier: Apache-2.0
// One connection of a client's path: what one path brings to one lane.  It has the path's queue
// pair, its receives and send credits, the memory that headers are built in, and the addresses and
// keys of the chunks as this path sees them.  The requests are the lane's (client_lane.h): it picks
// a connection for each and is told of the answers.
//
// Connection i+1 of a path serves lane i; connection 0, on the control thread, also carries INFO
// and heartbeats.  Made and destroyed by its ClientPath on the control thread; everything else
// happens on the lane's thread.  Control and connection talk by Reactor::Post() alone.
//
//   N1  Receives are posted for every permit and some more before a request leaves.
//   N2  A header is written to memory that no uncovered send uses (F9): header areas are numbered
//   by
//       the send that uses them, modulo the send credits.
//   N3  After the last report, OnConnectionShutDown(), a connection posts nothing more.
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
#include "proto/rtrs.h"
#include "reactor/timers.h"
#include "rtrs/client_session.h"
#include "rtrs/permit_pool.h"
#include "rtrs/port.h"

namespace ibnbd::rtrs {

class ClientLane;

// What connections tell their path.  On the control thread; `round` is the one they were told.
class ConnectionObserver {
 public:
  virtual void OnConnected(std::uint32_t cid, std::uint32_t round, const proto::ConnRsp& offer,
                           const std::string& addresses) = 0;
  virtual void OnConnectionActive(std::uint32_t cid, std::uint32_t round) = 0;
  virtual void OnConnectionBroken(std::uint32_t cid, std::uint32_t round, const absl::Status& why,
                                  bool fatal) = 0;
  // Nothing of the network touches our memory any more; requests without an answer are in doubt.
  virtual void OnConnectionDrained(std::uint32_t cid, std::uint32_t round) = 0;
  virtual void OnConnectionShutDown(std::uint32_t cid) = 0;
  // Connection 0 only.
  virtual void OnInfoResponse(std::uint32_t round, const std::vector<std::byte>& message) = 0;
  virtual void OnHeartbeatAck(std::uint32_t round) = 0;

 protected:
  ~ConnectionObserver() = default;
};

struct LaneConnect {
  std::uint32_t round = 0;
  SocketAddress server;
  std::optional<SocketAddress> source = std::nullopt;
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

class ClientConnection final : private PortClient {
 public:
  // `path`: its number in the session.
  ClientConnection(ClientLane& lane, Reactor& control, ConnectionObserver& observer,
                   std::uint32_t path);
  ~ClientConnection() override;  // Requires: shut down, or never connected.

  [[nodiscard]] ClientLane& lane() { return lane_; }

  // --- Any thread. ---
  [[nodiscard]] std::uint64_t receive_count() const {
    return receive_count_.load(std::memory_order_relaxed);
  }
  struct Counters {  // Written by the lane's thread alone.
    std::atomic<std::uint64_t> reads{0}, writes{0}, bytes{0}, lost{0};
    std::atomic<std::uint32_t> inflight{0};
    std::atomic<std::int64_t> estimate_ns{0};
    std::atomic<bool> drained_by_policy{false};
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  // Turns of the lane's thread that followed SendHeartbeat() or Notice() and have seen what came.
  [[nodiscard]] std::uint32_t notices() const { return notices_.load(std::memory_order_acquire); }

  // --- For the path, on the lane's thread. ---
  void Connect(const LaneConnect& connect);
  void RequestInfo(std::uint32_t round, const proto::InfoReq& info, std::uint32_t queue_depth);
  void Activate(LaneActivation activation);
  // Requests may be posted from now on; what was in doubt of an earlier round is fenced.
  void Enable(std::uint32_t round);
  void SendHeartbeat(std::uint32_t round);
  void Notice();  // Counted in notices() at the end of the turn.
  // Ends the connection; OnConnectionDrained() follows once nothing uses our memory any more.
  void Break(std::uint32_t round);
  void ShutDown();

  // --- For the lane. ---
  [[nodiscard]] std::uint32_t path() const { return path_; }
  [[nodiscard]] bool enabled() const { return enabled_; }
  [[nodiscard]] bool ready() const { return state_ == State::kUp; }
  [[nodiscard]] bool HasCredit() const { return sends_posted_ - sends_retired_ < sends_max_; }
  // At the end of a turn: receives and service messages first, then what Add() put into the batch.
  void PostReceivesAndService();
  // Requires: ready(), HasCredit().  `local` is the index of the permit in the lane's range.
  void AddRequest(ClientRequest& request, std::uint32_t chunk, std::uint32_t local);
  void PostBatch();
  Counters& mutable_counters() { return counters_; }

 private:
  enum class State : std::uint8_t {
    kIdle,         // Waits for Connect().
    kConnecting,   // Waits for kEstablished.
    kEstablished,  // Waits for Activate(); connection 0: for INFO_RSP.
    kUp,           // Requests flow, once it is enabled.
    kBroken,       // Waits for kDisconnected, then until the connection is drained.
  };
  enum Kind : std::uint8_t { kReceiveKind, kInfoKind, kDataKind, kCreditKind, kPlainKind };
  static constexpr std::uint32_t kReceiveSize = sizeof(proto::RkeyRsp);
  static constexpr std::uint32_t kHeaderStride = 512;
  static constexpr std::uint32_t kBatchMax = 32;
  static_assert(kHeaderStride >= proto::kRequestTailMax && kHeaderStride >= sizeof(proto::InfoReq));

  // client_connection.cc
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
  void ReportDrained();
  void OnInfo(const fabric::Completion& completion);
  void RequestTurnEnd();
  [[nodiscard]] std::string Name() const;
  template <class F>
  void Report(F f) {
    control_.Post([observer = &observer_, cid = cid_, round = round_, f = std::move(f)]() mutable {
      f(*observer, cid, round);
    });
  }

  // client_connection_datapath.cc
  void OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) override;
  void OnReceive(std::uint32_t index, const fabric::Completion& completion);
  void OnImmediate(std::uint32_t index, const fabric::Completion& completion);
  const char* OnResponse(std::uint32_t index, const fabric::Completion& completion);
  const char* CheckResponse(std::uint32_t index, const fabric::Completion& completion,
                            std::uint32_t msg_id, const ClientRequest& request, int error);
  void OnSendDone();
  void PostReceives();
  void PostService();
  void AddRead(const ClientRequest& request, fabric::SendRequest& send,
               std::span<std::byte> header);
  void AddWrite(const ClientRequest& request, std::uint32_t local, fabric::SendRequest& send,
                std::span<std::byte> header);
  // A place in the batch, with its header area; Requires: a send credit.
  fabric::SendRequest& AddSend(std::span<std::byte>* header);
  void SetSignaled(fabric::SendRequest& send, Kind kind, std::uint32_t index);
  void SignalNowAndThen(fabric::SendRequest& send);

  ClientLane& lane_;
  Port& port_;
  Reactor& control_;
  ConnectionObserver& observer_;
  const std::uint32_t cid_;
  const std::uint32_t path_;
  State state_ = State::kIdle;
  bool attached_ = false;
  bool enabled_ = false;
  bool reported_broken_ = false;
  bool disconnected_ = false;  // The event was seen.
  bool violated_ = false;      // The peer broke the protocol: nothing it says counts any more.
  std::uint32_t round_ = 0;
  std::uint64_t context_ = 0;
  std::uint32_t device_ = 0;          // Of the connection.
  std::optional<Timer> drain_timer_;  // Until ShutDown(): a timer lives on the thread it runs on.

  Arena memory_;  // Header areas, then receives.
  std::unique_ptr<fabric::Region> memory_region_;
  std::uint32_t memory_lkey_ = 0;  // On our device.
  Arena info_memory_;
  std::unique_ptr<fabric::Region> info_region_;
  std::unique_ptr<fabric::Connection> connection_;  // Destroyed before what it uses.

  SessionLimits limits_;
  bool new_rkey_ = false;
  std::optional<proto::IoReqImmLayout> imm_layout_;
  PermitRange permits_;
  std::vector<proto::ChunkAddress> chunks_;

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
  bool notice_owed_ = false;
  proto::InfoReq info_;
  bool info_posted_ = false;  // Its receive is the first; only then others may follow.
  bool info_owed_ = false;

  std::array<fabric::SendRequest, kBatchMax> batch_;
  std::array<std::array<fabric::Sge, 2>, kBatchMax> batch_sges_;
  std::uint32_t batch_count_ = 0;
  std::atomic<std::uint64_t> receive_count_{0};
  std::atomic<std::uint32_t> notices_{0};
  Counters counters_;
};

}  // namespace ibnbd::rtrs
