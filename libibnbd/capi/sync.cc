// SPDX-License-Identifier: Apache-2.0
// Synchronous IO: a loop over submit and wait, so that there is one data path to get right.
#include <cerrno>
#include <cstring>

#include "capi/error.h"
#include "capi/handles.h"

using ibnbd::capi::Fail;
using ibnbd::capi::Succeed;

namespace {

struct Outcome {
  bool done = false;
  int result = 0;
};

int RunSynchronously(const char* call, ibnbd_queue* queue, ibnbd_device* device, ibnbd_io& io) {
  if (ibnbd::capi::InCallback()) {
    return Fail(-EDEADLK, "%s: must not be called from a done callback", call);
  }
  Outcome outcome;
  io.opaque = &outcome;
  io.done = [](ibnbd_io* finished, int result) {
    *static_cast<Outcome*>(finished->opaque) = {true, result};
  };
  for (;;) {
    const int error = ibnbd_submit(queue, device, &io);
    if (error == 0) break;
    if (error != -EAGAIN) return error;
    ibnbd_queue_wait(queue, -1);  // The queue is full: others finish first.
  }
  while (!outcome.done) ibnbd_queue_wait(queue, -1);
  if (outcome.result == 0) return Succeed();
  return Fail(outcome.result, "%s: %llu bytes at %llu on %s: %s", call,
              static_cast<unsigned long long>(io.length),
              static_cast<unsigned long long>(io.offset), device->info.name.c_str(),
              std::strerror(-outcome.result));
}

ibnbd_io MakeIo(std::uint32_t op, std::uint32_t flags, std::uint64_t length, std::uint64_t offset) {
  ibnbd_io io = {};
  io.op = op;
  io.flags = flags;
  io.length = length;
  io.offset = offset;
  return io;
}

}  // namespace

int ibnbd_pread(ibnbd_queue* queue, ibnbd_device* device, void* data, size_t size,
                uint64_t offset) {
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, size, offset);
  io.data = data;
  return RunSynchronously("ibnbd_pread", queue, device, io);
}

int ibnbd_pwrite(ibnbd_queue* queue, ibnbd_device* device, const void* data, size_t size,
                 uint64_t offset, uint32_t flags) {
  ibnbd_io io = MakeIo(IBNBD_OP_WRITE, flags, size, offset);
  io.data = const_cast<void*>(data);  // A write only reads it.
  return RunSynchronously("ibnbd_pwrite", queue, device, io);
}

int ibnbd_flush(ibnbd_queue* queue, ibnbd_device* device) {
  ibnbd_io io = MakeIo(IBNBD_OP_FLUSH, 0, 0, 0);
  return RunSynchronously("ibnbd_flush", queue, device, io);
}

int ibnbd_discard(ibnbd_queue* queue, ibnbd_device* device, uint64_t size, uint64_t offset) {
  ibnbd_io io = MakeIo(IBNBD_OP_DISCARD, 0, size, offset);
  return RunSynchronously("ibnbd_discard", queue, device, io);
}

int ibnbd_write_zeroes(ibnbd_queue* queue, ibnbd_device* device, uint64_t size, uint64_t offset,
                       uint32_t flags) {
  ibnbd_io io = MakeIo(IBNBD_OP_WRITE_ZEROES, flags, size, offset);
  return RunSynchronously("ibnbd_write_zeroes", queue, device, io);
}
