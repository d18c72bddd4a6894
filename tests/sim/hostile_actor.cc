// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/hostile_actor.h"

#include <array>
#include <utility>

namespace ibnbd::sim {
namespace {
// More than any move reads, but for a write of garbage, which is then shorter than it says.
constexpr std::size_t kInputSize = 512;
}  // namespace

HostileActor::HostileActor(World& world, std::string name, const fuzz::HostileTarget& target,
                           std::int64_t pause_ns_max)
    : world_(world),
      prng_(world.prng().Fork()),
      client_(world, world.AddHost(std::move(name)), target),
      pause_ns_max_(pause_ns_max) {}

void HostileActor::Stop() {
  *stopped_ = true;
  client_.peer().DisconnectAll();
}

void HostileActor::Step() {
  Move();
  world_.Schedule(prng_.Between(10 * kNsPerUs, pause_ns_max_), [this, stopped = stopped_] {
    if (!*stopped) Step();
  });
}

// Noise alone would never pass the first check: most bytes are 0, which leaves a message as it
// should be, and connecting and introducing oneself come often.
void HostileActor::Move() {
  ++moves_;
  std::array<std::uint8_t, kInputSize> noise{};
  const std::uint32_t noise_ppm = prng_.Chance(500'000) ? 30'000 : 500'000;
  for (std::uint8_t& byte : noise) {
    if (prng_.Chance(noise_ppm)) byte = static_cast<std::uint8_t>(prng_.Next());
  }
  fuzz::FuzzInput input(noise.data(), noise.size());
  const unsigned which = static_cast<unsigned>(
      prng_.Chance(400'000) ? prng_.Below(3) : prng_.Below(fuzz::HostileClient::kMoves));
  world_.Trace("hostile move", moves_, which);
  client_.Move(which, input);
}

}  // namespace ibnbd::sim
