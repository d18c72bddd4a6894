// SPDX-License-Identifier: Apache-2.0
// Where a scripted peer lives: a host of the simulator, or this machine with a real fabric.  Time
// passes only while somebody waits.
#pragma once

#include <cstdint>
#include <functional>

#include "fabric/fabric.h"
#include "fabric/sim/sim_world.h"

namespace ibnbd {

class PeerHost {
 public:
  virtual ~PeerHost() = default;
  virtual Reactor& reactor() = 0;
  virtual fabric::Fabric& fabric() = 0;
  // Lets time pass until `condition` holds; false: it did not, in time.
  virtual bool RunUntil(const std::function<bool()>& condition, std::int64_t within_ns) = 0;
};

class SimPeerHost final : public PeerHost {
 public:
  SimPeerHost(sim::World& world, sim::Host& host)
      : world_(world), host_(host), reactor_(host.AddReactor()) {}
  Reactor& reactor() override { return reactor_; }
  fabric::Fabric& fabric() override { return host_.fabric(); }
  bool RunUntil(const std::function<bool()>& condition, std::int64_t within_ns) override {
    return world_.RunUntil(condition, within_ns);
  }

 private:
  sim::World& world_;
  sim::Host& host_;
  Reactor& reactor_;
};

}  // namespace ibnbd
