// SPDX-License-Identifier: Apache-2.0
// ibnbd_submit(), and the way back to the done callback.  On the thread that owns the queue; no
// allocation, no lock, no log line.  Everything that can be known to be wrong is refused here, with
// a text; what comes behind may rely on it.
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "capi/error.h"
#include "capi/handles.h"

using ibnbd::capi::Fail;
using ibnbd::capi::FailFast;
using ibnbd::capi::kStateWord;
using ibnbd::capi::Succeed;
using ibnbd::capi::UserIo;
using ibnbd::rnbd::DeviceInfo;
using ibnbd::rnbd::IoOp;

namespace {

constexpr char kCall[] = "ibnbd_submit";
constexpr std::uint64_t kTransferMax = (std::uint64_t{2} << 30) - 4096;  // Reads and writes.
// The state word of an IO that is outstanding; mixed with its address, so that a copy is not.
constexpr std::uint64_t kOutstanding = 0x69626e62642d696f;

std::uint64_t OutstandingMark(const ibnbd_io& io) {
  return kOutstanding ^ reinterpret_cast<std::uintptr_t>(&io);
}

struct OpRule {
  const char* name;
  IoOp op;
  std::uint32_t flags_allowed;
  bool has_data, writes;
};
constexpr OpRule kOpRules[] = {
    {"read", IoOp::kRead, 0, true, false},
    {"write", IoOp::kWrite, IBNBD_IO_FUA | IBNBD_IO_PREFLUSH, true, true},
    {"flush", IoOp::kFlush, 0, false, false},
    {"discard", IoOp::kDiscard, 0, false, true},
    {"secure erase", IoOp::kSecureErase, 0, false, true},
    {"write zeroes", IoOp::kWriteZeroes, IBNBD_IO_FUA | IBNBD_IO_NO_UNMAP, false, true},
};
static_assert(IBNBD_OP_READ == 0 && IBNBD_OP_WRITE == 1 && IBNBD_OP_FLUSH == 2 &&
              IBNBD_OP_DISCARD == 3 && IBNBD_OP_SECURE_ERASE == 4 && IBNBD_OP_WRITE_ZEROES == 5);

int CheckRange(const OpRule& rule, const ibnbd_device& device, const ibnbd_io& io) {
  const DeviceInfo& info = device.info;
  const auto offset = static_cast<unsigned long long>(io.offset);
  const auto length = static_cast<unsigned long long>(io.length);
  if (rule.op == IoOp::kFlush) {
    if (io.offset == 0 && io.length == 0) return 0;
    return Fail(-EINVAL, "%s: flush of %s: offset and length must be 0", kCall, info.name.c_str());
  }
  if (io.length == 0) {
    return Fail(-EINVAL, "%s: %s on %s: the length is 0", kCall, rule.name, info.name.c_str());
  }
  if (io.offset % info.logical_block_size != 0 || io.length % info.logical_block_size != 0) {
    return Fail(-EINVAL, "%s: %s of %llu bytes at %llu on %s: not a multiple of its block size %u",
                kCall, rule.name, length, offset, info.name.c_str(), info.logical_block_size);
  }
  const std::uint64_t size = device.size_bytes.load(std::memory_order_relaxed);
  if (io.offset > size || io.length > size - io.offset) {
    return Fail(-EINVAL, "%s: %s of %llu bytes at %llu ends behind the %llu bytes of %s", kCall,
                rule.name, length, offset, static_cast<unsigned long long>(size),
                info.name.c_str());
  }
  return 0;
}

int CheckData(const OpRule& rule, const ibnbd_queue& queue, const ibnbd_io& io) {
  if (!rule.has_data) {
    if (io.data == nullptr && io.buffer == nullptr) return 0;
    return Fail(-EINVAL, "%s: a %s has no data: data and buffer must be NULL", kCall, rule.name);
  }
  if (io.data == nullptr) return Fail(-EINVAL, "%s: %s: data is NULL", kCall, rule.name);
  if (io.length > kTransferMax) {
    return Fail(-EINVAL, "%s: %s of %llu bytes: at most %llu at once", kCall, rule.name,
                static_cast<unsigned long long>(io.length),
                static_cast<unsigned long long>(kTransferMax));
  }
  if (io.buffer == nullptr) {
    if (queue.bounce.exists()) return 0;
    return Fail(-EINVAL, "%s: %s: the data is in no buffer, and the session has no bounce_bytes",
                kCall, rule.name);
  }
  if (io.buffer->session != &queue.session) {
    return Fail(-EINVAL, "%s: %s: the buffer belongs to another session", kCall, rule.name);
  }
  const auto start = reinterpret_cast<std::uintptr_t>(io.buffer->memory);
  const auto data = reinterpret_cast<std::uintptr_t>(io.data);
  const std::size_t size = io.buffer->size;
  if (data < start || data - start > size || io.length > size - (data - start)) {
    return Fail(-EINVAL, "%s: %s: the data is not inside the buffer", kCall, rule.name);
  }
  return 0;
}

int CheckPermission(const OpRule& rule, const ibnbd_device& device) {
  const DeviceInfo& info = device.info;
  if (rule.writes && device.read_only) {
    return Fail(-EPERM, "%s: %s on %s: the device is read-only", kCall, rule.name,
                info.name.c_str());
  }
  const bool unsupported = (rule.op == IoOp::kDiscard && info.discard_bytes_max == 0) ||
                           (rule.op == IoOp::kWriteZeroes && info.write_zeroes_bytes_max == 0) ||
                           (rule.op == IoOp::kSecureErase && !info.secure_erase);
  if (!unsupported) return 0;
  return Fail(-EOPNOTSUPP, "%s: %s does not support %s", kCall, info.name.c_str(), rule.name);
}

int CheckHandles(const ibnbd_queue& queue, const ibnbd_device& device, const ibnbd_io& io) {
  if (device.session != &queue.session) {
    return FailFast(-EINVAL, "ibnbd_submit: the device and the queue are of different sessions");
  }
  if (device.closing.load(std::memory_order_acquire)) {
    return Fail(-ENODEV, "%s: %s was closed", kCall, device.info.name.c_str());
  }
  if (io.internal[kStateWord] == OutstandingMark(io)) {
    return FailFast(-EBUSY, "ibnbd_submit: this IO is outstanding already");
  }
  if (io.done == nullptr) return FailFast(-EINVAL, "ibnbd_submit: the done callback is NULL");
  if ((io.reserved[0] | io.reserved[1]) != 0) {
    return FailFast(-EINVAL, "ibnbd_submit: a reserved field is not 0");
  }
  return 0;
}

// All that can be wrong with an IO, except that the queue is full.
int Check(const ibnbd_queue& queue, const ibnbd_device& device, const ibnbd_io& io) {
  if (const int error = CheckHandles(queue, device, io)) return error;
  if (io.op >= std::size(kOpRules)) return Fail(-EINVAL, "%s: unknown op %u", kCall, io.op);
  const OpRule& rule = kOpRules[io.op];
  if ((io.flags & ~rule.flags_allowed) != 0) {
    return Fail(-EINVAL, "%s: flags 0x%x are unknown or do not fit a %s", kCall,
                io.flags & ~rule.flags_allowed, rule.name);
  }
  if (const int error = CheckPermission(rule, device)) return error;
  if (const int error = CheckRange(rule, device, io)) return error;
  return CheckData(rule, queue, io);
}

// What the application is told: an IO that was cut off was cancelled, whatever ended it below.
int UserError(const ibnbd_device& device, int error) {
  const bool cut_off =
      error == -ENOTCONN || error == -ECONNABORTED || error == -ESHUTDOWN || error == -ETIMEDOUT;
  return cut_off && device.cut.load(std::memory_order_relaxed) ? -ECANCELED : error;
}

}  // namespace

namespace ibnbd::capi {

UserIo::UserIo(ibnbd_io& its_io, ibnbd_queue& its_queue, ibnbd_device& its_device)
    : io(its_io), queue(its_queue), device(its_device) {
  op = kOpRules[io.op].op;
  fua = (io.flags & IBNBD_IO_FUA) != 0;
  preflush = (io.flags & IBNBD_IO_PREFLUSH) != 0;
  no_unmap = (io.flags & IBNBD_IO_NO_UNMAP) != 0;
  offset = io.offset;
  length = io.length;
  if (io.buffer == nullptr) return;
  data = {static_cast<std::byte*>(io.data), io.length};
  keys = &io.buffer->region->keys();
}

void UserIo::OnIoDone(int error) {
  result = error;
  queue.finished.PushBack(*this);
}

}  // namespace ibnbd::capi

int ibnbd_submit(ibnbd_queue* queue, ibnbd_device* device, struct ibnbd_io* io) {
  if (queue == nullptr) return FailFast(-EINVAL, "ibnbd_submit: the queue is NULL");
  if (device == nullptr) return FailFast(-EINVAL, "ibnbd_submit: the device is NULL");
  if (io == nullptr) return FailFast(-EINVAL, "ibnbd_submit: the IO is NULL");
  if (const int error = queue->Own()) return error;
  if (const int error = Check(*queue, *device, *io)) return error;
  if (queue->outstanding >= queue->outstanding_max) {
    return FailFast(-EAGAIN, "ibnbd_submit: io_depth_max IOs are outstanding on this queue");
  }
  ibnbd_device::Lane& lane = device->lanes[queue->index];
  UserIo* user_io = new (io->internal) UserIo(*io, *queue, *device);
  const bool bounces = kOpRules[io->op].has_data && io->buffer == nullptr;
  const int error = bounces ? queue->bounce.Submit(*user_io) : lane.queue->Submit(*user_io);
  if (error != 0) {
    user_io->~UserIo();
    io->internal[kStateWord] = 0;
    return Fail(error, "%s: %s on %s: %s", kCall, kOpRules[io->op].name, device->info.name.c_str(),
                std::strerror(-error));
  }
  io->internal[kStateWord] = OutstandingMark(*io);
  ++queue->outstanding;
  ++lane.outstanding;
  return Succeed();
}

bool ibnbd_queue::Poll() {
  bounce.Advance();
  if (finished.empty()) return false;
  const int before = callbacks_run;
  ibnbd::capi::SetInCallback(true);
  while (budget_left > 0 && !finished.empty()) {
    UserIo& user_io = finished.PopFront();
    ibnbd_io& io = user_io.io;
    ibnbd_device& device = user_io.device;
    const int result = UserError(device, user_io.result);
    user_io.~UserIo();
    io.internal[kStateWord] = 0;
    --budget_left;
    ++callbacks_run;
    --outstanding;
    ibnbd_device::Lane& lane = device.lanes[index];
    --lane.outstanding;
    io.done(&io, result);
    if (lane.outstanding == 0 && lane.drained != nullptr) std::exchange(lane.drained, {})->Signal();
  }
  ibnbd::capi::SetInCallback(false);
  return callbacks_run != before;
}
