// SPDX-License-Identifier: Apache-2.0
// Draws a scenario from a seed: first which features and faults exist in it, then how many and how
// often.  A fault that is rare among twenty others is common in the seeds that have only it.
#pragma once

#include <cstdint>

#include "tests/sim/scenario.h"

namespace ibnbd::sim {

ScenarioOptions DrawScenario(std::uint64_t seed);

}  // namespace ibnbd::sim
