// SPDX-License-Identifier: Apache-2.0
// See first_read.h.
#include "ibnbd-client/devices/first_read.h"

#include <cerrno>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "ibnbd-client/api.h"

namespace ibnbd::client {
namespace {

// For what is outstanding to come back from a volume that was closed.
constexpr absl::Duration kCloseTime = absl::Seconds(5);

struct FirstRead {
  ~FirstRead() { ibnbd_buffer_free(buffer); }
  ibnbd_buffer* buffer = nullptr;
  ibnbd_io io{};
  absl::Notification done;
};

// A queue may be full of the IOs of other devices.
int Submit(DeviceLoops& loops, const OpenVolume& volume, absl::Time deadline, FirstRead& read) {
  while (true) {
    int result = 0;
    loops.Call(0, [&] {
      result = ibnbd_submit(ibnbd_session_queue(volume.session, 0), volume.device, &read.io);
      if (result == 0) loops.loop(0).NoteSubmitted();
    });
    if (result != -EAGAIN || absl::Now() >= deadline) return result;
    absl::SleepFor(absl::Milliseconds(1));
  }
}

}  // namespace

absl::Status ReadFirstBlock(DeviceLoops& loops, const OpenVolume& volume, std::int64_t timeout_ms) {
  const std::uint32_t size = volume.info.logical_block_size;
  if (volume.info.size < size) return absl::OkStatus();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(timeout_ms);
  auto read = std::make_unique<FirstRead>();
  if (const int error = ibnbd_buffer_alloc(volume.session, size, &read->buffer)) {
    return ApiStatus(error);
  }
  read->io.op = IBNBD_OP_READ;
  read->io.length = size;
  read->io.data = ibnbd_buffer_data(read->buffer);
  read->io.buffer = read->buffer;
  read->io.opaque = &read->done;
  read->io.done = [](ibnbd_io* io, int) { static_cast<absl::Notification*>(io->opaque)->Notify(); };
  const int error = Submit(loops, volume, deadline, *read);
  if (error != 0 && error != -EAGAIN) return absl::OkStatus();  // The kernel will see the same.
  if (error == 0 && read->done.WaitForNotificationWithDeadline(deadline)) return absl::OkStatus();
  ibnbd_device_close(volume.device, 0);
  if (error == 0 && !read->done.WaitForNotificationWithTimeout(kCloseTime)) {
    LOG_ERROR("a read is left behind in a volume that was closed");
    (void)read.release();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("read the first block: no answer in ", timeout_ms,
                   " ms; does the server's disk hang, or is the server away?"));
}

}  // namespace ibnbd::client
