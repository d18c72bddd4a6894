// SPDX-License-Identifier: Apache-2.0
// Everything that a connection in transmission uses per IO: its registered pool, request and part
// slots.  Allocated when the first connection to a session needs one, and handed from a connection
// that ends to the next, so that clients that come and go cost neither registrations nor memory.
// One thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/intrusive_list.h"
#include "ibnbd/ibnbd.h"
#include "nbd-bridge/buffer_pool.h"
#include "proto/nbd.h"

namespace ibnbd::bridge {

class NbdConnection;
struct Request;

// One IO of the library: a piece of a request, with the block its data lie in.
struct Part {
  ibnbd_io io{};
  Request* request = nullptr;
  Part* next = nullptr;  // In a READ, in the order of offsets; or among the free ones.
  Part* next_unsubmitted = nullptr;
  BufferPool::Block block;
};

// One NBD request, from its header to the end of its reply.
struct Request : ListHook {
  enum class State {
    kFree,       // On the free list.
    kFilling,    // A write waits for its payload, or a read for blocks.
    kExecuting,  // Waits for its parts.
    kReplying,   // Waits for its turn on the socket, then for the end of the send.
  };
  NbdConnection* connection = nullptr;
  State state = State::kFree;
  proto::NbdCmd cmd{};
  proto::be64 cookie;  // The client's; never looked into.
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::uint32_t filled = 0;  // Bytes for which there are parts.
  std::uint32_t io_flags = 0;
  std::uint32_t parts_executing = 0;
  int error = 0;             // The first one: 0 or a negative errno.
  bool flush_after = false;  // TRIM with FUA: a flush follows.
  Part* first_part = nullptr;
  Part* last_part = nullptr;
  std::uint32_t header_size = 0;
  std::array<std::byte, sizeof(proto::NbdOffsetData)> header{};
};

class ConnectionMemory {
 public:
  static constexpr std::size_t kRequests = 256;
  // Each request has one part at least, and a read of 32 MiB has 32 at once.
  static constexpr std::size_t kParts = 512;

  static absl::StatusOr<std::unique_ptr<ConnectionMemory>> Create(ibnbd_session* session,
                                                                  std::uint32_t pool_size);
  ~ConnectionMemory();  // Requires: all slots were released.
  ConnectionMemory(const ConnectionMemory&) = delete;
  ConnectionMemory& operator=(const ConnectionMemory&) = delete;

  // Null: all are in use.
  Request* TryClaimRequest();
  Part* TryClaimPart();
  void Release(Request* request);  // Its parts must have been released.
  void Release(Part* part);        // With its block.
  BufferPool& pool() { return *pool_; }
  [[nodiscard]] std::size_t requests_used() const { return requests_used_; }
  [[nodiscard]] bool untouched() const { return requests_used_ == 0 && pool_->untouched(); }

 private:
  explicit ConnectionMemory(std::unique_ptr<BufferPool> pool);
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Request[]> requests_;
  std::unique_ptr<Part[]> parts_;
  IntrusiveList<Request> free_requests_;
  Part* free_parts_ = nullptr;
  std::size_t requests_used_ = 0;
};

// The memory that no connection uses now, by session.  One per loop.
class ConnectionMemoryCache {
 public:
  ConnectionMemoryCache(std::vector<ibnbd_session*> sessions, std::uint32_t pool_size);
  absl::StatusOr<std::unique_ptr<ConnectionMemory>> Take(std::size_t session_index);
  void Give(std::size_t session_index, std::unique_ptr<ConnectionMemory> memory);

 private:
  const std::vector<ibnbd_session*> sessions_;
  const std::uint32_t pool_size_;
  std::vector<std::vector<std::unique_ptr<ConnectionMemory>>> idle_;
};

}  // namespace ibnbd::bridge
