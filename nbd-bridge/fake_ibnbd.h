// SPDX-License-Identifier: Apache-2.0
// A stand-in for libibnbd in tests of the bridge: devices in memory, IOs done in the next poll, and
// the switches that a test needs to make a server slow, lost, full or failing.  Linked instead of
// the library.  Any thread may turn the switches.
#pragma once

#include <atomic>
#include <cstdint>

#include "ibnbd/ibnbd.h"

namespace ibnbd::fake {

struct Switches {
  std::atomic<std::uint64_t> device_size{64u << 20};
  std::atomic<std::uint32_t> logical_block_size{512};
  std::atomic<std::uint32_t> device_flags{IBNBD_DEVICE_WRITE_CACHE | IBNBD_DEVICE_FUA};
  std::atomic<std::uint64_t> volume_id{0};  // Of the devices that are opened from now on.
  std::atomic<int> fail_info{0};            // What ibnbd_device_get_info() ends with, if not 0.
  std::atomic<bool> can_discard{true};
  std::atomic<bool> can_write_zeroes{true};
  std::atomic<bool> hold{false};            // IOs wait, as when the server is lost.
  std::atomic<int> hang_queue{-1};          // Who polls that one does not come back while it is so.
  std::atomic<bool> hangs_for_good{false};  // Nor, if so, does he later.
  std::atomic<bool> session_answers{true};
  std::atomic<int> fail_with{0};                  // Every IO's result, if not 0.
  std::atomic<int> fail_flush_on_queue{-1};       // Its flushes end with EIO.
  std::atomic<std::uint32_t> io_depth_max{1024};  // Per queue; beyond: -EAGAIN.
  // What was seen.
  std::atomic<std::uint64_t> ios_done{0};
  std::atomic<std::uint64_t> flushes{0};
  std::atomic<std::uint64_t> fua_writes{0};
  std::atomic<std::uint64_t> zeroes_without_unmap{0};
  std::atomic<std::uint32_t> longest_io{0};
  std::atomic<int> buffers{0};
  std::atomic<int> sessions{0};
};

Switches& switches();

}  // namespace ibnbd::fake
