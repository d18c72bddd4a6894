// SPDX-License-Identifier: Apache-2.0
// Registered memory.  A region belongs to the fabric of its session, which every queue and device
// of the session shares: memory is registered once.  Any thread.
#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "base/status_macros.h"
#include "capi/control.h"
#include "capi/error.h"
#include "capi/handles.h"

using ibnbd::capi::CheckSession;
using ibnbd::capi::Fail;
using ibnbd::capi::Succeed;

namespace {

constexpr std::int64_t kLandingNsMax = 10 * ibnbd::kNsPerSecond;

int Register(const char* call, ibnbd_session& session, std::unique_ptr<ibnbd_buffer> buffer,
             std::span<std::byte> memory, ibnbd_buffer** out) {
  auto region = session.fabric->Register(memory, ibnbd::fabric::Access::kRemoteWrite);
  if (!region.ok()) return Fail(call, region.status());
  buffer->session = &session;
  buffer->region = *std::move(region);
  buffer->memory = memory.data();
  buffer->size = memory.size();
  *out = buffer.get();
  ibnbd::capi::RememberHandle(buffer.get());
  const std::lock_guard<std::mutex> lock(session.mutex);
  session.buffers.push_back(std::move(buffer));
  return Succeed();
}

std::unique_ptr<ibnbd_buffer> TakeBuffer(ibnbd_session& session, const ibnbd_buffer* buffer) {
  const std::lock_guard<std::mutex> lock(session.mutex);
  const auto found = std::find_if(session.buffers.begin(), session.buffers.end(),
                                  [buffer](const auto& entry) { return entry.get() == buffer; });
  std::unique_ptr<ibnbd_buffer> taken = std::move(*found);
  *found = std::move(session.buffers.back());
  session.buffers.pop_back();
  return taken;
}

// Memory of the application that a misbehaving server is writing to: only the end of the connection
// ends that.  Bounded; inside a callback the queue cannot be driven, and nothing is waited for.
void BreakUntilLanded(ibnbd_session& session, ibnbd_buffer& buffer) {
  session.control->Post([&session] {
    session.client->session().ResetPaths(
        absl::InternalError("the server writes to memory that no request of ours names"));
  });
  const std::int64_t deadline_ns = session.clock.NowNs() + kLandingNsMax;
  while (!ibnbd::capi::InCallback() && session.clock.NowNs() < deadline_ns) {
    ibnbd::capi::Event never;  // Waits a little, and runs turns.
    ibnbd::capi::WaitAndDrive(session, never, ibnbd::kNsPerMs);
    if (buffer.region->Revoke()) return;
  }
  LOG_ERROR("session ", session.name, ": the server may still write to freed memory: its queue is ",
            "not polled");
}

}  // namespace

int ibnbd_buffer_alloc(ibnbd_session* session, size_t size, ibnbd_buffer** out) {
  constexpr char kCall[] = "ibnbd_buffer_alloc";
  if (out == nullptr) return Fail(-EINVAL, "%s: the place for the buffer is NULL", kCall);
  *out = nullptr;
  if (const int error = CheckSession(kCall, session)) return error;
  if (size == 0) return Fail(-EINVAL, "%s: the size is 0", kCall);
  auto arena = ibnbd::Arena::Create(size, *session->memory);
  if (!arena.ok()) return Fail(kCall, arena.status());
  auto buffer = std::make_unique<ibnbd_buffer>();
  buffer->arena = *std::move(arena);
  const std::span<std::byte> memory = buffer->arena.bytes().first(size);
  return Register(kCall, *session, std::move(buffer), memory, out);
}

int ibnbd_buffer_register(ibnbd_session* session, void* memory, size_t size, ibnbd_buffer** out) {
  constexpr char kCall[] = "ibnbd_buffer_register";
  if (out == nullptr) return Fail(-EINVAL, "%s: the place for the buffer is NULL", kCall);
  *out = nullptr;
  if (const int error = CheckSession(kCall, session)) return error;
  if (memory == nullptr) return Fail(-EINVAL, "%s: the memory is NULL", kCall);
  if (size == 0) return Fail(-EINVAL, "%s: the size is 0", kCall);
  if (reinterpret_cast<std::uintptr_t>(memory) + size < size) {
    return Fail(-EINVAL, "%s: %zu bytes from %p on end behind the address space", kCall, size,
                memory);
  }
  return Register(kCall, *session, std::make_unique<ibnbd_buffer>(),
                  {static_cast<std::byte*>(memory), size}, out);
}

void* ibnbd_buffer_data(const ibnbd_buffer* buffer) {
  return buffer == nullptr ? nullptr : buffer->memory;
}

size_t ibnbd_buffer_size(const ibnbd_buffer* buffer) {
  return buffer == nullptr ? 0 : buffer->size;
}

int ibnbd_buffer_fd(const ibnbd_buffer* buffer) {
  if (buffer == nullptr) return Fail(-EINVAL, "ibnbd_buffer_fd: NULL");
  if (buffer->arena.fd() < 0) {
    return Fail(-ENOTSUP,
                "ibnbd_buffer_fd: the buffer is no memfd: open the session with memory \"memfd\"");
  }
  return buffer->arena.fd();
}

void ibnbd_buffer_free(ibnbd_buffer* buffer) {
  Succeed();
  if (buffer == nullptr) return;
  if (!ibnbd::capi::ForgetHandle(buffer)) {
    Fail(-EINVAL, "ibnbd_buffer_free: this is not a buffer of an open session");
    return;
  }
  ibnbd_session& session = *buffer->session;
  std::unique_ptr<ibnbd_buffer> freed = TakeBuffer(session, buffer);
  if (freed->region->Revoke()) return;
  // No IO of ours uses it, yet the server is in the middle of a write to it.
  if (!freed->arena.bytes().empty()) {
    const std::lock_guard<std::mutex> lock(session.mutex);
    session.landed_on.push_back(std::move(freed));
    return;
  }
  BreakUntilLanded(session, *freed);
}
