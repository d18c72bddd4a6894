// SPDX-License-Identifier: Apache-2.0
// One NBD client, from the greeting to the last reply, on one loop.  The client may also be a
// kernel that was handed the other end of the socket: then there is no greeting.  It owns itself:
// it is destroyed at the end of a turn in which it is closed, its socket operations have ended, and
// every IO that it submitted has come back; until then its buffers stay, however long the server is
// gone.
//
// Bytes come in through a staging buffer, many small requests with one receive; a payload's rest is
// received straight into its registered block.  What of a payload was already staged is copied once
// (a few KiB: cheaper than a system call of its own).  Replies leave straight from the registered
// blocks, all of a turn in one sendmsg.  A connection stops reading when it has no slot or block
// left, so that its memory is bounded whatever the client does.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>

#include "base/handover.h"
#include "base/unique_fd.h"
#include "nbd-bridge/client_state.h"
#include "nbd-bridge/connection_memory.h"
#include "nbd-bridge/event_loop.h"
#include "nbd-bridge/nbd_handshake.h"
#include "nbd-bridge/volume_table.h"

namespace ibnbd::bridge {

// What the connections of one loop share.  Outlives them.
struct LoopContext {
  EventLoop& loop;
  const VolumeTable& volumes;
  ConnectionMemoryCache& memory;
  std::vector<ibnbd_queue*> queues;    // By session.
  std::atomic<int>& connection_count;  // Of all loops.
  std::int64_t handshake_ns_max = 30 * kNsPerSecond;
  bool hand_over = false;  // From the drain on: clients go here, between two requests.
  std::vector<HandedClient> handed_over{};
  std::multiset<std::string> served{};  // The states of those who are, without what they have sent.
};

// A volume for a client that needs no handshake.
struct NbdAttachment {
  ibnbd_device* device;  // Open until `on_end`.
  ibnbd_queue* queue;    // Of the loop.
  std::unique_ptr<ConnectionMemory> memory;
  proto::NbdExportLimits limits;
  absl::AnyInvocable<void()> on_end;  // On the loop's thread; the memory is freed.
};

class NbdConnection final : public LoopMember {
 public:
  // On the loop's thread.  `connection_count` was incremented for it already.
  static void Start(LoopContext& context, UniqueFd socket, std::string peer);
  // Likewise; goes on with what the process before us has handed over.
  static void Resume(LoopContext& context, UniqueFd socket, std::string peer,
                     const ClientState& state);
  // On the loop's thread.  Simple replies, whatever fails.
  static void Attach(EventLoop& loop, UniqueFd socket, NbdAttachment attachment);

  void OnTurnEnd() override;
  void OnTick() override;
  void OnDrain() override;

 private:
  enum class Phase {
    kHandshake,     // Waits for the client to choose an export.
    kTransmission,  // Serves requests.
    kDraining,      // Reads no more; waits for what executes, and for its replies to leave.
    kClosing,       // The socket is shut down; waits for operations and IOs to come back.
  };
  class ReceiveOp final : public RingOp {
   public:
    explicit ReceiveOp(NbdConnection& connection) : connection_(connection) {}
    void OnCqe(int result) override { connection_.OnReceived(result); }

   private:
    NbdConnection& connection_;
  };
  class SendOp final : public RingOp {
   public:
    explicit SendOp(NbdConnection& connection) : connection_(connection) {}
    void OnCqe(int result) override { connection_.OnSent(result); }

   private:
    NbdConnection& connection_;
  };

  static constexpr std::size_t kStagingSize = 64 * 1024;
  // What is received at once while payloads are large: the less is staged, the less is copied.
  static constexpr std::size_t kStagingSizeLarge = 4096;
  static constexpr std::uint32_t kLargePayload = 32 * 1024;
  static constexpr std::size_t kIovecs = 256;
  static constexpr std::size_t kIovecsPerReply = 1 + 64;  // A header, and 64 blocks of 1 MiB.

  NbdConnection(EventLoop& loop, UniqueFd socket, std::string peer);
  ~NbdConnection() override;

  // nbd_connection.cc: from the greeting to transmission, and the end.
  void PumpHandshake();
  void StartChosen();
  bool TakeExport(std::size_t index);
  void StartTransmission();
  void BeginDrain();
  void HandOverIfDone();
  [[nodiscard]] ClientState StateNow() const;  // Without what it has sent.
  void Unlist();
  void Close(const char* reason);  // Null: nothing worth a line.
  void AbandonIncoming();
  void DestroyIfIdle();

  // nbd_connection_datapath.cc.
  void OnReceived(int result);
  void ArmReceive();
  void Parse();
  bool StartRequest();
  bool ContinueCurrent();
  bool FillRead(Request* request);
  bool FillWrite(Request* request);
  bool SubmitWithoutData(Request* request);
  void SkipPayload();
  Part* TryAddPart(Request* request, std::uint32_t length);
  void Submit(Part* part);
  void RetryUnsubmitted();
  static void OnIoDone(ibnbd_io* io, int result);
  void OnPartDone(Part* part, int result);
  void FinishIfDone(Request* request);
  void Finish(Request* request);
  void ReleaseRequest(Request* request);
  void BuildHeader(Request* request) const;
  void FlushReplies();
  void ArmSend();
  void OnSent(int result);
  [[nodiscard]] bool leaving() const { return leaving_ns_ >= 0; }
  [[nodiscard]] bool between_requests() const {
    return current_ == nullptr && skipping_ == nullptr;
  }
  [[nodiscard]] std::span<const std::byte> staged() const {
    return {staging_.get() + stage_begin_, stage_end_ - stage_begin_};
  }

  EventLoop& loop_;
  LoopContext* context_ = nullptr;  // Null for those that were attached.
  UniqueFd socket_;
  const std::string peer_;
  const std::int64_t started_ns_;
  Phase phase_ = Phase::kHandshake;
  std::unique_ptr<NbdHandshake> handshake_;  // Null once the export is chosen.
  std::string handshake_out_;

  // Since transmission began.
  ibnbd_device* device_ = nullptr;
  ibnbd_queue* queue_ = nullptr;
  std::unique_ptr<ConnectionMemory> memory_;
  std::size_t session_index_ = 0;        // Whose cache the memory goes back to.
  absl::AnyInvocable<void()> on_end_{};  // Of those that were attached.
  proto::NbdExportLimits limits_;
  bool structured_ = false;
  bool fast_zero_ = false;
  std::size_t export_index_ = 0;  // Not of those that were attached.
  std::optional<std::multiset<std::string>::iterator> listed_{};  // Likewise.

  // For another process: no further request is looked at.
  std::int64_t leaving_ns_ = -1;  // Since when; -1: it stays.
  bool receive_cancelled_ = false;

  // Receiving.
  ReceiveOp receive_op_{*this};
  bool receive_busy_ = false;
  bool stalled_ = false;  // Something was missing; OnTurnEnd() tries again.
  bool large_payloads_ = false;
  std::unique_ptr<std::byte[]> staging_;
  std::size_t stage_begin_ = 0;
  std::size_t stage_end_ = 0;
  Request* current_ = nullptr;  // Being filled: its payload arrives, or it waits for blocks.
  Part* filling_ = nullptr;     // The block of current_ that the payload goes to.
  std::uint32_t filling_have_ = 0;
  std::uint32_t skip_left_ = 0;  // Of the payload of a refused write...
  Request* skipping_ = nullptr;  // ...which is answered when the payload is gone.
  Part* first_unsubmitted_ = nullptr;
  Part* last_unsubmitted_ = nullptr;
  std::array<iovec, 2> receive_iov_{};
  msghdr receive_message_{};

  // Sending.
  SendOp send_op_{*this};
  bool send_busy_ = false;
  IntrusiveList<Request> ready_;    // Answered by the server; not yet given to the socket.
  IntrusiveList<Request> sending_;  // In send_iov_.
  std::array<iovec, kIovecs> send_iov_{};
  msghdr send_message_{};
};

}  // namespace ibnbd::bridge
