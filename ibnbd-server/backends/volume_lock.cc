// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/volume_lock.h"

#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <vector>

namespace ibnbd {
namespace {

// Every lock of this process.  A few dozen: searched from end to end.
struct Registry {
  std::mutex mutex;
  std::vector<VolumeLock*> locks;
};
Registry& GetRegistry() {
  static Registry* registry = new Registry;
  return *registry;
}

int Flock(int fd, int operation) {
  while (flock(fd, operation | LOCK_NB) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

}  // namespace

int VolumeLock::TryLock(int fd, bool exclusive) {
  struct stat st {};
  if (fstat(fd, &st) != 0) return -errno;
  const bool is_device = S_ISBLK(st.st_mode);
  device_ = is_device ? st.st_rdev : st.st_dev;
  inode_ = is_device ? 0 : st.st_ino;

  Registry& registry = GetRegistry();
  const std::lock_guard<std::mutex> guard(registry.mutex);
  std::vector<VolumeLock*> readers;
  bool has_writer = false;
  for (VolumeLock* other : registry.locks) {
    if (other->device_ != device_ || other->inode_ != inode_) continue;
    has_writer |= other->exclusive_;
    if (!other->exclusive_) readers.push_back(other);
  }
  if (exclusive) {
    if (has_writer) return -EBUSY;
    for (const VolumeLock* reader : readers) (void)Flock(reader->fd_, LOCK_UN);
  }
  if (!has_writer) {
    if (const int error = Flock(fd, exclusive ? LOCK_EX : LOCK_SH); error != 0) {
      for (const VolumeLock* reader : readers) (void)Flock(reader->fd_, LOCK_SH);
      return error;
    }
  }
  fd_ = fd;
  exclusive_ = exclusive;
  registry.locks.push_back(this);
  return 0;
}

VolumeLock::~VolumeLock() {
  if (fd_ < 0) return;
  Registry& registry = GetRegistry();
  const std::lock_guard<std::mutex> guard(registry.mutex);
  std::erase(registry.locks, this);
  if (!exclusive_) return;
  (void)Flock(fd_, LOCK_SH);  // So that ours can have theirs before we let go.
  for (const VolumeLock* other : registry.locks) {
    if (other->device_ == device_ && other->inode_ == inode_) (void)Flock(other->fd_, LOCK_SH);
  }
}

}  // namespace ibnbd
