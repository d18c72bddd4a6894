// SPDX-License-Identifier: Apache-2.0
// See fake_ibnbd.h.  A device is a sparse anonymous mapping, so that terabytes cost nothing.
#include "nbd-bridge/fake_ibnbd.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace ibnbd::fake {
Switches& switches() {
  static Switches instance;
  return instance;
}
}  // namespace ibnbd::fake

using ibnbd::fake::switches;

struct ibnbd_device {
  std::string name;
  std::byte* memory = nullptr;
  std::uint64_t size = 0;
  std::uint64_t id = 0;
  bool read_only = false;
};
struct ibnbd_buffer {
  ibnbd_session* session = nullptr;
  void* memory = nullptr;
  std::size_t size = 0;
};
struct ibnbd_queue {
  struct Entry {
    ibnbd_device* device;
    ibnbd_io* io;
  };
  std::vector<Entry> pending;  // In order; reserved, so that nothing allocates per IO.
  std::vector<Entry> batch;
  int index = 0;
  int fd = ::eventfd(0, EFD_CLOEXEC);
};
struct ibnbd_session {
  std::vector<ibnbd_queue> queues;
  std::map<std::string, std::unique_ptr<ibnbd_device>> devices;
  std::set<ibnbd_buffer*> buffers;  // Freed with the session, if not before.
  std::mutex mutex;                 // Of buffers.
};

namespace {
thread_local std::string last_error;

int Fail(int error, const char* text) {
  last_error = text;
  return error;
}

int Check(const ibnbd_device& device, const ibnbd_io& io) {
  const std::uint64_t mask = switches().logical_block_size.load() - 1;
  if (((io.offset | io.length) & mask) != 0) return -EINVAL;
  if (io.offset > device.size || io.length > device.size - io.offset) return -EINVAL;
  const bool writes = io.op != IBNBD_OP_READ && io.op != IBNBD_OP_FLUSH;
  if (writes && device.read_only) return -EPERM;
  if (io.op == IBNBD_OP_DISCARD && !switches().can_discard) return -EOPNOTSUPP;
  return 0;
}

int Execute(const ibnbd_device& device, const ibnbd_io& io) {
  if (const int error = switches().fail_with.load(); error != 0) return error;
  std::byte* at = device.memory + io.offset;
  auto& seen = switches();
  seen.longest_io = std::max(seen.longest_io.load(), static_cast<std::uint32_t>(io.length));
  switch (io.op) {
    case IBNBD_OP_READ:
      std::memcpy(io.data, at, io.length);
      break;
    case IBNBD_OP_WRITE:
      std::memcpy(at, io.data, io.length);
      if ((io.flags & IBNBD_IO_FUA) != 0) ++seen.fua_writes;
      break;
    case IBNBD_OP_FLUSH:
      ++seen.flushes;
      break;
    case IBNBD_OP_WRITE_ZEROES:
      if ((io.flags & IBNBD_IO_NO_UNMAP) != 0) ++seen.zeroes_without_unmap;
      std::memset(at, 0, io.length);
      break;
    default:
      std::memset(at, 0, io.length);
      break;
  }
  return 0;
}
}  // namespace

extern "C" {

const char* ibnbd_version(void) { return "0.0.0-fake"; }
const char* ibnbd_error_message(void) { return last_error.c_str(); }
void ibnbd_set_log(ibnbd_log_fn, void*, int) {}

int ibnbd_session_open(const char* uri, const ibnbd_session_options* options, ibnbd_session** out) {
  if (std::strstr(uri, "nobody") != nullptr) return Fail(-ECONNREFUSED, "Connection refused");
  *out = new ibnbd_session;
  (*out)->queues.resize(options->queue_count);
  for (ibnbd_queue& queue : (*out)->queues) {
    queue.index = static_cast<int>(&queue - (*out)->queues.data());
    queue.pending.reserve(4096);
    queue.batch.reserve(4096);
  }
  ++switches().sessions;
  return 0;
}

int ibnbd_session_is_alive(ibnbd_session*) { return switches().session_answers ? 1 : 0; }
int ibnbd_session_set_policy(ibnbd_session*, uint32_t) { return 0; }

int ibnbd_session_close(ibnbd_session* session, uint32_t) {
  if (session == nullptr) return 0;
  for (ibnbd_queue& queue : session->queues) {
    for (const auto& entry : queue.pending) entry.io->done(entry.io, -ECANCELED);
  }
  for (auto& [name, device] : session->devices) ::munmap(device->memory, device->size);
  while (!session->buffers.empty()) ibnbd_buffer_free(*session->buffers.begin());
  for (ibnbd_queue& queue : session->queues) {
    ::close(queue.fd);
  }
  delete session;
  --switches().sessions;
  return 0;
}

int ibnbd_device_open(ibnbd_session* session, const char* name, const ibnbd_device_options* options,
                      ibnbd_device** out) {
  if (std::strcmp(name, "missing") == 0) return Fail(-ENOENT, "No such file or directory");
  const bool writes = options->access != IBNBD_READ_ONLY;
  if (writes && std::strcmp(name, "readonly") == 0) {
    return Fail(-EPERM, "ibnbd_device_open: open readonly: Operation not permitted");
  }
  auto device = std::make_unique<ibnbd_device>();
  device->name = name;
  device->size = switches().device_size.load();
  device->id = switches().volume_id.load();
  device->read_only = !writes;
  device->memory =
      static_cast<std::byte*>(::mmap(nullptr, device->size, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  *out = device.get();
  session->devices[name] = std::move(device);
  return 0;
}

int ibnbd_session_list(ibnbd_session*, uint32_t, ibnbd_export_fn fn, void* opaque) {
  ibnbd_export_info info{};
  std::strcpy(info.name, "readonly");
  info.flags = IBNBD_EXPORT_READ_ONLY;
  return fn(opaque, &info);
}

int ibnbd_device_get_info(ibnbd_device* device, struct ibnbd_device_info* out) {
  if (const int error = switches().fail_info.load(); error != 0) {
    return Fail(error, "ibnbd_device_get_info: no answer");
  }
  out->volume_id = device->id;
  out->size = device->size;
  out->logical_block_size = out->physical_block_size = switches().logical_block_size.load();
  out->io_size_max = 128 << 10;
  out->discard_max = switches().can_discard ? 1u << 30 : 0;
  out->write_zeroes_max = switches().can_write_zeroes ? 1u << 30 : 0;
  out->flags = switches().device_flags.load();
  if (device->read_only) out->flags |= IBNBD_DEVICE_READ_ONLY;
  return 0;
}

int ibnbd_buffer_alloc(ibnbd_session* session, size_t size, ibnbd_buffer** out) {
  *out = new ibnbd_buffer{session,
                          ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
                          size};
  ++switches().buffers;
  if (session != nullptr) {
    std::lock_guard<std::mutex> lock(session->mutex);
    session->buffers.insert(*out);
  }
  return 0;
}
void* ibnbd_buffer_data(const ibnbd_buffer* buffer) { return buffer->memory; }
size_t ibnbd_buffer_size(const ibnbd_buffer* buffer) { return buffer->size; }
void ibnbd_buffer_free(ibnbd_buffer* buffer) {
  if (buffer == nullptr) return;
  if (buffer->session != nullptr) {
    std::lock_guard<std::mutex> lock(buffer->session->mutex);
    buffer->session->buffers.erase(buffer);
  }
  ::munmap(buffer->memory, buffer->size);
  delete buffer;
  --switches().buffers;
}

ibnbd_queue* ibnbd_session_queue(ibnbd_session* session, uint32_t index) {
  return &session->queues[index];
}

int ibnbd_submit(ibnbd_queue* queue, ibnbd_device* device, ibnbd_io* io) {
  if (const int error = Check(*device, *io); error != 0) return error;
  if (queue->pending.size() >= switches().io_depth_max) return -EAGAIN;
  queue->pending.push_back({device, io});
  return 0;
}

int ibnbd_queue_poll(ibnbd_queue* queue, uint32_t) {
  const bool hangs = switches().hang_queue == queue->index;
  while (hangs && (switches().hang_queue == queue->index || switches().hangs_for_good)) {
    ::usleep(1000);
  }
  if (switches().hold) return 0;
  queue->batch.clear();
  queue->batch.swap(queue->pending);
  for (const ibnbd_queue::Entry& entry : queue->batch) {
    int result = Execute(*entry.device, *entry.io);
    if (entry.io->op == IBNBD_OP_FLUSH && queue->index == switches().fail_flush_on_queue) {
      result = -EIO;
    }
    ++switches().ios_done;
    entry.io->done(entry.io, result);
  }
  return static_cast<int>(queue->batch.size());
}

int ibnbd_queue_wait(ibnbd_queue* queue, int) { return ibnbd_queue_poll(queue, 0); }
int ibnbd_queue_flush(ibnbd_queue*) { return 0; }
int ibnbd_queue_prepare_sleep(ibnbd_queue* queue) {
  return !switches().hold && !queue->pending.empty() ? 1 : 0;
}
// A test that releases `hold` must make the loop turn by itself: the next tick does, too.
int ibnbd_queue_fd(ibnbd_queue* queue) { return queue->fd; }

}  // extern "C"
