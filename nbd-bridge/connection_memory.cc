// SPDX-License-Identifier: Apache-2.0
// See connection_memory.h.
#include "nbd-bridge/connection_memory.h"

#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace ibnbd::bridge {

absl::StatusOr<std::unique_ptr<ConnectionMemory>> ConnectionMemory::Create(
    ibnbd_session* session, std::uint32_t pool_size) {
  ASSIGN_OR_RETURN(std::unique_ptr<BufferPool> pool, BufferPool::Create(session, pool_size));
  return std::unique_ptr<ConnectionMemory>(new ConnectionMemory(std::move(pool)));
}

ConnectionMemory::ConnectionMemory(std::unique_ptr<BufferPool> pool)
    : pool_(std::move(pool)),
      requests_(std::make_unique<Request[]>(kRequests)),
      parts_(std::make_unique<Part[]>(kParts)) {
  for (std::size_t i = 0; i < kRequests; ++i) free_requests_.PushBack(requests_[i]);
  for (std::size_t i = kParts; i-- > 0;) {
    parts_[i].next = free_parts_;
    free_parts_ = &parts_[i];
  }
}

ConnectionMemory::~ConnectionMemory() {
  CHECK_EQ(requests_used_, 0u);
  while (!free_requests_.empty()) free_requests_.PopFront();
}

Request* ConnectionMemory::TryClaimRequest() {
  if (free_requests_.empty()) return nullptr;
  ++requests_used_;
  Request& request = free_requests_.PopFront();
  DCHECK(request.state == Request::State::kFree);
  return &request;
}

void ConnectionMemory::Release(Request* request) {
  DCHECK(request->first_part == nullptr && request->parts_executing == 0);
  request->state = Request::State::kFree;
  free_requests_.PushFront(*request);  // The last one is in the cache.
  --requests_used_;
}

Part* ConnectionMemory::TryClaimPart() {
  Part* part = free_parts_;
  if (part == nullptr) return nullptr;
  free_parts_ = part->next;
  part->next = nullptr;
  return part;
}

void ConnectionMemory::Release(Part* part) {
  if (part->block.data != nullptr) pool_->Release(part->block);
  part->block = {};
  part->next = free_parts_;
  free_parts_ = part;
}

ConnectionMemoryCache::ConnectionMemoryCache(std::vector<ibnbd_session*> sessions,
                                             std::uint32_t pool_size)
    : sessions_(std::move(sessions)), pool_size_(pool_size), idle_(sessions_.size()) {}

absl::StatusOr<std::unique_ptr<ConnectionMemory>> ConnectionMemoryCache::Take(
    std::size_t session_index) {
  auto& idle = idle_[session_index];
  if (idle.empty()) return ConnectionMemory::Create(sessions_[session_index], pool_size_);
  std::unique_ptr<ConnectionMemory> memory = std::move(idle.back());
  idle.pop_back();
  return memory;
}

void ConnectionMemoryCache::Give(std::size_t session_index,
                                 std::unique_ptr<ConnectionMemory> memory) {
  CHECK(memory->untouched());
  idle_[session_index].push_back(std::move(memory));
}

}  // namespace ibnbd::bridge
