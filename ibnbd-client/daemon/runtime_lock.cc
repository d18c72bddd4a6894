// SPDX-License-Identifier: Apache-2.0
// See runtime_lock.h.
#include "ibnbd-client/daemon/runtime_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

// A lock that says whose it is.
struct flock WholeFile() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

// It runs no more code of ours: dead, or SIGKILL waits for it.  proc(5), status.
bool IsDying(pid_t process) {
  constexpr std::uint64_t kKill = std::uint64_t{1} << (SIGKILL - 1);
  std::ifstream status(absl::StrCat("/proc/", process, "/status"));
  std::string word;
  while (status >> word) {
    if (word == "State:" && status >> word && (word == "Z" || word == "X")) return true;
    std::uint64_t pending = 0;
    if ((word == "SigPnd:" || word == "ShdPnd:") && status >> std::hex >> pending &&
        (pending & kKill) != 0) {
      return true;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<UniqueFd> LockRuntime(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("lock ", path));
  struct flock lock = WholeFile();
  if (::fcntl(fd.get(), F_SETLK, &lock) == 0) return fd;
  if (errno != EAGAIN && errno != EACCES) return ErrnoStatus(errno, absl::StrCat("lock ", path));
  if (::fcntl(fd.get(), F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) {
    lock = WholeFile();  // Gone meanwhile.
    if (::fcntl(fd.get(), F_SETLK, &lock) == 0) return fd;
  }
  if (lock.l_pid > 0 && IsDying(lock.l_pid)) {
    LOG_WARN("process ", lock.l_pid, " was killed and is not gone yet: going on without it");
    std::thread([number = fd.get()] {  // A lock is a process's: this one gets it in time.
      struct flock ours = WholeFile();
      (void)::fcntl(number, F_SETLKW, &ours);
    })
        .detach();
    return fd;
  }
  return absl::AlreadyExistsError(
      absl::StrCat("lock ", path, ": the daemon that runs already has it, process ", lock.l_pid));
}

}  // namespace ibnbd::client
