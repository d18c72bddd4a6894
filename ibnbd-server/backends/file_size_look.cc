// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/file_size_look.h"

#include <fcntl.h>

#include "ibnbd-server/bounded_call.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __lsan_ignore_object(const void* object);  // <sanitizer/lsan_interface.h>
#endif

namespace ibnbd {

void FileSizeLook::Start() {
  if (std::exchange(under_way_, true)) return;
  believed_ = volume_->intact_bytes();
  io_uring_sqe* sqe = ring_.GetSqe();
  io_uring_prep_statx(sqe, volume_->fd(), "", AT_EMPTY_PATH, STATX_SIZE, &found_);
  ring_.Prepare(sqe, *this);
}

// One that is late, of a size that was believed until then, is taken up by the next.
void FileSizeLook::OnCqe(int result, std::uint32_t) {
  under_way_ = false;
  if (result == 0) (void)volume_->NoteSize(believed_, found_.stx_size);
  if (!released_) return;
  // We may be the last to hold the volume: closing it asks the file system, too.
  (void)BoundedCall().Run([volume = std::move(volume_)] {}, 0);
  delete this;
}

// Not the last: who has the queue that lets us go has its volume.
void FileSizeLook::Release() {
  released_ = true;
  if (!under_way_) return delete this;
#if defined(__SANITIZE_ADDRESS__)
  __lsan_ignore_object(this);  // The kernel's: if the ring ends before the answer, it stays.
#endif
}

}  // namespace ibnbd
