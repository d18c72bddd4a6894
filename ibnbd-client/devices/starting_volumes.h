// SPDX-License-Identifier: Apache-2.0
// The volumes whose block device the kernel is just making.  It reads their partition tables
// meanwhile, in a way that cannot be killed: a process that ended then would stay, and keep the
// device, until a reboot (decision 0009).  So who ends the process ends them first: their IO fails,
// and the kernel goes on.  Any thread.
#pragma once

#include <ibnbd/ibnbd.h>

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace ibnbd::client {

class StartingVolumes {
 public:
  // From now on to Keep() or Remove(), one of which must follow.  Unavailable after End().
  absl::Status Add(ibnbd_device* device);
  // It has been started.  False: End() has closed it; take the device away, and Remove() it.
  bool Keep(ibnbd_device* device);
  void Remove(ibnbd_device* device);
  // Closes all, lets no more begin, and waits until they are removed.  False: some are not.
  bool End(std::int64_t timeout_ms);

 private:
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<ibnbd_device*> devices_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ibnbd::client
