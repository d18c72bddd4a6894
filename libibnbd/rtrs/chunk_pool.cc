// SPDX-License-Identifier: Apache-2.0
#include "rtrs/chunk_pool.h"

#include <utility>

#include "base/status_macros.h"
#include "reactor/io_ring.h"
#include "reactor/reactor.h"

namespace ibnbd::rtrs {

ChunkPool::ChunkPool(const ChunkGeometry& geometry, std::size_t reactor_count, ChunkFence& fence)
    : geometry_(geometry),
      chunk_size_(geometry.chunk_size()),
      fence_(fence),
      ring_buffers_(reactor_count) {}

absl::StatusOr<std::unique_ptr<ChunkPool>> ChunkPool::Create(const ChunkGeometry& geometry,
                                                             const MemoryProvider& provider,
                                                             fabric::Domain& domain,
                                                             std::size_t reactor_count,
                                                             ServerPathService& service,
                                                             ChunkFence& fence) {
  std::unique_ptr<ChunkPool> pool(new ChunkPool(geometry, reactor_count, fence));
  ASSIGN_OR_RETURN(pool->arena_, Arena::Create(geometry.byte_count(), provider));
  pool->memory_ = pool->arena_.bytes().first(geometry.byte_count());
  ASSIGN_OR_RETURN(pool->region_, domain.Register(pool->memory_, fabric::Access::kRemoteWrite));
  pool->lkey_ = pool->region_->lkey();
  pool->requests_.reserve(geometry.queue_depth);
  for (std::uint32_t id = 0; id < geometry.queue_depth; ++id) {
    pool->requests_.push_back(service.CreateRequest());
    pool->requests_.back()->chunk_id_ = id;
  }
  return pool;
}

ChunkPool::~ChunkPool() {
  for (const auto& request : requests_) CHECK(!request->claimed_.load(std::memory_order_acquire));
  for (const RingBuffer& buffer : ring_buffers_) CHECK_EQ(buffer.user_count, 0u);
}

int ChunkPool::AcquireOn(Reactor& reactor, std::size_t reactor_index) {
  RingBuffer& buffer = ring_buffers_[reactor_index];
  if (buffer.user_count++ == 0 && reactor.ring() != nullptr) {
    buffer.slot = reactor.ring()->RegisterBuffer(memory_);
  }
  return buffer.slot;
}

void ChunkPool::ReleaseOn(Reactor& reactor, std::size_t reactor_index) {
  RingBuffer& buffer = ring_buffers_[reactor_index];
  CHECK_GT(buffer.user_count, 0u);
  if (--buffer.user_count > 0 || buffer.slot < 0) return;
  reactor.ring()->UnregisterBuffer(std::exchange(buffer.slot, -1));
}

}  // namespace ibnbd::rtrs
