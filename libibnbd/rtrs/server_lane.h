// SPDX-License-Identifier: Apache-2.0
// The server's end of one connection of a path, on one reactor: takes requests in, answers them.
// Connection 0 lives on the control reactor and also carries INFO and heartbeats.  Made and
// destroyed by its ServerPath on the control thread; everything else happens on the lane's thread,
// and control and lane talk by Reactor::Post() alone.
//
// Whatever the peer sends that it must not send breaks the connection, and the path with it:
// nothing is repaired, nothing is guessed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/arena.h"
#include "base/intrusive_list.h"
#include "proto/rtrs.h"
#include "reactor/timers.h"
#include "rtrs/chunk_pool.h"
#include "rtrs/port.h"
#include "rtrs/server_service.h"

namespace ibnbd::rtrs {

// Why a lane ends: what is worth a warning, and what happens every day (there is no goodbye
// message).
enum class Blame : std::uint8_t { kNetwork, kPeer };

// The control side of a lane; called on the control thread.
class ServerLaneOwner {
 public:
  // INFO_REQ has arrived on connection 0; called from its completion.
  virtual void OnLaneInfo(std::span<const std::byte> message) = 0;
  virtual void OnLaneGranted() = 0;  // Grant() has been done (or the lane was broken before).
  virtual void OnLaneDrained() = 0;  // Drain() has been done (or the lane was broken before).
  virtual void OnLaneBroken(const std::string& why,
                            Blame blame) = 0;  // At most once; OnLaneClosed() follows.
  virtual void OnLaneClosed() = 0;  // Exactly once, the last thing a lane does by itself.

 protected:
  ~ServerLaneOwner() = default;
};

struct ServerLaneOptions {
  std::uint32_t cid = 0;
  std::uint32_t reactor_index = 0;
  ChunkGeometry geometry;
  KeyPolicy keys = KeyPolicy::kPerPath;
  fabric::Domain* domain = nullptr;  // The path's.
};

class ServerLane final : public PortClient {
 public:
  // `info_memory` (connection 0 only): registered room for INFO_REQ and INFO_RSP.
  ServerLane(const ServerLaneOptions& options, Port& port, Reactor& control, ServerLaneOwner& owner,
             fabric::Region* info_region);
  ~ServerLane();  // Requires: closed.

  [[nodiscard]] Reactor& reactor() const { return port_.reactor(); }
  [[nodiscard]] std::uint32_t cid() const { return options_.cid; }
  // Messages received; any thread.  The path's heartbeat watches it.
  [[nodiscard]] std::uint64_t receive_count() const {
    return receive_count_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint32_t executing_count() const {  // Any thread; may lag.
    return executing_seen_.load(std::memory_order_relaxed);
  }

  // --- On the lane's thread. ---
  void Accept(std::unique_ptr<fabric::Incoming> incoming);
  // From now on requests are allowed.
  void Grant(ChunkPool& pool, ServerLaneService& service);
  // Takes no more requests; reports when all answers have reached the peer.
  void Drain();
  // Ends the connection; `why` is for the log.  Idempotent.
  void Break(const char* why, int error = 0, Blame blame = Blame::kPeer);
  // Between OnLaneClosed() and destruction: frees what must be freed on this thread.
  void Reap();
  // Connection 0.
  void OpenWindows(ChunkPool& pool);  // Before Grant().
  void SendInfoRsp(std::uint32_t byte_count);
  void SendHeartbeat();

  // PortClient
  void OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) override;
  void OnCmEvent(fabric::CmEvent& event) override;
  void OnTurnEnd() override;

  static constexpr std::uint32_t kInfoReqOffset = 0;
  static constexpr std::uint32_t kInfoRspOffset = 1024;

 private:
  friend class ServerRequest;
  enum class State : std::uint8_t {
    kNew,       // Waits for Accept().
    kOpen,      // Messages flow.
    kDraining,  // Waits until what executes is answered and every answer has landed.
    kBroken,    // Waits for kDisconnected, drained(), and the end of what executes.
    kClosed     // Has told the owner, or is about to.
  };
  enum Kind : std::uint8_t {
    kReceiveKind = 1,
    kInfoReceiveKind = 2,
    kSendKind = 3,  // This and those behind it: of sends.
    kCloseKind = 4,
    kAnswerKind = 5
  };
  using Turn = ServerRequest::Turn;
  static constexpr std::size_t kPostBatch = 32;  // Per call; a turn may need several.

  [[nodiscard]] bool open() const { return state_ == State::kOpen || state_ == State::kDraining; }
  // server_lane_datapath.cc
  void OnReceive(const CookieParts& cookie, const fabric::Completion& completion);
  void OnIoRequest(std::uint32_t imm);
  void OnRequestComplete(ServerRequest& request, int error);
  void PostReceives();
  void PostSends();
  bool TakeCredit(fabric::SendRequest& send, bool force_signal, Kind kind = kSendKind,
                  std::uint32_t chunk_id = 0);
  bool NextSend(fabric::SendRequest& send, fabric::Sge& sge);
  void FillResponse(fabric::SendRequest& send, fabric::Sge& sge, ServerRequest& request);
  void Begin(ServerRequest& request, std::uint32_t off);
  void Execute(ServerRequest& request);
  void ReleaseRequest(ServerRequest& request);
  [[nodiscard]] bool LeaveFence(ServerRequest& request);
  void RequestTurnEnd() { port_.RequestTurnEnd(context_); }
  // server_lane_keys_datapath.cc
  bool NextClose(fabric::SendRequest& send);
  bool NextKeyedResponse(fabric::SendRequest& send, fabric::Sge& sge);
  void OnWindowClosed();
  void OnAnswerLanded(ServerRequest& request);
  // server_lane_keys.cc
  void Want(ServerRequest& request, std::uint32_t off);
  void OnWanted(ServerRequest& request, ServerLane& lane, std::uint32_t off);
  void HandOver(ServerRequest& request);
  void OnHandedOver(ServerRequest& request, std::uint32_t off);
  void AbandonKeys();
  // server_lane.cc
  void Resume(ServerRequest& request);
  static void ResumeOnItsLane(ServerRequest& request);
  void OnInfoReceive(const fabric::Completion& completion);
  absl::Status AcceptNow(fabric::Incoming& incoming);
  void TryFinishDrain();
  void TryFinish();

  const ServerLaneOptions options_;
  Port& port_;
  Reactor& control_;
  ServerLaneOwner& owner_;
  fabric::Region* const info_region_;
  const proto::IoReqImmLayout imm_layout_;

  State state_ = State::kNew;
  bool disconnected_ = false;  // kDisconnected was reported.
  bool drain_reported_ = false;
  std::uint64_t context_ = 0;
  std::unique_ptr<fabric::Connection> connection_;
  ChunkPool* pool_ = nullptr;  // Null until granted.
  ServerLaneService* service_ = nullptr;
  int registered_buffer_ = -1;

  std::uint32_t executing_count_ = 0;       // Requests with the service.
  IntrusiveList<ServerRequest> responses_;  // Completed, to be posted.
  // Keys per IO.
  enum class Step : std::uint8_t { kData, kWindow, kMessage };
  IntrusiveList<ServerRequest> to_close_;  // Writes whose window is to be closed first.
  IntrusiveList<ServerRequest> closing_;   // Its request is posted; in that order.
  // Whose answers have not landed: kAnswered, kWanted.
  IntrusiveList<ServerRequest> answered_;
  Step step_ = Step::kData;          // Of the answer to responses_.front().
  std::uint32_t next_rkey_ = 0;      // Of its chunk.
  std::uint32_t receives_owed_ = 0;  // Consumed, to be posted again.
  std::uint32_t acks_owed_ = 0;
  bool heartbeat_owed_ = false;
  std::uint32_t info_rsp_size_ = 0;  // To be sent; 0: none.
  bool drain_probe_owed_ = false;

  // Send credits: one send in `signal_interval_` is signaled and its completion retires as many.
  std::uint32_t sends_max_ = 0;
  std::uint32_t signal_interval_ = 1;
  std::uint32_t sends_outstanding_ = 0;
  std::uint32_t sends_since_signal_ = 0;
  std::uint64_t credit_waits_ = 0;

  // Kept, so that a turn need not build them anew.
  std::array<fabric::SendRequest, kPostBatch> send_batch_;
  std::array<fabric::Sge, kPostBatch> sge_batch_;
  std::array<fabric::ReceiveRequest, kPostBatch> receive_batch_;
  std::array<proto::RkeyRsp, kPostBatch> rkey_batch_;

  std::atomic<std::uint64_t> receive_count_{0};  // Written by the lane's thread alone.
  std::atomic<std::uint32_t> executing_seen_{0};
  std::optional<Timer> drain_timer_;  // Looks at drained() again.
};

}  // namespace ibnbd::rtrs
