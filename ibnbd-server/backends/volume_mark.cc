// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/volume_mark.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

constexpr char kName[] = "user.ibnbd.volume";
constexpr std::size_t kSize = 56;  // Always the same, so that a full disk does not matter.

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

struct Mark {
  unsigned generation = 0;
  bool clean = false;
  long long seconds = 0;
  long nanoseconds = 0;
};

bool IsTrusted(int fd) {
  struct statfs info {};
  if (fstatfs(fd, &info) != 0) return false;
  const auto type = static_cast<unsigned long>(info.f_type) & 0xffffffff;
  return type == EXT4_SUPER_MAGIC || type == XFS_SUPER_MAGIC || type == BTRFS_SUPER_MAGIC ||
         type == TMPFS_MAGIC;
}

// None: there is none, or one that we do not understand.
std::optional<Mark> Read(int fd) {
  std::array<char, kSize + 1> text{};
  if (fgetxattr(fd, kName, text.data(), kSize) <= 0) return std::nullopt;
  Mark mark;
  std::array<char, 8> state{};
  const int found = std::sscanf(text.data(), "1 generation %u %7s %lld.%ld", &mark.generation,
                                state.data(), &mark.seconds, &mark.nanoseconds);
  if (found < 2 || mark.generation > 0xffff) return std::nullopt;
  mark.clean = found == 4 && std::strcmp(state.data(), "closed") == 0;
  return mark;
}

bool Write(int fd, const Mark& mark) {
  std::array<char, kSize + 1> text{};
  const int length =
      std::snprintf(text.data(), text.size(), "1 generation %u %s %lld.%09ld", mark.generation,
                    mark.clean ? "closed" : "open", mark.seconds, mark.nanoseconds);
  if (length < 0 || static_cast<std::size_t>(length) > kSize) return false;
  std::memset(text.data() + length, ' ', kSize - static_cast<std::size_t>(length));
  return fsetxattr(fd, kName, text.data(), kSize, 0) == 0;
}

}  // namespace

VolumeMark VolumeMark::Open(int fd, bool writable, const std::string& path) {
  VolumeMark self;
  if (!IsTrusted(fd)) return self;
  const std::optional<Mark> found = Read(fd);
  Mark mark = found.value_or(Mark());
  struct stat st {};
  if (fstat(fd, &st) != 0) return self;
  const bool changed =
      mark.clean && (st.st_mtim.tv_sec != mark.seconds || st.st_mtim.tv_nsec != mark.nanoseconds);
  if (writable && changed) {
    mark.generation = mark.generation == 0xffff ? 1 : mark.generation + 1;
    LOG_WARN("volume ", path, ": somebody has written to it while no server had it: this is ",
             "generation ", mark.generation, " of its content, and another volume to clients that ",
             "had the one before; they wait for `ibnbd-client remap`");
  }
  self.generation_ = static_cast<std::uint16_t>(mark.generation);
  self.writable_ = writable;
  if (writable) self.NoteOpen(fd, found.has_value(), path);
  return self;
}

// A full disk may refuse it.  A mark that says "closed" would accuse us if we were killed, so it is
// taken away; but not with a generation, without which the volume would be another one at once.
void VolumeMark::NoteOpen(int fd, bool had_mark, const std::string& path) const {
  if (Write(fd, {generation_, false, 0, 0})) return;
  const std::string why(ErrnoStatus(errno, kName).message());
  if (!had_mark || (generation_ == 0 && fremovexattr(fd, kName) == 0)) {
    LOG_INFO("volume ", path, ": changes by others are not noticed: ", why);
  } else {
    LOG_WARN("volume ", path, ": is another volume to its clients if this server is killed: ", why);
  }
}

void VolumeMark::Close(int fd) const {
  struct stat st {};
  if (!writable_ || fstat(fd, &st) != 0) return;
  (void)Write(fd, {generation_, true, st.st_mtim.tv_sec, st.st_mtim.tv_nsec});
}

}  // namespace ibnbd
