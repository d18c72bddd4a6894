// SPDX-License-Identifier: Apache-2.0
#include "base/memory_pressure.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace ibnbd {
namespace {

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

// Instead of 8 MiB, which nobody uses, each.
constexpr std::size_t kThreadStackSize = 1u << 20;

absl::Status LimitStacks() {
  pthread_attr_t attributes;
  int error = pthread_attr_init(&attributes);
  if (error != 0) return ErrnoStatus(error, "pthread_attr_init");
  error = pthread_attr_setstacksize(&attributes, kThreadStackSize);
  if (error == 0) error = pthread_setattr_default_np(&attributes);
  (void)pthread_attr_destroy(&attributes);
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "the size of stacks");
}

}  // namespace

absl::Status BecomeIoFlusher() {
  if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, "PR_SET_IO_FLUSHER");
}

absl::Status LockAllMemory() {
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  if (setrlimit(RLIMIT_MEMLOCK, &unlimited) != 0) {
    return ErrnoStatus(errno, "lock memory: lift its limit (LimitMEMLOCK=infinity, ulimit -l)");
  }
  RETURN_IF_ERROR(LimitStacks());
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) return ErrnoStatus(errno, "mlockall");
  return absl::OkStatus();
}

absl::Status BeNobodysVictim() {
  const UniqueFd file(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  constexpr char kNever[] = "-1000";
  if (file.valid() && write(file.get(), kNever, sizeof kNever - 1) > 0) return absl::OkStatus();
  return ErrnoStatus(errno, "oom_score_adj -1000");
}

}  // namespace ibnbd
