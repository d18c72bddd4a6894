// SPDX-License-Identifier: Apache-2.0
// The narrow waist: all that RTRS asks of a network, and no more.  Every fabric (verbs/, tcp/,
// sim/) and every decorator keeps these promises; fabric_conformance_test.cc holds tests of the
// same numbers and runs them against each of them.
//
//  F1  A signaled request yields exactly one Completion; an unsignaled one only if it fails.  kOk
//      for a send or write means that it has taken effect at the peer, not that it left the host.
//  F2  On one connection requests take effect at the peer in posting order.  Nothing orders two
//      connections, nor a send completion and the arrival of the peer's answer.
//  F3  The first failure breaks the connection: everything else still posted on it, before or
//      after, completes as kFlushed, signaled or not.  Posting itself cannot fail.  A broken
//      connection reports kDisconnected exactly once, on each side.
//  F4  A failed or flushed write reached the peer wholly, in part or not at all, and may still
//      land until the peer too has seen kDisconnected.
//  F5  kSend, kSendImm, kSendInvalidate and kWriteImm consume one posted receive at the peer;
//      kWrite none.  Keeping receives posted is the caller's duty: without one the sender may be
//      kept waiting or broken with kNoReceive.
//  F6  A write outside a region registered for remote writing, across its end, or with a stale or
//      foreign rkey touches no byte and breaks the connection (kRemoteAccess).  A message longer
//      than the posted receive touches no byte beyond it and breaks the connection.
//  F7  Nothing blocks and nothing calls back: progress is made, and seen, in Poll*() alone.  Posts
//      may be held until the next Flush().
//  F8  A Poller and its connections belong to one thread.  A Fabric may be used from any.  An
//      Incoming may be handed from the thread that got it to the thread that accepts it.
//  F9  The source of a send or write is in use until a completion that covers it: its own, or one
//      of a later signaled request of the same connection.  A receive's buffers are in use until
//      its completion.
//  F10 After kDisconnected has been reported, once drained() is true nothing of this connection
//      touches the caller's memory any more, neither sources, nor receives, nor regions that the
//      peer wrote to through it.  Only then may it be destroyed.  Completions stop coming before
//      that.
//  F11 kSendInvalidate kills the rkey it names before the peer's receive completes; later writes
//      with that rkey fail as in F6.  Only regions registered as kRemoteInvalidate can be named:
//      naming another breaks the connection and kills nothing.
//  F12 Receives posted before the connection is established count, and are there before the first
//      message of the peer.  Sends may be posted once kEstablished was reported (active side) or
//      from Accept() on (passive side); a message may arrive before the passive side's
//      kEstablished.
//  F13 Keys and connections belong to a domain: one that was created, or else the fabric's common
//      one.  To a connection of another domain a key is foreign, however somebody came by it: as
//      the peer's rkey (F6), and as an lkey of our own (kLocalFault).
//  F14 A region registered as kWindows has no rkey; the window on it has, and reaches all of it,
//      never a part: rxe checks the bounds of the region alone.  kOpenWindow kills the rkey that
//      its window has and gives it the next, which Window::next_rkey() told before the post;
//      kCloseWindow kills it only.  Both are requests like any other that send nothing: they take
//      effect before what is posted behind them on the same connection, and a write with a killed
//      rkey that begins later fails as in F6 on every connection of the domain.  Fabrics without
//      windows refuse kWindows (kUnimplemented).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "fabric/request.h"

namespace ibnbd {
class Reactor;
}

namespace ibnbd::fabric {

class Connection {  // A connected RC queue pair, or what behaves like one.
 public:
  virtual ~Connection() = default;  // Requires: drained().
  // Exceeding limits() is a bug in the caller (CHECK), not a condition to handle.
  virtual void PostSend(std::span<const SendRequest> requests) = 0;
  virtual void PostReceive(std::span<const ReceiveRequest> requests) = 0;
  virtual void Disconnect() = 0;                   // Idempotent.  kDisconnected follows.
  [[nodiscard]] virtual bool drained() const = 0;  // F10.
  [[nodiscard]] virtual const Limits& limits() const = 0;
  [[nodiscard]] virtual std::uint32_t device() const { return 0; }  // Once it is established.
  // For people: "10.0.0.1:4711" and "10.0.0.2:1234".
  [[nodiscard]] virtual SocketAddress local_address() const = 0;
  [[nodiscard]] virtual SocketAddress peer_address() const = 0;
};

class Domain {  // A protection domain: what peers must not reach that were lent something else
                // (F13).
 public:
  virtual ~Domain() = default;  // Requires: no region and no connection of it left.
  // Any thread.
  virtual absl::StatusOr<std::unique_ptr<Region>> Register(std::span<std::byte> memory,
                                                           Access access) = 0;
};

// What the caller asks of a new connection.
struct ConnectionOptions {
  // Asked for; Connection::limits() says what was granted (never less, or the call fails).
  Limits limits;
  std::uint64_t context = 0;                 // Comes back in every CmEvent of this connection.
  std::span<const ReceiveRequest> receives;  // Posted before the peer can send anything (F12).
  // To connect from; the port is ignored.  None: as the routes say.
  std::optional<SocketAddress> source = std::nullopt;
  Domain* domain = nullptr;  // F13.  Null: the fabric's common one.  Outlives the connection.
};

class Poller;

class Incoming {  // A connection request.  Destroyed unanswered, it is rejected without data.
 public:
  virtual ~Incoming() = default;
  // These three: also after it was answered.
  [[nodiscard]] virtual std::span<const std::byte> private_data() const = 0;
  [[nodiscard]] virtual SocketAddress local_address() const = 0;
  [[nodiscard]] virtual SocketAddress peer_address() const = 0;
  // A domain for this connection and for others that come in on the same device.  On the thread of
  // the poller that reported it.
  virtual absl::StatusOr<std::unique_ptr<Domain>> CreateDomain() = 0;
  // Both: once, on the thread of `owner` (Accept) or of the poller that reported it (Reject).
  virtual absl::StatusOr<std::unique_ptr<Connection>> Accept(
      Poller& owner, const ConnectionOptions& options, std::span<const std::byte> private_data) = 0;
  virtual void Reject(std::span<const std::byte> private_data) = 0;
};

struct CmEvent {
  enum class Kind : std::uint8_t {
    kIncoming,
    kEstablished,
    kRejected,  // private_data says why, if the peer sent any.  The connection is dead and drained.
    kUnreachable,   // No route, nobody listens, no answer.  The connection is dead and drained.
    kDisconnected,  // After kEstablished (or Accept).  Wait for drained(), then destroy.
  };
  Kind kind = Kind::kDisconnected;
  std::uint64_t context = 0;           // ConnectionOptions::context; the listener's for kIncoming.
  Connection* connection = nullptr;    // All but kIncoming.
  std::unique_ptr<Incoming> incoming;  // kIncoming.
  // kEstablished, kRejected; valid until the next PollEvents().  May be longer than what was sent,
  // padded with zeros.
  std::span<const std::byte> private_data;
  int error = 0;  // kUnreachable, kDisconnected: a negative errno for people, 0 if none is known.
};

class Listener {
 public:
  virtual ~Listener() = default;                                  // Stops listening.
  [[nodiscard]] virtual SocketAddress local_address() const = 0;  // With the port that was bound.
};

class Poller {  // One per reactor: a completion queue and a CM event channel.  Lives on its thread.
 public:
  virtual ~Poller() = default;  // Requires: no connection and no listener left.
  virtual std::size_t PollCompletions(std::span<Completion> out) = 0;
  virtual std::size_t PollEvents(std::span<CmEvent> out) = 0;
  // Hands all posts since the last call to the network (F7).  The reactor calls it once per turn.
  virtual void Flush() = 0;
  // As ReactorSource's: for fabrics whose completions do not come through the reactor's ring.
  virtual bool HasWork() { return false; }
  virtual void PrepareToSleep() {}
  // The answer comes as kEstablished, kRejected or kUnreachable, within a bound of the fabric's own
  // (tens of seconds at most); callers keep shorter ones.
  virtual absl::StatusOr<std::unique_ptr<Connection>> StartConnect(
      const SocketAddress& peer, const ConnectionOptions& options,
      std::span<const std::byte> private_data) = 0;
  virtual absl::StatusOr<std::unique_ptr<Listener>> Listen(const SocketAddress& local,
                                                           std::uint64_t context) = 0;
};

class Fabric {  // One per process and device.
 public:
  virtual ~Fabric() = default;  // Requires: nothing of it is left.
  // In the common domain, of the devices that lead to peers that were added, now or later.
  virtual absl::StatusOr<std::unique_ptr<Region>> Register(std::span<std::byte> memory,
                                                           Access access) = 0;
  // It will connect to this peer, too, from `source` if that is not null: what is registered, and
  // what will be, is so with the device that leads there.  Control plane; any thread.
  virtual absl::Status AddPeer(const SocketAddress& peer, const SocketAddress* source) {
    (void)peer;
    (void)source;
    return absl::OkStatus();
  }
  // `reactor` is where the poller will live; its IO ring may be used.  Call on its thread or before
  // it runs.
  virtual absl::StatusOr<std::unique_ptr<Poller>> CreatePoller(Reactor& reactor) = 0;
  // How many bytes of private data a connect, accept or reject can carry: at least 56.
  [[nodiscard]] virtual std::size_t private_data_size_max() const = 0;
};

}  // namespace ibnbd::fabric
