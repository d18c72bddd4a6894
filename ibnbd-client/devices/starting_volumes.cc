// SPDX-License-Identifier: Apache-2.0
// See starting_volumes.h.
#include "ibnbd-client/devices/starting_volumes.h"

#include <algorithm>

#include "absl/time/time.h"

namespace ibnbd::client {

absl::Status StartingVolumes::Add(ibnbd_device* device) {
  absl::MutexLock lock(&mutex_);
  if (ended_) return absl::UnavailableError("this process is about to end");
  devices_.push_back(device);
  return absl::OkStatus();
}

bool StartingVolumes::Keep(ibnbd_device* device) {
  absl::MutexLock lock(&mutex_);
  if (ended_) return false;
  devices_.erase(std::remove(devices_.begin(), devices_.end(), device), devices_.end());
  return true;
}

void StartingVolumes::Remove(ibnbd_device* device) {
  absl::MutexLock lock(&mutex_);
  devices_.erase(std::remove(devices_.begin(), devices_.end(), device), devices_.end());
}

bool StartingVolumes::End(std::int64_t timeout_ms) {
  absl::MutexLock lock(&mutex_);
  ended_ = true;
  // With the lock held: nobody closes their sessions meanwhile.
  for (ibnbd_device* device : devices_) ibnbd_device_close(device, 0);
  const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return devices_.empty(); };
  return mutex_.AwaitWithTimeout(absl::Condition(&none), absl::Milliseconds(timeout_ms));
}

}  // namespace ibnbd::client
