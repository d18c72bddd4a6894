// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/sim_cm.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "fabric/sim/sim_connection.h"
#include "fabric/sim/sim_fabric.h"
#include "fabric/sim/sim_network.h"
#include "fabric/sim/sim_poller.h"

namespace ibnbd::sim {
namespace {

// What the IB connection manager hands over, whatever was sent.
constexpr std::size_t kRequestDataSize = 56;
constexpr std::size_t kAcceptDataSize = 196;
constexpr std::size_t kRejectDataSize = 148;

std::vector<std::byte> Padded(const Link& link, std::span<const std::byte> data, std::size_t size) {
  std::vector<std::byte> bytes(data.begin(), data.end());
  if (link.plan().pad_private_data && bytes.size() < size) bytes.resize(size);
  return bytes;
}

// Ends an attempt that is still waiting for its answer.
void EndAttempt(const std::shared_ptr<Link>& link, std::int64_t delay_ns,
                fabric::CmEvent::Kind kind, int error, std::vector<std::byte> private_data = {}) {
  Network& network = link->network();
  network.world().Schedule(delay_ns, [link, kind, error, data = std::move(private_data)]() mutable {
    SimConnection* active = link->end(Side::kActive);
    if (active == nullptr || active->state() != SimConnection::State::kConnecting) return;
    link->network().world().Trace("attempt ends", link->id(), static_cast<std::uint64_t>(kind),
                                  static_cast<std::uint64_t>(-error));
    active->BecomeDead();
    PendingEvent event;
    event.kind = kind;
    event.link = link;
    event.side = Side::kActive;
    event.error = error;
    event.private_data = std::move(data);
    active->poller().PushEvent(0, std::move(event));
  });
}

void TimeOutAttempt(const std::shared_ptr<Link>& link) {
  Network& network = link->network();
  EndAttempt(link, link->plan().connect_timeout_ns.Draw(network.prng()),
             fabric::CmEvent::Kind::kUnreachable, -ETIMEDOUT);
}

// The listener's answer reaches the caller: both ends are up, and each is told.
void DeliverAccept(const std::shared_ptr<Link>& link, std::vector<std::byte> private_data) {
  Network& network = link->network();
  SimConnection* active = link->end(Side::kActive);
  SimConnection* passive = link->end(Side::kPassive);
  if (passive == nullptr || passive->state() != SimConnection::State::kUp || link->cut()) {
    TimeOutAttempt(link);  // The acceptor is gone again.
    return;
  }
  if (active == nullptr || active->state() != SimConnection::State::kConnecting) {
    link->TellLater(Side::kPassive, -ECONNRESET);  // The caller is.
    return;
  }
  network.world().Trace("established", link->id());
  active->BecomeUp();
  PendingEvent event;
  event.kind = fabric::CmEvent::Kind::kEstablished;
  event.link = link;
  event.side = Side::kActive;
  event.private_data = std::move(private_data);
  active->poller().PushEvent(0, std::move(event));
  PendingEvent other;
  other.kind = fabric::CmEvent::Kind::kEstablished;
  other.link = link;
  other.side = Side::kPassive;
  passive->poller().PushEvent(link->plan().cm_delay_ns.Draw(network.prng()), std::move(other));
}

void DeliverRequest(const std::shared_ptr<Link>& link, const SocketAddress& peer,
                    std::vector<std::byte> private_data) {
  Network& network = link->network();
  const FaultPlan& plan = link->plan();
  SimFabric& caller = *link->fabric(Side::kActive);
  SimConnection* active = link->end(Side::kActive);
  if (active == nullptr || active->state() != SimConnection::State::kConnecting) return;
  Host* host = network.FindHost(peer);
  const bool unheard = host == nullptr || host->crashed() || caller.dead() ||
                       network.Blocked({caller.host(), *host, link->rail()});
  if (unheard || network.Draw(plan.connect_silent_ppm)) {
    if (!unheard) ++network.counts().connects_silent;
    TimeOutAttempt(link);
    return;
  }
  const std::int64_t back_ns = plan.cm_delay_ns.Draw(network.prng());
  SimListener* listener = network.FindListener(peer);
  if (listener == nullptr || network.Draw(plan.connect_refused_ppm)) {
    if (listener != nullptr) ++network.counts().connects_refused;
    EndAttempt(link, back_ns, fabric::CmEvent::Kind::kUnreachable, -ECONNREFUSED);
    return;
  }
  if (network.Draw(plan.connect_rejected_ppm)) {
    ++network.counts().connects_rejected;
    EndAttempt(link, plan.connect_late_ns.Draw(network.prng()), fabric::CmEvent::Kind::kRejected,
               0);
    return;
  }
  network.world().Trace("incoming", link->id());
  link->set_passive_fabric(listener->poller().fabric());
  PendingEvent event;
  event.kind = fabric::CmEvent::Kind::kIncoming;
  event.link = link;
  event.side = Side::kPassive;
  event.listener_id = listener->id();
  event.incoming = std::make_unique<SimIncoming>(link, peer, active->local_address(),
                                                 Padded(*link, private_data, kRequestDataSize));
  listener->poller().PushEvent(0, std::move(event));
  // Whatever becomes of the answer, the caller does not wait for ever.
  TimeOutAttempt(link);
}

}  // namespace

void SendConnectRequest(const std::shared_ptr<Link>& link, const SocketAddress& peer,
                        std::vector<std::byte> private_data) {
  Network& network = link->network();
  network.world().Schedule(
      link->plan().cm_delay_ns.Draw(network.prng()),
      [link, peer, data = std::move(private_data)] { DeliverRequest(link, peer, data); });
}

SimListener::SimListener(SimPoller& poller, const SocketAddress& address, std::uint64_t context,
                         std::uint64_t id)
    : poller_(poller), address_(address), context_(context), id_(id) {
  poller_.AddListener(*this);
  poller_.fabric().network().AddListener(*this);
}

SimListener::~SimListener() {
  poller_.fabric().network().RemoveListener(*this);
  poller_.RemoveListener(*this);
}

SimIncoming::SimIncoming(std::shared_ptr<Link> link, const SocketAddress& local,
                         const SocketAddress& peer, std::vector<std::byte> private_data)
    : link_(std::move(link)), local_(local), peer_(peer), data_(std::move(private_data)) {}

SimIncoming::~SimIncoming() {
  if (!answered_ && !link_->network().ending()) Reject({});
}

absl::StatusOr<std::unique_ptr<fabric::Domain>> SimIncoming::CreateDomain() {
  return std::make_unique<SimDomain>(*link_->fabric(Side::kPassive), link_->network().NextId());
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> SimIncoming::Accept(
    fabric::Poller& owner, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  CHECK(!answered_);
  SimPoller& poller = static_cast<SimPoller&>(owner);
  CHECK(&poller.fabric() == link_->fabric(Side::kPassive));
  absl::StatusOr<fabric::Limits> limits = SimConnection::GrantLimits(options.limits);
  if (!limits.ok()) return limits.status();
  if (private_data.size() > poller.fabric().private_data_size_max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("accept ", peer_.ToString(), ": ", private_data.size(),
                     " bytes of private data, at most ", poller.fabric().private_data_size_max()));
  }
  answered_ = true;
  Network& network = link_->network();
  network.world().Trace("accept", link_->id());
  auto connection =
      std::make_unique<SimConnection>(link_, Side::kPassive, poller, *limits, options.context);
  connection->set_addresses(local_, peer_);
  link_->set_domain(Side::kPassive, SimDomain::IdOf(options.domain));
  connection->PostReceive(options.receives);
  connection->BecomeUp();
  const bool lost = link_->Blocked(Side::kPassive);
  if (lost || poller.fabric().dead() || network.Draw(link_->plan().accept_lost_ppm)) {
    ++network.counts().accepts_lost;
    link_->TellLater(Side::kPassive, -ETIMEDOUT);
    return connection;
  }
  network.world().Schedule(link_->plan().cm_delay_ns.Draw(network.prng()),
                           [link = link_, data = Padded(*link_, private_data, kAcceptDataSize)] {
                             DeliverAccept(link, data);
                           });
  return connection;
}

void SimIncoming::Reject(std::span<const std::byte> private_data) {
  CHECK(!answered_);
  answered_ = true;
  Network& network = link_->network();
  network.world().Trace("reject", link_->id());
  SimFabric& rejecter = *link_->fabric(Side::kPassive);
  if (rejecter.dead() || link_->Blocked(Side::kPassive)) return;  // The caller times out.
  EndAttempt(link_, link_->plan().cm_delay_ns.Draw(network.prng()),
             fabric::CmEvent::Kind::kRejected, 0, Padded(*link_, private_data, kRejectDataSize));
}

}  // namespace ibnbd::sim
