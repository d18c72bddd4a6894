// SPDX-License-Identifier: Apache-2.0
// Known bugs for the simulator to find (tests/sim): a harness that cannot fail proves nothing.
// Production code says IBNBD_CANARY(3) where bug 3, the one for oracle O3, is to be planted; it is
// the constant false but in the files that ibnbd-sim-canary compiles anew, where --canary=3 turns
// it on.
#pragma once

namespace ibnbd {

inline int canary_number = 0;  // Of the bug that is in; 0: none.

}  // namespace ibnbd

#ifdef IBNBD_CANARIES
#define IBNBD_CANARY(number) (::ibnbd::canary_number == (number))
#else
#define IBNBD_CANARY(number) false
#endif
