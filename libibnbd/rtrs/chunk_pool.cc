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
                                                             KeyPolicy keys, fabric::Domain& domain,
                                                             std::size_t reactor_count,
                                                             ServerPathService& service,
                                                             ChunkFence& fence) {
  std::unique_ptr<ChunkPool> pool(new ChunkPool(geometry, reactor_count, fence));
  ASSIGN_OR_RETURN(pool->arena_, Arena::Create(geometry.byte_count(), provider));
  pool->memory_ = pool->arena_.bytes().first(geometry.byte_count());
  RETURN_IF_ERROR(pool->Register(keys, domain));
  pool->requests_.reserve(geometry.queue_depth);
  for (std::uint32_t id = 0; id < geometry.queue_depth; ++id) {
    pool->requests_.push_back(service.CreateRequest());
    pool->requests_.back()->chunk_id_ = id;
  }
  return pool;
}

absl::Status ChunkPool::Register(KeyPolicy keys, fabric::Domain& domain) {
  if (keys == KeyPolicy::kPerPath) {
    ASSIGN_OR_RETURN(auto region, domain.Register(memory_, fabric::Access::kRemoteWrite));
    regions_.push_back(std::move(region));
    return absl::OkStatus();
  }
  for (std::uint32_t id = 0; id < geometry_.queue_depth; ++id) {
    ASSIGN_OR_RETURN(auto region, domain.Register(chunk(id), fabric::Access::kWindows));
    regions_.push_back(std::move(region));
    ASSIGN_OR_RETURN(auto window, regions_.back()->CreateWindow());
    windows_.push_back(std::move(window));
  }
  return absl::OkStatus();
}

std::size_t ChunkPool::Describe(std::span<std::byte> out) const {
  const std::size_t count = regions_.size();
  const proto::InfoRspHeader header{.sg_cnt = proto::le16(static_cast<std::uint16_t>(count))};
  std::size_t size = proto::Encode(out, header);
  for (std::size_t i = 0; i < count; ++i) {
    const std::span<std::byte> memory = regions_[i]->memory();
    const std::uint32_t rkey = has_windows() ? windows_[i]->next_rkey() : regions_[i]->rkey();
    const proto::SgDesc desc{.addr = proto::le64(reinterpret_cast<std::uintptr_t>(memory.data())),
                             .key = proto::le32(rkey),
                             .len = proto::le32(static_cast<std::uint32_t>(memory.size()))};
    size += proto::Encode(out.subspan(size), desc);
  }
  return size;
}

ChunkPool::~ChunkPool() {
  for (const auto& request : requests_) {
    CHECK(request->turn_.load(std::memory_order_acquire) == ServerRequest::Turn::kFree);
  }
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
