// SPDX-License-Identifier: Apache-2.0
// A hostile client beside the good ones: the fuzzer's, fed by the seed instead of a fuzzer.  It
// connects, introduces itself, sends garbage of every kind and breaks off, until it is stopped.
// What it does must not be noticed by the others: their oracles judge that.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "fabric/sim/sim_world.h"
#include "tests/fuzz/hostile_client.h"

namespace ibnbd::sim {

class HostileActor {
 public:
  HostileActor(World& world, std::string name, const fuzz::HostileTarget& target,
               std::int64_t pause_ns_max);
  ~HostileActor() = default;  // Requires: gone().

  void Start() { Step(); }
  void Stop();
  [[nodiscard]] bool gone() { return *stopped_ && client_.peer().AllGone(); }
  [[nodiscard]] std::uint64_t moves() const { return moves_; }

 private:
  void Step();
  void Move();

  World& world_;
  Prng prng_;
  fuzz::HostileClient client_;
  const std::int64_t pause_ns_max_;
  std::uint64_t moves_ = 0;
  // The world may have a step of ours scheduled when we are gone.
  const std::shared_ptr<bool> stopped_ = std::make_shared<bool>(false);
};

}  // namespace ibnbd::sim
