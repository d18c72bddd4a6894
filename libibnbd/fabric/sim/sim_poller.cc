// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/sim_poller.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "fabric/sim/sim_cm.h"
#include "fabric/sim/sim_connection.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_network.h"

namespace ibnbd::sim {

SimPoller::SimPoller(SimFabric& fabric, Reactor& reactor)
    : fabric_(fabric), reactor_(reactor), network_(fabric.network()), id_(network_.NextId()) {
  fabric_.AddPoller();
}

SimPoller::~SimPoller() {
  CHECK(connections_.empty());
  CHECK(listeners_.empty());
  fabric_.RemovePoller();
}

void SimPoller::AddConnection(SimConnection& connection) {
  connections_[connection.id()] = &connection;
}

void SimPoller::RemoveConnection(SimConnection& connection) {
  connections_.erase(connection.id());
  event_floors_ns_.erase(connection.id());
  // Only a crashed host's connection has any left.
  const auto is_of = [&connection](const Ready& ready) { return ready.connection == &connection; };
  completions_.erase(std::remove_if(completions_.begin(), completions_.end(), is_of),
                     completions_.end());
}

void SimPoller::AddListener(SimListener& listener) { listeners_[listener.id()] = &listener; }
void SimPoller::RemoveListener(SimListener& listener) { listeners_.erase(listener.id()); }

void SimPoller::AddCompletion(SimConnection& connection, bool is_send, std::uint64_t sequence,
                              const fabric::Completion& completion) {
  network_.world().Trace(is_send ? "sent" : "received", connection.id(), completion.cookie,
                         static_cast<std::uint64_t>(completion.status), completion.byte_count);
  completions_.push_back({&connection, is_send, sequence, completion});
}

std::size_t SimPoller::PollCompletions(std::span<fabric::Completion> out) {
  std::size_t count = 0;
  while (count < out.size() && !completions_.empty()) {
    const Ready ready = completions_.front();
    completions_.pop_front();
    if (ready.is_send) {
      ready.connection->OnSendPolled(ready.sequence);
    } else {
      ready.connection->OnReceivePolled();
    }
    out[count++] = ready.completion;
  }
  return count;
}

void SimPoller::PushEvent(std::int64_t delay_ns, PendingEvent event) {
  World& world = network_.world();
  const std::uint64_t end_id = event.link->id() * 2 + Index(event.side);
  std::int64_t due_ns = world.now_ns() + delay_ns;
  if (event.kind != fabric::CmEvent::Kind::kIncoming) {
    std::int64_t& floor_ns = event_floors_ns_[end_id];
    due_ns = floor_ns = std::max(floor_ns, due_ns);
  }
  world.Schedule(due_ns - world.now_ns(), [event = std::move(event)]() mutable {
    // The poller may be gone; its connection or listener tells.
    if (event.kind == fabric::CmEvent::Kind::kIncoming) {
      SimListener* listener = event.link->network().FindListener(event.listener_id);
      if (listener != nullptr) listener->poller().events_.push_back(std::move(event));
      return;
    }
    SimConnection* connection = event.link->end(event.side);
    if (connection != nullptr) connection->poller().events_.push_back(std::move(event));
  });
}

bool SimPoller::Report(PendingEvent& event, fabric::CmEvent& out) {
  out = fabric::CmEvent();
  out.kind = event.kind;
  out.error = event.error;
  if (event.kind == fabric::CmEvent::Kind::kIncoming) {
    const auto listener = listeners_.find(event.listener_id);
    if (listener == listeners_.end()) return false;  // Closed meanwhile: rejected.
    out.context = listener->second->context();
    out.incoming = std::move(event.incoming);
    return true;
  }
  SimConnection* connection = event.link->end(event.side);
  if (connection == nullptr) return false;
  out.context = connection->context();
  out.connection = connection;
  switch (event.kind) {
    case fabric::CmEvent::Kind::kEstablished:
      connection->OnEstablishedPolled();
      break;
    case fabric::CmEvent::Kind::kDisconnected:
      connection->OnDisconnectedPolled();
      break;
    default:
      connection->OnEndPolled();
      break;
  }
  if (!event.private_data.empty()) {
    reported_data_.push_back(std::move(event.private_data));
    out.private_data = reported_data_.back();
  }
  return true;
}

std::size_t SimPoller::PollEvents(std::span<fabric::CmEvent> out) {
  reported_data_.clear();
  woken_ = false;
  std::size_t count = 0;
  while (count < out.size() && !events_.empty()) {
    PendingEvent event = std::move(events_.front());
    events_.pop_front();
    if (!Report(event, out[count])) continue;
    network_.world().Trace("event", event.link->id(), Index(event.side),
                           static_cast<std::uint64_t>(event.kind));
    ++count;
  }
  return count;
}

void SimPoller::Flush() {
  for (const auto& [id, connection] : connections_) connection->LaunchPosts();
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> SimPoller::StartConnect(
    const SocketAddress& peer, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  absl::StatusOr<fabric::Limits> limits = SimConnection::GrantLimits(options.limits);
  if (!limits.ok()) return limits.status();
  if (private_data.size() > fabric_.private_data_size_max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("connect ", peer.ToString(), ": ", private_data.size(),
                     " bytes of private data, at most ", fabric_.private_data_size_max()));
  }
  const std::uint32_t rail = peer.sim_host >> kRailShift;
  if (rail >= kRailCount) {
    return absl::InvalidArgumentError(
        absl::StrCat("connect ", peer.ToString(), ": no host has such an address"));
  }
  const std::shared_ptr<Link> link = network_.NewLink(fabric_, rail);
  network_.world().Trace("connect", link->id(), peer.sim_host, peer.port);
  auto connection =
      std::make_unique<SimConnection>(link, Side::kActive, *this, *limits, options.context);
  connection->set_addresses(fabric_.host().Address(network_.NextPort(), rail), peer);
  link->set_domain(Side::kActive, SimDomain::IdOf(options.domain));
  connection->PostReceive(options.receives);
  SendConnectRequest(link, peer, {private_data.begin(), private_data.end()});
  return connection;
}

absl::StatusOr<std::unique_ptr<fabric::Listener>> SimPoller::Listen(const SocketAddress& local,
                                                                    std::uint64_t context) {
  SocketAddress address = local;
  const bool all_rails = local.sim_host == 0;
  if (all_rails) address.sim_host = fabric_.host().index();
  if (address.port == 0) address.port = network_.NextPort();
  if (fabric_.dead()) {
    return absl::UnavailableError(
        absl::StrCat("listen on ", address.ToString(), ": the host crashed"));
  }
  if (network_.FindHost(address) != &fabric_.host() || local.family != 0 ||
      address.sim_host >> kRailShift >= kRailCount) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen on ", local.ToString(), ": not an address of this host"));
  }
  auto listener = std::make_unique<SimListener>(*this, address, context, network_.NextId());
  if (!network_.OpenPort(address, all_rails, *listener)) {
    return absl::AlreadyExistsError(
        absl::StrCat("listen on ", address.ToString(), ": Address already in use"));
  }
  return listener;
}

}  // namespace ibnbd::sim
