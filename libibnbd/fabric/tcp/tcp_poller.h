// SPDX-License-Identifier: Apache-2.0
// One reactor's end of the tcp fabric: the completion queue, the queue of connection events, and
// the list of connections that have something to send.  On the reactor's thread.  The work itself
// happens when the reactor's ring dispatches completions, before the engine polls in the same turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "base/intrusive_list.h"
#include "fabric/fabric.h"
#include "fabric/listening_sockets.h"
#include "fabric/tcp/region_table.h"
#include "fabric/tcp/tcp_socket.h"
#include "reactor/reactor.h"

namespace ibnbd::tcp {

class TcpAcceptor;
class TcpConnection;
struct DirtyHook;

class TcpPoller final : public fabric::Poller {
 public:
  // `listening` may be null.
  TcpPoller(RegionTable& regions, Reactor& reactor, fabric::ListeningSockets* listening);
  ~TcpPoller() override;

  std::size_t PollCompletions(std::span<fabric::Completion> out) override;
  std::size_t PollEvents(std::span<fabric::CmEvent> out) override;
  void Flush() override;
  absl::StatusOr<std::unique_ptr<fabric::Connection>> StartConnect(
      const SocketAddress& peer, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  absl::StatusOr<std::unique_ptr<fabric::Listener>> Listen(const SocketAddress& local,
                                                           std::uint64_t context) override;

  // --- For connections and acceptors. ---
  [[nodiscard]] RegionTable& regions() { return regions_; }
  [[nodiscard]] Reactor& reactor() { return reactor_; }
  [[nodiscard]] IoRing& ring() { return *reactor_.ring(); }
  // Grows the completion queue so that everything the connection may ever have open fits.
  void AddConnection(TcpConnection& connection, std::size_t completions_max);
  void RemoveConnection(TcpConnection& connection, std::size_t completions_max);
  void PushCompletion(TcpConnection& connection, const fabric::Completion& completion);
  void PushEvent(fabric::CmEvent event);
  void MarkDirty(DirtyHook& hook);  // To be visited by the next Flush().
  // A connection owes an acknowledgement that may wait a little for a frame to ride on.
  void ArmAckTimer();
  // Makes sure that another turn follows: what was just queued would otherwise lie there unseen.
  void Kick();
  // Ends `acceptor` and destroys it once the kernel is through with it.
  void Bury(std::unique_ptr<TcpAcceptor> acceptor);
  void OnBuriedIdle();
  // True at most once a second: for log lines that a peer can cause.
  bool MayLog();

 private:
  struct QueuedCompletion {
    fabric::Completion completion;
    TcpConnection* connection = nullptr;
  };
  void OnKick(int, std::uint32_t) {}
  void OnAckTimer();
  void CleanGraves();

  RegionTable& regions_;
  fabric::ListeningSockets* const listening_;  // May be null.
  Reactor& reactor_;
  // A ring buffer of a power of two of entries.
  std::vector<QueuedCompletion> completions_;
  std::size_t completions_head_ = 0;
  std::size_t completions_tail_ = 0;
  std::size_t completions_max_ = 0;
  std::deque<fabric::CmEvent> events_;
  IntrusiveList<DirtyHook> dirty_;
  std::vector<TcpConnection*> connections_;
  Timer ack_timer_;
  MemberOp<TcpPoller> kick_op_;
  std::vector<std::unique_ptr<TcpAcceptor>> graves_;
  bool grave_idle_ = false;
  std::size_t listener_count_ = 0;
  std::int64_t last_log_ns_ = 0;
  friend class TcpListener;
};

}  // namespace ibnbd::tcp
