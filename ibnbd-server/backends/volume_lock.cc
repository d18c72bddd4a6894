// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/volume_lock.h"

#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace ibnbd {

// The locks of this process on one volume.  The mutex is held while the file system is asked.
struct VolumeLock::Group {
  std::mutex mutex;
  std::vector<VolumeLock*> locks;
};

// By device and inode.  Nobody waits for a file system while he has this mutex.
struct VolumeLock::Registry {
  using Volume = std::pair<std::uint64_t, std::uint64_t>;
  static std::shared_ptr<Group> GroupOf(const Volume& volume) {
    static Registry* registry = new Registry;
    const std::lock_guard<std::mutex> guard(registry->mutex);
    std::erase_if(registry->groups, [](const auto& item) { return item.second.expired(); });
    std::weak_ptr<Group>& entry = registry->groups[volume];
    std::shared_ptr<Group> group = entry.lock();
    if (group == nullptr) entry = group = std::make_shared<Group>();
    return group;
  }
  std::mutex mutex;
  std::map<Volume, std::weak_ptr<Group>> groups;
};

namespace {

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
  std::shared_ptr<Group> group = Registry::GroupOf(
      is_device ? Registry::Volume{st.st_rdev, 0} : Registry::Volume{st.st_dev, st.st_ino});
  const std::lock_guard<std::mutex> guard(group->mutex);
  std::vector<VolumeLock*> readers;
  bool has_writer = false;
  for (VolumeLock* other : group->locks) {
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
  group->locks.push_back(this);
  group_ = group;
  return 0;
}

VolumeLock::~VolumeLock() {
  if (fd_ < 0) return;
  const std::lock_guard<std::mutex> guard(group_->mutex);
  std::erase(group_->locks, this);
  if (!exclusive_) return;
  (void)Flock(fd_, LOCK_SH);  // So that ours can have theirs before we let go.
  for (const VolumeLock* other : group_->locks) (void)Flock(other->fd_, LOCK_SH);
}

}  // namespace ibnbd
