// SPDX-License-Identifier: Apache-2.0
// What decorators have in common: a fabric that hands every call to another one, and hooks where a
// decorator differs.  faulty_fabric and traced_fabric are built on it, any fabric can be under it,
// and they stack.  The objects of one decorated fabric belong together: an Incoming is accepted
// with a poller of the same decorator.  Threads as in fabric.h (F8).
#pragma once

#include <memory>
#include <span>
#include <unordered_map>

#include "fabric/fabric.h"

namespace ibnbd::fabric {

class ForwardingPoller;

class ForwardingConnection : public Connection {
 public:
  ForwardingConnection(ForwardingPoller& poller, std::unique_ptr<Connection> inner);
  ~ForwardingConnection() override;
  void PostSend(std::span<const SendRequest> requests) override { inner_->PostSend(requests); }
  void PostReceive(std::span<const ReceiveRequest> requests) override {
    inner_->PostReceive(requests);
  }
  void Disconnect() override { inner_->Disconnect(); }
  [[nodiscard]] bool drained() const override { return inner_->drained(); }
  [[nodiscard]] const Limits& limits() const override { return inner_->limits(); }
  [[nodiscard]] std::uint32_t device() const override { return inner_->device(); }
  [[nodiscard]] SocketAddress local_address() const override { return inner_->local_address(); }
  [[nodiscard]] SocketAddress peer_address() const override { return inner_->peer_address(); }

 protected:
  [[nodiscard]] Connection& inner() const { return *inner_; }

 private:
  ForwardingPoller& poller_;
  const std::unique_ptr<Connection> inner_;
};

class ForwardingPoller : public Poller {
 public:
  explicit ForwardingPoller(std::unique_ptr<Poller> inner);
  ~ForwardingPoller() override;
  std::size_t PollCompletions(std::span<Completion> out) override {
    return inner_->PollCompletions(out);
  }
  std::size_t PollEvents(std::span<CmEvent> out) override;
  void Flush() override { inner_->Flush(); }
  bool HasWork() override { return inner_->HasWork(); }
  void PrepareToSleep() override { inner_->PrepareToSleep(); }
  absl::StatusOr<std::unique_ptr<Connection>> StartConnect(
      const SocketAddress& peer, const ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  absl::StatusOr<std::unique_ptr<Listener>> Listen(const SocketAddress& local,
                                                   std::uint64_t context) override {
    return inner_->Listen(local, context);
  }
  // For Incoming::Accept(), on this poller's thread.
  absl::StatusOr<std::unique_ptr<Connection>> Accept(Incoming& incoming,
                                                     const ConnectionOptions& options,
                                                     std::span<const std::byte> private_data);

 protected:
  // The decorator's connection around one that was just started or accepted.
  virtual std::unique_ptr<ForwardingConnection> Wrap(std::unique_ptr<Connection> connection) = 0;
  [[nodiscard]] Poller& inner() const { return *inner_; }

 private:
  friend class ForwardingConnection;
  const std::unique_ptr<Poller> inner_;
  std::unordered_map<const Connection*, ForwardingConnection*> by_inner_;  // Looked up only.
};

class ForwardingFabric : public Fabric {
 public:
  explicit ForwardingFabric(Fabric& inner) : inner_(inner) {}
  explicit ForwardingFabric(std::unique_ptr<Fabric> inner)
      : owned_(std::move(inner)), inner_(*owned_) {}
  absl::StatusOr<std::unique_ptr<Region>> Register(std::span<std::byte> memory,
                                                   Access access) override {
    return inner_.Register(memory, access);
  }
  absl::Status AddPeer(const SocketAddress& peer, const SocketAddress* source) override {
    return inner_.AddPeer(peer, source);
  }
  [[nodiscard]] std::size_t private_data_size_max() const override {
    return inner_.private_data_size_max();
  }

 protected:
  [[nodiscard]] Fabric& inner() const { return inner_; }

 private:
  const std::unique_ptr<Fabric> owned_;  // Null: the caller keeps it alive.
  Fabric& inner_;
};

}  // namespace ibnbd::fabric
