// SPDX-License-Identifier: Apache-2.0
#include "fabric/forwarding_fabric.h"

#include <utility>

#include "base/check.h"

namespace ibnbd::fabric {
namespace {

// Exists so that Accept() reaches the inner request with the inner poller.
class ForwardingIncoming final : public Incoming {
 public:
  explicit ForwardingIncoming(std::unique_ptr<Incoming> inner) : inner_(std::move(inner)) {}
  [[nodiscard]] std::span<const std::byte> private_data() const override {
    return inner_->private_data();
  }
  [[nodiscard]] SocketAddress local_address() const override { return inner_->local_address(); }
  [[nodiscard]] SocketAddress peer_address() const override { return inner_->peer_address(); }
  absl::StatusOr<std::unique_ptr<Domain>> CreateDomain() override { return inner_->CreateDomain(); }
  absl::StatusOr<std::unique_ptr<Connection>> Accept(
      Poller& owner, const ConnectionOptions& options,
      std::span<const std::byte> private_data) override {
    return static_cast<ForwardingPoller&>(owner).Accept(*inner_, options, private_data);
  }
  void Reject(std::span<const std::byte> private_data) override { inner_->Reject(private_data); }

 private:
  const std::unique_ptr<Incoming> inner_;
};

}  // namespace

ForwardingConnection::ForwardingConnection(ForwardingPoller& poller,
                                           std::unique_ptr<Connection> inner)
    : poller_(poller), inner_(std::move(inner)) {
  poller_.by_inner_[inner_.get()] = this;
}
ForwardingConnection::~ForwardingConnection() { poller_.by_inner_.erase(inner_.get()); }

ForwardingPoller::ForwardingPoller(std::unique_ptr<Poller> inner) : inner_(std::move(inner)) {}
ForwardingPoller::~ForwardingPoller() { CHECK(by_inner_.empty()); }

std::size_t ForwardingPoller::PollEvents(std::span<CmEvent> out) {
  const std::size_t count = inner_->PollEvents(out);
  for (CmEvent& event : out.first(count)) {
    if (event.incoming != nullptr) {
      event.incoming = std::make_unique<ForwardingIncoming>(std::move(event.incoming));
    }
    if (event.connection == nullptr) continue;
    const auto found = by_inner_.find(event.connection);
    CHECK(found != by_inner_.end());
    event.connection = found->second;
  }
  return count;
}

absl::StatusOr<std::unique_ptr<Connection>> ForwardingPoller::StartConnect(
    const SocketAddress& peer, const ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  absl::StatusOr<std::unique_ptr<Connection>> connection =
      inner_->StartConnect(peer, options, private_data);
  if (!connection.ok()) return connection.status();
  return Wrap(*std::move(connection));
}

absl::StatusOr<std::unique_ptr<Connection>> ForwardingPoller::Accept(
    Incoming& incoming, const ConnectionOptions& options, std::span<const std::byte> private_data) {
  absl::StatusOr<std::unique_ptr<Connection>> connection =
      incoming.Accept(*inner_, options, private_data);
  if (!connection.ok()) return connection.status();
  return Wrap(*std::move(connection));
}

}  // namespace ibnbd::fabric
