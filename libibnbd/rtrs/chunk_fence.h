// SPDX-License-Identifier: Apache-2.0
// Chunk numbers belong to a session, chunks to its paths.  A client whose path breaks sends what
// was in flight again over another path, with the same number (the kernel's client does so at once,
// long before we may know of the break).  The old request may still execute, and must not be
// overtaken: a write that the disk carries out late would undo what the client wrote after its
// repetition.  So a request waits while one of its number executes on another path.
//
// Which of them is the repetition is not known for certain: over different paths what was sent
// first may arrive last.  What is certain is that the client waits for one of them at most, and has
// given up the paths of the others.  So only the last one to execute is answered, when nothing is
// left that could land behind it; whoever leaves while another one waits ends its path
// instead (ServerLane), and if its client still waited there, it sends it again.  Mostly it has
// given that path up long since, as they are let in in the order of their arrival.
//
// One per session; used by the lanes of all its paths, each on its own thread.  Without a lock: an
// entry is one word, and nobody contends for it unless a path broke.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "rtrs/server_service.h"

namespace ibnbd::rtrs {

class ChunkFence {
 public:
  explicit ChunkFence(std::uint32_t queue_depth) : entries_(queue_depth) {}

  // True: `request` has its number until Leave().  False: it waits; somebody's Leave() returns it.
  [[nodiscard]] bool Enter(ServerRequest& request) {
    Entry& entry = entries_[request.chunk_id()];
    std::uintptr_t seen = kFree;
    while (true) {
      if (seen == kFree) {
        if (entry.compare_exchange_weak(seen, kBusy, std::memory_order_acq_rel)) return true;
        continue;
      }
      request.next_waiter_ = seen;
      const auto self = reinterpret_cast<std::uintptr_t>(&request);
      if (entry.compare_exchange_weak(seen, self, std::memory_order_acq_rel)) return false;
    }
  }

  // Null: the answer may go out.  Or the request whose number it is now, the one that has waited
  // longest: it is to be resumed on its lane's thread, and `request` is not to be answered.
  [[nodiscard]] ServerRequest* Leave(const ServerRequest& request) {
    Entry& entry = entries_[request.chunk_id()];
    std::uintptr_t seen = kBusy;
    while (seen == kBusy || WaiterOf(seen).next_waiter_ == kBusy) {  // Nobody waits, or one.
      if (entry.compare_exchange_weak(seen, seen == kBusy ? kFree : kBusy,
                                      std::memory_order_acq_rel)) {
        return seen == kBusy ? nullptr : &WaiterOf(seen);
      }
    }
    // New ones come at the other end.
    ServerRequest* younger = &WaiterOf(seen);
    while (WaiterOf(younger->next_waiter_).next_waiter_ != kBusy) {
      younger = &WaiterOf(younger->next_waiter_);
    }
    ServerRequest& oldest = WaiterOf(younger->next_waiter_);
    younger->next_waiter_ = kBusy;
    return &oldest;
  }

 private:
  // Free; busy with nobody waiting; else the request that began to wait last.  The end of the chain
  // is kBusy.
  using Entry = std::atomic<std::uintptr_t>;
  static constexpr std::uintptr_t kFree = 0, kBusy = 1;
  // Only the holder takes waiters off, so none can go away under it.
  static ServerRequest& WaiterOf(std::uintptr_t seen) {
    return *reinterpret_cast<ServerRequest*>(seen);
  }
  std::vector<Entry> entries_;
};

}  // namespace ibnbd::rtrs
