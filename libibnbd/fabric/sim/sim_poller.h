// SPDX-License-Identifier: Apache-2.0
// The completion queue and the event channel of one simulated reactor, and the connection manager's
// side that starts there: connecting, listening.  Private to fabric/sim.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/sim/sim_link.h"
#include "reactor/reactor.h"

namespace ibnbd::sim {

class Network;
class SimConnection;
class SimFabric;
class SimListener;

struct PendingEvent {
  fabric::CmEvent::Kind kind = fabric::CmEvent::Kind::kDisconnected;
  std::shared_ptr<Link> link;
  Side side = Side::kActive;
  std::uint64_t listener_id = 0;  // kIncoming.
  std::unique_ptr<fabric::Incoming> incoming;
  std::vector<std::byte> private_data;
  int error = 0;
};

class SimPoller final : public fabric::Poller {
 public:
  SimPoller(SimFabric& fabric, Reactor& reactor);
  ~SimPoller() override;

  std::size_t PollCompletions(std::span<fabric::Completion> out) override;
  std::size_t PollEvents(std::span<fabric::CmEvent> out) override;
  void Flush() override;
  bool HasWork() override { return woken_ || !completions_.empty() || !events_.empty(); }
  absl::StatusOr<std::unique_ptr<fabric::Connection>> StartConnect(
      const SocketAddress& peer, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  absl::StatusOr<std::unique_ptr<fabric::Listener>> Listen(const SocketAddress& local,
                                                           std::uint64_t context) override;

  [[nodiscard]] SimFabric& fabric() { return fabric_; }
  [[nodiscard]] Reactor& reactor() { return reactor_; }
  [[nodiscard]] std::uint64_t id() const { return id_; }
  void Wake() { woken_ = true; }  // Its owner is to have another look, at drained() for one.
  void AddConnection(SimConnection& connection);
  void RemoveConnection(SimConnection& connection);
  void AddListener(SimListener& listener);
  void RemoveListener(SimListener& listener);
  void AddCompletion(SimConnection& connection, bool is_send, std::uint64_t sequence,
                     const fabric::Completion& completion);
  // Reports `event` after `delay_ns`, and after all earlier ones of the same end.
  void PushEvent(std::int64_t delay_ns, PendingEvent event);

 private:
  struct Ready {
    SimConnection* connection = nullptr;
    bool is_send = false;
    std::uint64_t sequence = 0;
    fabric::Completion completion;
  };
  bool Report(PendingEvent& event, fabric::CmEvent& out);

  SimFabric& fabric_;
  Reactor& reactor_;
  Network& network_;
  const std::uint64_t id_;
  std::map<std::uint64_t, SimConnection*> connections_;
  std::map<std::uint64_t, SimListener*> listeners_;
  std::map<std::uint64_t, std::int64_t> event_floors_ns_;  // By end.
  bool woken_ = false;
  std::deque<Ready> completions_;
  std::deque<PendingEvent> events_;
  std::vector<std::vector<std::byte>> reported_data_;
};

}  // namespace ibnbd::sim
