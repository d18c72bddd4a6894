// SPDX-License-Identifier: Apache-2.0
// The lock (flock) that keeps a second server off a volume.  It sits on the very descriptor that
// the IO goes through, so that the kernel keeps it until the last IO has landed, even if we are
// killed.
//
// Within one server a volume may be exported once for writing and any number of times read-only.
// flock knows descriptors, not processes, and would refuse that: so while one of ours holds the
// exclusive lock, our readers go without, and get theirs back when the writer leaves.  A file
// system that does not answer keeps those waiting who want a lock on the same volume, and nobody
// else.  Any control thread.
#pragma once

#include <memory>

namespace ibnbd {

class VolumeLock {
 public:
  VolumeLock() = default;
  ~VolumeLock();  // Before the descriptor is closed.
  VolumeLock(const VolumeLock&) = delete;
  VolumeLock& operator=(const VolumeLock&) = delete;

  // 0; -EWOULDBLOCK: another process has it; -EBUSY: this server exports it for writing already; or
  // what flock() said.  At most once successfully.
  int TryLock(int fd, bool exclusive);

 private:
  struct Group;
  struct Registry;

  int fd_ = -1;  // Not owned; -1: not locked.
  bool exclusive_ = false;
  std::shared_ptr<Group> group_;  // All of this volume.
};

}  // namespace ibnbd
