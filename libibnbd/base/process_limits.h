// SPDX-License-Identifier: Apache-2.0
// What the system lets this process have.  Programs, at their start.
#pragma once

#include <cstdint>

namespace ibnbd {

// Descriptors (every connection is one) and locked memory (every registered chunk is), as far as we
// may: less is slower or fewer, not wrong.
void RaiseLimits();

// How many descriptors may be open at once.
std::uint64_t DescriptorLimit();

}  // namespace ibnbd
