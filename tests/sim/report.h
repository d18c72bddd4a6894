// SPDX-License-Identifier: Apache-2.0
// What ibnbd-sim says: findings, totals, marks; for people and, as JSON, for ci/soak.
#pragma once

#include <cstdint>
#include <string>

#include "fabric/sim/marks.h"
#include "tests/sim/scenario.h"

namespace ibnbd::sim {

// Decimal, or else the first 15 hex digits of a commit hash.  False: neither.
bool ParseSeed(const std::string& text, std::uint64_t* seed);

// "SEED=4711 oracle=O1 ... ; rerun: build/dev/bin/ibnbd-sim --seed=4711 --verbose".
std::string FindingLine(std::uint64_t seed, const Finding& finding);

std::string ReportText(std::uint64_t seeds, std::uint64_t with_findings,
                       const ScenarioCounts& totals);
std::string ReportJson(std::uint64_t seeds, std::uint64_t with_findings,
                       const ScenarioCounts& totals, const Marks& marks);

// Of the marks of production code that storms must reach; the others have tests of their own.
std::string MarksText(const Marks& marks);
int CountColdMarks(const Marks& marks);

}  // namespace ibnbd::sim
