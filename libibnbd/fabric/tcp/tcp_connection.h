// SPDX-License-Identifier: Apache-2.0
// A queue pair played over one socket.  Sends wait in a ring of slots until the peer says that they
// are placed; receives wait in another.  At most one sendmsg, of as many frames as fit, and one
// recvmsg are with the kernel at any time.  tcp_connection.cc has setting up and breaking, and
// tcp_connection_datapath.cc the rest.  On the poller's thread.
//
// Always holds: acked_ <= sent_ <= batched_ <= posted_ (modulo 2^32), posted_ - acked_ <=
// sends_max; a slot's memory is not given back before its bytes have left *and* the peer has it.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/intrusive_list.h"
#include "fabric/fabric.h"
#include "fabric/tcp/tcp_codec.h"
#include "fabric/tcp/tcp_poller.h"
#include "fabric/tcp/tcp_socket.h"
#include "proto/tcp_frame.h"
#include "reactor/timers.h"

namespace ibnbd::tcp {

class TcpConnection;

struct DirtyHook : ListHook {
  explicit DirtyHook(TcpConnection& owner) : connection(owner) {}
  TcpConnection& connection;
};

class TcpConnection final : public fabric::Connection {
 public:
  enum class State : std::uint8_t {
    kConnecting,  // Awaits connect(2).
    kGreeting,    // Awaits the peer's answer to our greeting.
    kUp,
    kRefusing,  // We refused a frame; awaits that the last word is out.
    kBreaking,  // The socket is shut; awaits the kernel's last completions.
    kDown,      // Everything is reported, or in the poller's queues.
  };
  static absl::StatusOr<fabric::Limits> Grant(const fabric::Limits& asked);

  TcpConnection(TcpPoller& poller, UniqueFd fd, const fabric::Limits& granted,
                std::uint64_t context);
  ~TcpConnection() override;

  // Either of them, once, after the constructor.
  void StartActive(const SocketAddress& peer, const fabric::ConnectionOptions& options,
                   std::span<const std::byte> private_data);
  void StartPassive(const fabric::ConnectionOptions& options,
                    std::span<const std::byte> private_data);

  void PostSend(std::span<const fabric::SendRequest> requests) override;
  void PostReceive(std::span<const fabric::ReceiveRequest> requests) override;
  void Disconnect() override;
  bool drained() const override {
    return state_ == State::kDown && unpolled_completions_ == 0 && unpolled_events_ == 0;
  }
  const fabric::Limits& limits() const override { return limits_; }
  SocketAddress local_address() const override { return local_address_; }
  SocketAddress peer_address() const override { return peer_address_; }

  // --- For the poller. ---
  void StartSend();  // At Flush().
  void OnCompletionPolled() { --unpolled_completions_; }
  void OnEventPolled(fabric::CmEvent::Kind kind);
  // The acknowledgement has waited since before `before_ns`: it goes alone.  True if one still
  // waits.
  bool SendOverdueAck(std::int64_t before_ns);

 private:
  struct SendSlot {
    fabric::Cookie cookie = 0;
    std::uint32_t length = 0;
    fabric::Opcode opcode{};
    bool signaled = false;
    std::uint8_t sge_count = 0;
    proto::tcp::FrameHeader header;
  };
  struct ReceiveSlot {
    fabric::Cookie cookie = 0;
    std::uint64_t capacity = 0;
    std::uint8_t sge_count = 0;
  };
  static constexpr std::size_t kBatchPiecesMax = 256;
  static constexpr std::size_t kBatchBytesMax = 1 << 20;  // So that sources are given back in time.

  // Setting up (tcp_connection.cc).
  void OnRecvCqe(int result, std::uint32_t flags);
  void OnSendCqe(int result, std::uint32_t flags);
  void OnConnected(int result);
  void OnGreetingBytes(int result);
  void ArmGreetingRecv();
  void SendGreeting(proto::tcp::GreetingKind kind, std::span<const std::byte> private_data);
  void OnTimer();
  void ReportEvent(fabric::CmEvent::Kind kind, int error);

  // Breaking (tcp_connection.cc).
  void Break(fabric::WcStatus status, std::uint32_t failed_send, int error);
  void EndAttempt(fabric::CmEvent::Kind kind, int error);
  void Shut();
  void Refuse(proto::tcp::RefuseReason reason, const char* text);
  void FinishIfIdle();
  void FlushSlots();
  void Complete(const fabric::Completion& completion);

  // The data path (tcp_connection_datapath.cc).
  void FillSlot(const fabric::SendRequest& request);
  bool SourcesAreOurs(std::span<const fabric::Sge> sges) const;
  void FillBatch();
  void AppendFrame(std::uint32_t index);
  void AppendControlFrame(proto::tcp::FrameOpcode opcode);
  void SubmitBatch();
  void OnBatchBytes(int result);
  [[nodiscard]] bool HasSomethingToSend() const;
  void ArmRecv(bool more_is_there);
  void OnRecvBytes(int result, std::uint32_t flags);
  void Stall();
  void OnHangupPoll(int result);
  void Parse(bool more_is_there);
  bool PlaceFrame();
  std::byte* FindTarget(const proto::tcp::FrameHeader& header);
  bool PlaceMessage(const proto::tcp::FrameHeader& header);
  void OnFramePlaced();
  void CompleteReceive(const proto::tcp::FrameHeader& header);
  bool TakeAck(std::uint32_t ack_count);
  void RetireAcked();
  void OnRefused(const proto::tcp::FrameHeader& header);
  void OweAck(std::uint8_t flags);
  std::span<fabric::Sge> SendSges(std::uint32_t index);
  std::span<fabric::Sge> ReceiveSges(std::uint32_t index);

  TcpPoller& poller_;
  UniqueFd fd_;
  const fabric::Limits limits_;
  const std::uint64_t context_;
  const std::size_t completions_max_;
  RegionTable::DomainId domain_ = RegionTable::kCommonDomain;  // F13.
  State state_ = State::kConnecting;
  bool was_up_ = false;
  bool recv_waits_for_hangup_ = false;  // recv_op_ polls for the peer's end; there is no receive.
  DirtyHook dirty_hook_;
  MemberOp<TcpConnection> recv_op_;
  MemberOp<TcpConnection> send_op_;
  Timer timer_;  // Of the greeting, then of the last word.
  SocketAddress local_address_;
  SocketAddress peer_address_;
  GreetingReader greeting_in_;
  OutgoingGreeting greeting_out_;
  std::size_t greeting_left_ = 0;  // Bytes at the end of greeting_out_ that are not in a batch.

  // Sends: positions count for ever; the slot is the position masked.
  std::uint32_t send_mask_ = 0;
  std::unique_ptr<SendSlot[]> send_slots_;
  std::unique_ptr<fabric::Sge[]> send_sges_;
  std::unique_ptr<std::byte[]> inline_bytes_;
  std::uint32_t posted_ = 0;
  std::uint32_t batched_ = 0;   // Given to the kernel.
  std::uint32_t sent_ = 0;      // Their batch is wholly out.
  std::uint32_t ack_seen_ = 0;  // What the peer says it has.
  std::uint32_t acked_ = 0;     // Retired: min(sent_, ack_seen_).
  std::array<iovec, kBatchPiecesMax> batch_{};
  std::size_t batch_begin_ = 0, batch_end_ = 0, batch_bytes_ = 0;
  msghdr send_message_{};
  proto::tcp::FrameHeader control_frame_;  // An acknowledgement alone, or the last word.

  // Receives.
  std::unique_ptr<ReceiveSlot[]> receive_slots_;
  std::unique_ptr<fabric::Sge[]> receive_sges_;
  std::uint32_t receive_mask_ = 0;
  std::uint32_t receives_posted_ = 0, receives_used_ = 0;
  FrameDecoder decoder_;
  RegionTable::Landing landing_{0};
  std::array<iovec, FrameDecoder::kWindowPiecesMax> window_{};
  msghdr recv_message_{};

  // Acknowledgements that we owe.
  bool ack_owed_ = false;
  bool ack_now_ = false;
  std::uint32_t owed_frames_ = 0;
  std::int64_t ack_owed_since_ns_ = 0;

  // Breaking.
  bool send_failed_ = false;     // Nothing goes out any more; what has come in is still read.
  bool refuse_pending_ = false;  // The last word is not in a batch yet.
  bool refuse_batched_ = false;
  proto::tcp::RefuseReason refuse_reason_{};
  fabric::WcStatus first_send_status_ = fabric::WcStatus::kFlushed;
  fabric::WcStatus first_receive_status_ = fabric::WcStatus::kFlushed;
  std::uint32_t failed_send_ = 0;  // Position that gets first_send_status_.
  fabric::CmEvent::Kind end_kind_ = fabric::CmEvent::Kind::kDisconnected;
  int end_error_ = 0;
  std::size_t unpolled_completions_ = 0;
  std::size_t unpolled_events_ = 0;
};

}  // namespace ibnbd::tcp
