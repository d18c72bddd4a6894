// SPDX-License-Identifier: Apache-2.0
#include "capi/control.h"

#include <algorithm>
#include <cerrno>

namespace ibnbd::capi {
namespace {
// Between two looks at queues that nobody else polls.
constexpr std::int64_t kPauseNsMin = 50 * kNsPerUs;
constexpr std::int64_t kPauseNsMax = 2 * kNsPerMs;
}  // namespace

bool WaitAndDrive(ibnbd_session& session, Event& event, std::int64_t timeout_ns) {
  const std::int64_t deadline_ns = session.clock.NowNs() + timeout_ns;
  std::int64_t pause_ns = kPauseNsMin;
  for (;;) {
    bool owns_some = false;
    bool worked = false;
    for (const auto& queue : session.queues) {
      if (queue->owner.load(std::memory_order_relaxed) != pthread_self()) continue;
      owns_some = true;
      worked |= queue->RunTurnIfOwned();
    }
    if (event.done()) return true;
    const std::int64_t left_ns = deadline_ns - session.clock.NowNs();
    if (left_ns <= 0) return false;
    if (worked) {
      pause_ns = kPauseNsMin;
      continue;
    }
    if (event.WaitFor(owns_some ? std::min(pause_ns, left_ns) : left_ns)) return true;
    pause_ns = std::min(pause_ns * 2, kPauseNsMax);
  }
}

int CheckSession(const char* call, const ibnbd_session* session) {
  if (session == nullptr) return Fail(-EINVAL, "%s: the session is NULL", call);
  if (!IsOpenHandle(session)) return Fail(-EINVAL, "%s: this is not an open session", call);
  if (InCallback()) return Fail(-EDEADLK, "%s: must not be called from a done callback", call);
  return 0;
}

int CheckDevice(const char* call, const ibnbd_device* device) {
  if (device == nullptr) return Fail(-EINVAL, "%s: the device is NULL", call);
  if (!IsOpenHandle(device)) {
    return Fail(-EINVAL, "%s: this is not a device of an open session", call);
  }
  if (device->closing.load(std::memory_order_acquire)) {
    return Fail(-ENODEV, "%s: %s was closed", call, device->info.name.c_str());
  }
  if (InCallback()) return Fail(-EDEADLK, "%s: must not be called from a done callback", call);
  return 0;
}

}  // namespace ibnbd::capi
