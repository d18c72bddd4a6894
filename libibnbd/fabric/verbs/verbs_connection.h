// SPDX-License-Identifier: Apache-2.0
// One RC queue pair and its CM id.  On the thread of its poller.
//
// What was posted and not yet completed is kept in two rings of cookies, in posting order, because
// a device reports fewer things than fabric.h promises: an unsignaled request that succeeded is
// silent, and of a queue pair that breaks some requests are never heard of again (rxe flushes
// receives only when it is asked to run).  So a connection that breaks is taken down at once: error
// state, then the queue pair is destroyed - from then on the device touches nothing of it - and
// what is left in the rings completes as kFlushed.
//
// kRetryCount is not the 7 of the kernel's RTRS: rxe takes 7 for "for ever", and a peer that is
// gone would be noticed by heartbeats alone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/verbs/verbs_handles.h"
#include "fabric/verbs/verbs_poller.h"
#include "fabric/verbs/verbs_translate.h"
#include "reactor/timers.h"

namespace ibnbd::verbs {

class VerbsDomain;

class VerbsConnection final : public fabric::Connection, public CmTarget {
 public:
  static absl::StatusOr<std::unique_ptr<fabric::Connection>> StartActive(
      VerbsPoller& poller, const SocketAddress& peer, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data);
  // `id` is that of a connection request, and has been moved to the poller's channel.
  static absl::StatusOr<std::unique_ptr<fabric::Connection>> StartPassive(
      VerbsPoller& poller, CmIdHandle id, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data);
  ~VerbsConnection() override;

  void PostSend(std::span<const fabric::SendRequest> requests) override;
  void PostReceive(std::span<const fabric::ReceiveRequest> requests) override;
  void Disconnect() override;
  [[nodiscard]] bool drained() const override;
  [[nodiscard]] const fabric::Limits& limits() const override { return limits_; }
  [[nodiscard]] std::uint32_t device() const override;
  [[nodiscard]] SocketAddress local_address() const override;
  [[nodiscard]] SocketAddress peer_address() const override;

  // --- For the poller. ---
  void OnCmEvent(const rdma_cm_event& event, std::span<const std::byte> private_data) override;
  // False: there is nothing to report.
  bool OnWc(const WrName& name, const ibv_wc& wc, fabric::Completion* out);
  void OnReported(fabric::CmEvent::Kind kind);  // The event goes to the engine now.
  void NoteStashed(int count) { stashed_count_ += count; }
  void DestroyQueuePair();
  void FlushAll();  // Requires: no queue pair.

 private:
  enum class State : std::uint8_t {
    kResolving,   // Active: waits for the CM to find a device and a route.
    kConnecting,  // Active: waits for the peer's answer.
    kUp,          // Sends may be posted.
    kBroken,      // Something failed or somebody disconnected; kDisconnected is on its way.
    kEnded        // An attempt that failed: dead and drained.
  };
  // A queue's requests that have not completed, in posting order.
  class CookieRing {
   public:
    void Reset(std::uint32_t size_max);
    [[nodiscard]] bool empty() const { return head_ == tail_; }
    [[nodiscard]] std::uint32_t count() const { return tail_ - head_; }
    [[nodiscard]] std::uint32_t next_sequence() const { return tail_ & kSequenceMask; }
    void Push(fabric::Cookie cookie) { cookies_[tail_++ & mask_] = cookie; }
    fabric::Cookie Pop() { return cookies_[head_++ & mask_]; }
    // Drops what is older than `sequence` and takes it.  False: it is not there.
    bool TakeUpTo(std::uint32_t sequence, fabric::Cookie* cookie);

   private:
    std::vector<fabric::Cookie> cookies_;
    std::uint32_t mask_ = 0, head_ = 0, tail_ = 0;
  };
  struct PendingReceive {  // Posted before there was a queue pair.
    fabric::Cookie cookie = 0;
    std::vector<fabric::Sge> sges;
  };

  VerbsConnection(VerbsPoller& poller, CmIdHandle id, const fabric::ConnectionOptions& options);
  absl::Status Enter();  // The poller's table.
  absl::Status Accept(std::span<const fabric::ReceiveRequest> receives,
                      std::span<const std::byte> private_data);
  absl::Status CheckLimits(ibv_context* context) const;
  absl::Status CreateQueuePair();
  absl::Status OnResolved(rdma_cm_event_type type);
  absl::Status ChangeDevice();
  int PostPendingReceives();
  // 0 or an errno; what was refused is in the ring all the same.
  int PostReceiveNow(std::span<const fabric::ReceiveRequest> requests);
  void PostSendBatch(std::span<const fabric::SendRequest> requests);
  [[nodiscard]] rdma_conn_param Parameters(std::span<const std::byte> private_data) const;
  void FlushOne(fabric::Cookie cookie);
  void Break(int error);
  void EndAttempt(fabric::CmEvent::Kind kind, int error, std::span<const std::byte> data = {});
  void PushEvent(fabric::CmEvent::Kind kind, int error, std::span<const std::byte> data = {});

  VerbsPoller& poller_;
  CmIdHandle id_;
  VerbsDomain* domain_;
  const bool domain_is_common_;
  const std::uint64_t context_;
  fabric::Limits limits_;
  SocketAddress peer_address_;  // Active: known before the CM knows.
  State state_ = State::kResolving;
  bool entered_ = false;
  VerbsPoller::Place place_;
  ibv_qp* qp_ = nullptr;
  ibv_cq* cq_ = nullptr;
  CookieRing sends_, receives_;
  std::vector<PendingReceive> pending_receives_;
  std::vector<std::byte> private_data_;  // Active: until rdma_connect().
  int stashed_count_ = 0;                // Completions that the poller still holds.
  bool flushed_ = false;
  bool end_reported_ = false;
  Timer timer_;  // Active: the bound of the attempt.
};

}  // namespace ibnbd::verbs
