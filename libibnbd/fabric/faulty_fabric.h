// SPDX-License-Identifier: Apache-2.0
// A decorator that does on purpose what real networks do now and then: refuses connections, breaks
// them, delivers completions late.  All clauses of fabric.h hold.  For ibnbd-server --fault=SPEC
// and the end-to-end tests; the simulator has worse faults of its own (fabric/sim/fault_plan.h).
//
// SPEC is a list of  name=value  with commas:
//   cut-every=500ms   every connection breaks after 0.5 to 1.5 times this long
//   cut-post=100ppm   it breaks right after a post, with this probability
//   refuse=10%        a connection request, incoming or outgoing, is refused
//   delay=1ms..5ms    completions are reported later by so much (or delay=2ms, always that)
//   seed=7            of the dice
// Probabilities are 10%, 0.5% or 100ppm; times have the units ns, us, ms, s.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "fabric/forwarding_fabric.h"

namespace ibnbd::fabric {

struct FaultSpec {
  std::int64_t cut_every_ns = 0;  // 0: never.
  std::uint32_t cut_post_ppm = 0;
  std::uint32_t refuse_ppm = 0;
  std::int64_t delay_ns_min = 0;
  std::int64_t delay_ns_max = 0;
  std::uint64_t seed = 1;
  [[nodiscard]] std::string ToString() const;  // Parses to the same.
};
absl::StatusOr<FaultSpec> ParseFaultSpec(absl::string_view text);

class FaultyFabric final : public ForwardingFabric {
 public:
  FaultyFabric(Fabric& inner, const FaultSpec& spec) : ForwardingFabric(inner), spec_(spec) {}
  FaultyFabric(std::unique_ptr<Fabric> inner, const FaultSpec& spec)
      : ForwardingFabric(std::move(inner)), spec_(spec) {}
  absl::StatusOr<std::unique_ptr<Poller>> CreatePoller(Reactor& reactor) override;

 private:
  const FaultSpec spec_;
  std::atomic<std::uint64_t> poller_count_{0};
};

}  // namespace ibnbd::fabric
