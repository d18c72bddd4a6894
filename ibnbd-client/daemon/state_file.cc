// SPDX-License-Identifier: Apache-2.0
// See state_file.h.
#include "ibnbd-client/daemon/state_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace ibnbd::client {
namespace {

constexpr std::size_t kSizeMax = 16u << 20;

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT) return std::string();
    return ErrnoStatus(errno, absl::StrCat("read ", path));
  }
  std::string text;
  char piece[4096];
  while (text.size() <= kSizeMax) {
    const ssize_t got = ::read(fd.get(), piece, sizeof(piece));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (got == 0) return text;
    text.append(piece, static_cast<std::size_t>(got));
  }
  return absl::InvalidArgumentError(absl::StrCat("read ", path, ": longer than 16 MiB"));
}

absl::Status ReplaceFile(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("write ", temporary));
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t put = ::write(fd.get(), text.data() + done, text.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return ErrnoStatus(errno, absl::StrCat("write ", temporary));
    done += static_cast<std::size_t>(put);
  }
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("write ", temporary));
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rename ", temporary, " to ", path));
  }
  return absl::OkStatus();
}

}  // namespace ibnbd::client
