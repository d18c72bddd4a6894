// SPDX-License-Identifier: Apache-2.0
// The memory that the server lends to one path: `queue_depth` chunks in one arena, registered for
// the peer's writes, and one request per chunk.  With a key per path all of it is one region; with
// a key per IO each chunk is a region with a window.  Made on the control thread when the client
// has introduced itself; used by the path's lanes; destroyed on the control thread after all of
// them are closed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/arena.h"
#include "fabric/fabric.h"
#include "rtrs/chunk_fence.h"
#include "rtrs/server_service.h"

namespace ibnbd {
class Reactor;
}

namespace ibnbd::rtrs {

struct ChunkGeometry {
  std::uint32_t queue_depth = 0;
  std::uint32_t io_size_max = 0;
  [[nodiscard]] std::uint32_t chunk_size() const { return io_size_max + proto::kDefaultHdrSizeMax; }
  [[nodiscard]] std::uint64_t byte_count() const {
    return std::uint64_t{queue_depth} * chunk_size();
  }
};

enum class KeyPolicy : std::uint8_t {
  kPerPath,  // A key holds for as long as its path.
  kPerIo     // For one IO, and not while that writes: the answer brings the next.
};

class ChunkPool {
 public:
  static absl::StatusOr<std::unique_ptr<ChunkPool>> Create(const ChunkGeometry& geometry,
                                                           const MemoryProvider& provider,
                                                           KeyPolicy keys, fabric::Domain& domain,
                                                           std::size_t reactor_count,
                                                           ServerPathService& service,
                                                           ChunkFence& fence);
  ~ChunkPool();  // Requires: no chunk claimed, no reactor uses it, all connections drained.

  [[nodiscard]] const ChunkGeometry& geometry() const { return geometry_; }
  [[nodiscard]] bool has_windows() const { return !windows_.empty(); }
  [[nodiscard]] std::uint32_t lkey(std::uint32_t id) const {
    return regions_[has_windows() ? id : 0]->lkey();
  }
  [[nodiscard]] fabric::Window& window(std::uint32_t id) const { return *windows_[id]; }
  // What INFO_RSP tells of it: one descriptor, or one per chunk with the key that the window's
  // first opening will give.
  std::size_t Describe(std::span<std::byte> out) const;
  [[nodiscard]] std::span<std::byte> chunk(std::uint32_t id) const {
    return memory_.subspan(std::size_t{id} * chunk_size_, chunk_size_);
  }
  [[nodiscard]] ServerRequest& request(std::uint32_t id) { return *requests_[id]; }
  [[nodiscard]] ChunkFence& fence() const { return fence_; }  // The session's.

  // Also makes the pool known to the IO ring of `reactor` (index `reactor_index`), so that the
  // kernel need not look its pages up for every IO; counted.  On that reactor's thread.  Returns
  // the slot or -1.
  int AcquireOn(Reactor& reactor, std::size_t reactor_index);
  void ReleaseOn(Reactor& reactor, std::size_t reactor_index);

 private:
  struct RingBuffer {  // Each entry belongs to the thread of its reactor.
    std::uint32_t user_count = 0;
    int slot = -1;
  };
  ChunkPool(const ChunkGeometry& geometry, std::size_t reactor_count, ChunkFence& fence);
  absl::Status Register(KeyPolicy keys, fabric::Domain& domain);

  const ChunkGeometry geometry_;
  const std::size_t chunk_size_;
  ChunkFence& fence_;
  Arena arena_;
  std::span<std::byte> memory_;
  std::vector<std::unique_ptr<fabric::Region>> regions_;  // Of all chunks together, or of each.
  std::vector<std::unique_ptr<fabric::Window>> windows_;  // Of each, or none.
  std::vector<std::unique_ptr<ServerRequest>> requests_;
  std::vector<RingBuffer> ring_buffers_;
};

}  // namespace ibnbd::rtrs
