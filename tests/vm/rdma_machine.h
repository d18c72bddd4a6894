// SPDX-License-Identifier: Apache-2.0
// Where scripted peers live when the network is real: this machine and its RDMA device.  One
// thread.
#pragma once

#include <time.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "base/clock.h"
#include "base/prng.h"
#include "base/socket_address.h"
#include "fabric/verbs/verbs_fabric.h"
#include "reactor/reactor.h"
#include "tests/support/raw_client.h"

namespace ibnbd {

// This machine, with its RDMA device; all peers share it.
class Machine {
 public:
  explicit Machine(const SocketAddress& server)
      : server_(server),
        reactor_(*Reactor::Create(clock_, ReactorOptions{})),
        fabric_(*verbs::CreateVerbsFabric(&server)) {}
  bool RunUntil(const std::function<bool()>& condition, std::int64_t within_ns) {
    const std::int64_t end_ns = clock_.NowNs() + within_ns;
    while (!condition()) {
      if (clock_.NowNs() > end_ns) return condition();
      if (reactor_->RunTurn()) continue;
      const timespec pause{0, 100'000};
      nanosleep(&pause, nullptr);
    }
    return true;
  }
  void RunFor(std::int64_t ns) {
    RunUntil([] { return false; }, ns);
  }
  std::unique_ptr<RawClient> NewClient();
  [[nodiscard]] Reactor& reactor() { return *reactor_; }
  [[nodiscard]] fabric::Fabric& fabric() { return *fabric_; }

 private:
  const SocketAddress server_;
  MonotonicClock clock_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<fabric::Fabric> fabric_;
  Prng prng_{static_cast<std::uint64_t>(MonotonicClock().NowNs())};
};

class SharedMachine final : public PeerHost {
 public:
  explicit SharedMachine(Machine& machine) : machine_(machine) {}
  Reactor& reactor() override { return machine_.reactor(); }
  fabric::Fabric& fabric() override { return machine_.fabric(); }
  bool RunUntil(const std::function<bool()>& condition, std::int64_t within_ns) override {
    return machine_.RunUntil(condition, within_ns);
  }

 private:
  Machine& machine_;
};

inline std::unique_ptr<RawClient> Machine::NewClient() {
  auto client = std::make_unique<RawClient>(std::make_unique<SharedMachine>(*this), server_, 1);
  const auto draw = [this](proto::Uuid& uuid) {
    for (std::uint8_t& byte : uuid) byte = static_cast<std::uint8_t>(prng_.Below(256));
  };
  draw(client->request.sess_uuid);
  draw(client->request.paths_uuid);
  return client;
}

}  // namespace ibnbd
