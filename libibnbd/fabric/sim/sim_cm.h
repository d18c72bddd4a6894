// SPDX-License-Identifier: Apache-2.0
// The connection manager's objects in the simulator: who listens, and a request that waits for its
// answer.  The dance itself:
//
//   active                                   passive
//   StartConnect  ── request ──────────────> kIncoming
//                 <───────────── answer ──── Accept, Reject, or the destructor of Incoming
//   kEstablished  ── ready to use ─────────> kEstablished   (messages may overtake it, F12)
//
// Each arrow takes cm_delay_ns and may be lost, late or refused, as the plan draws.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/sim/sim_link.h"

namespace ibnbd::sim {

class SimPoller;

class SimListener final : public fabric::Listener {
 public:
  SimListener(SimPoller& poller, const SocketAddress& address, std::uint64_t context,
              std::uint64_t id);
  ~SimListener() override;
  [[nodiscard]] SocketAddress local_address() const override { return address_; }
  [[nodiscard]] SimPoller& poller() const { return poller_; }
  [[nodiscard]] std::uint64_t context() const { return context_; }
  [[nodiscard]] std::uint64_t id() const { return id_; }

 private:
  SimPoller& poller_;
  const SocketAddress address_;
  const std::uint64_t context_;
  const std::uint64_t id_;
};

class SimIncoming final : public fabric::Incoming {
 public:
  SimIncoming(std::shared_ptr<Link> link, const SocketAddress& local, const SocketAddress& peer,
              std::vector<std::byte> private_data);
  ~SimIncoming() override;
  [[nodiscard]] std::span<const std::byte> private_data() const override { return data_; }
  [[nodiscard]] SocketAddress local_address() const override { return local_; }
  [[nodiscard]] SocketAddress peer_address() const override { return peer_; }
  absl::StatusOr<std::unique_ptr<fabric::Domain>> CreateDomain() override;
  absl::StatusOr<std::unique_ptr<fabric::Connection>> Accept(
      fabric::Poller& owner, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  void Reject(std::span<const std::byte> private_data) override;

 private:
  const std::shared_ptr<Link> link_;
  const SocketAddress local_, peer_;
  const std::vector<std::byte> data_;
  bool answered_ = false;
};

// Sends the request of `link` to `peer`, and arranges that the active end is answered, by whomever.
void SendConnectRequest(const std::shared_ptr<Link>& link, const SocketAddress& peer,
                        std::vector<std::byte> private_data);

}  // namespace ibnbd::sim
