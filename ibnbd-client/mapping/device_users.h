// SPDX-License-Identifier: Apache-2.0
// Who uses a block device: mounts, swap, device-mapper and the like, and processes that have it
// open. Read from /proc and /sys; the device itself is not opened, which may wait for a server that
// is lost.
#pragma once

#include <string>

namespace ibnbd::client {

// "" if nobody does, else "mounted at /srv", "held by dm-0", "open in qemu-system-x86 (1234)".
// `root` is
// "" but in tests.  What processes came after the look is not seen.
std::string UserOf(const std::string& node, const std::string& root = "");

}  // namespace ibnbd::client
