// SPDX-License-Identifier: Apache-2.0
// The passive side's way to a connection: a listening socket, the strangers that are still saying
// their greeting (few, and not for long), and the connection requests that the engine has not
// seen. On the thread of the poller that listens, except that an Incoming may be accepted
// elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/tcp/tcp_domain.h"
#include "fabric/tcp/tcp_poller.h"
#include "fabric/tcp/tcp_socket.h"
#include "reactor/timers.h"

namespace ibnbd::tcp {

// How many strangers, and requests that nobody has polled, a listener holds.  A request that was
// polled is the engine's, which has limits of its own: one that it keeps waiting takes nobody's
// place.
using OpenCount = std::shared_ptr<std::uint32_t>;

class TcpAcceptor;

// A connection request: the greeting is complete, the answer is the engine's.
class TcpIncoming final : public fabric::Incoming {
 public:
  TcpIncoming(RegionTable& regions, UniqueFd fd, std::span<const std::byte> private_data,
              OpenCount open_count);
  ~TcpIncoming() override;
  // For the poller: it leaves the listener's places.
  void OnPolled();
  std::span<const std::byte> private_data() const override { return private_data_; }
  SocketAddress local_address() const override { return local_address_; }
  SocketAddress peer_address() const override { return peer_address_; }
  absl::StatusOr<std::unique_ptr<fabric::Domain>> CreateDomain() override {
    return std::make_unique<TcpDomain>(regions_, regions_.NewDomain());
  }
  absl::StatusOr<std::unique_ptr<fabric::Connection>> Accept(
      fabric::Poller& owner, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  void Reject(std::span<const std::byte> private_data) override;

 private:
  RegionTable& regions_;
  UniqueFd fd_;
  const std::vector<std::byte> private_data_;
  OpenCount open_count_;  // Null once it was polled.
  const SocketAddress local_address_;
  const SocketAddress peer_address_;
};

// One stranger until its greeting is complete.
class TcpHandshake {
 public:
  TcpHandshake(TcpAcceptor& acceptor, TcpPoller& poller, UniqueFd fd);
  void Start();
  void Abort();  // It ends, and is removed by the acceptor, when the kernel is through with it.

 private:
  void OnRecvCqe(int result, std::uint32_t flags);
  void ArmRecv();
  TcpAcceptor& acceptor_;
  TcpPoller& poller_;
  UniqueFd fd_;
  const SocketAddress peer_address_;  // The kernel forgets it when the peer resets.
  MemberOp<TcpHandshake> op_;
  Timer timer_;
  GreetingReader reader_;
  bool aborted_ = false;
};

class TcpAcceptor {
 public:
  // More wait in the kernel's backlog.
  static constexpr std::uint32_t kOpenMax = 128;

  // `shared`: others go on listening on `fd` when we stop.
  TcpAcceptor(TcpPoller& poller, UniqueFd fd, bool shared, std::uint64_t context);
  void Stop();
  [[nodiscard]] bool idle() const { return !op_.armed() && handshakes_.empty(); }
  [[nodiscard]] std::uint64_t context() const { return context_; }
  [[nodiscard]] SocketAddress local_address() const { return LocalAddressOf(fd_.get()); }

  // For handshakes: it has ended, with a greeting (then `fd` is valid) or without.  Destroys it.
  void OnHandshakeEnd(TcpHandshake& handshake, UniqueFd fd,
                      std::span<const std::byte> private_data);

 private:
  void Arm();
  void OnAcceptCqe(int result, std::uint32_t flags);

  TcpPoller& poller_;
  UniqueFd fd_;
  const bool shared_;
  const std::uint64_t context_;
  MemberOp<TcpAcceptor> op_;
  Timer retry_timer_;
  OpenCount open_count_;
  std::vector<std::unique_ptr<TcpHandshake>> handshakes_;
  bool stopping_ = false;
};

class TcpListener final : public fabric::Listener {
 public:
  TcpListener(TcpPoller& poller, std::unique_ptr<TcpAcceptor> acceptor);
  ~TcpListener() override;
  SocketAddress local_address() const override { return local_address_; }

 private:
  TcpPoller& poller_;
  std::unique_ptr<TcpAcceptor> acceptor_;
  const SocketAddress local_address_;
};

}  // namespace ibnbd::tcp
