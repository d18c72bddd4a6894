// SPDX-License-Identifier: Apache-2.0
// See control_socket.h.
#include "ibnbd-client/daemon/control_socket.h"

#include <grp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

constexpr int kBacklog = 64;

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a socket's path has 1 to ", sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::StatusOr<UniqueFd> NewSocket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  return fd;
}

int Connect(int fd, const sockaddr_un& address) {
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  return ::connect(fd, generic, sizeof(address)) == 0 ? 0 : errno;
}

absl::Status Restrict(const std::string& path, const std::string& group) {
  if (group.empty()) return absl::OkStatus();
  errno = 0;
  const struct group* entry = ::getgrnam(group.c_str());  // One thread yet.
  if (entry == nullptr) {
    return errno != 0 ? ErrnoStatus(errno, absl::StrCat("group ", group))
                      : absl::NotFoundError(absl::StrCat("group ", group, ": there is none"));
  }
  if (::chown(path.c_str(), 0, entry->gr_gid) != 0 || ::chmod(path.c_str(), 0660) != 0) {
    return ErrnoStatus(errno, absl::StrCat("give ", path, " to group ", group));
  }
  return absl::OkStatus();
}

// Waits for `events`.
absl::Status Await(int fd, short events, absl::Time deadline, const char* what) {
  while (true) {
    const std::int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left_ms <= 0) return absl::DeadlineExceededError(absl::StrCat(what, ": timed out"));
    pollfd one{.fd = fd, .events = events, .revents = 0};
    const int ready = ::poll(&one, 1, static_cast<int>(std::min<std::int64_t>(left_ms, 60'000)));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, what);
  }
}

}  // namespace

absl::StatusOr<UniqueFd> ListenControl(const std::string& path, const std::string& group) {
  const int passed = sd_listen_fds(1);
  if (passed < 0) return ErrnoStatus(passed, "sockets of the service manager");
  if (passed == 1 && sd_is_socket(SD_LISTEN_FDS_START, AF_UNIX, SOCK_STREAM, 1) > 0) {
    return UniqueFd(SD_LISTEN_FDS_START);
  }
  if (passed != 0) {
    return absl::InvalidArgumentError(
        "the service manager passed something else than a unix socket");
  }
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  ASSIGN_OR_RETURN(UniqueFd probe, NewSocket());
  const int found = Connect(probe.get(), address);
  if (found == 0 || found == EAGAIN) {
    return absl::AlreadyExistsError(
        absl::StrCat("listen on ", path, ": a daemon is there already"));
  }
  if (found == ECONNREFUSED) (void)::unlink(path.c_str());
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  ASSIGN_OR_RETURN(UniqueFd fd, NewSocket());
  const mode_t mask = ::umask(0177);
  const int bound = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int reason = errno;
  (void)::umask(mask);
  if (bound != 0) return ErrnoStatus(reason, absl::StrCat("listen on ", path));
  RETURN_IF_ERROR(Restrict(path, group));
  if (::listen(fd.get(), kBacklog) != 0)
    return ErrnoStatus(errno, absl::StrCat("listen on ", path));
  return fd;
}

absl::StatusOr<UniqueFd> ConnectControl(const std::string& path) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  ASSIGN_OR_RETURN(UniqueFd fd, NewSocket());
  const int error = Connect(fd.get(), address);
  if (error == 0) return fd;
  const absl::Status status = ErrnoStatus(error, absl::StrCat("ask the daemon at ", path));
  if (error == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat(
        status.message(), " (root may, and the group that the daemon's --group names)"));
  }
  if (error == ENOENT || error == ECONNREFUSED) {
    return absl::NotFoundError(absl::StrCat(status.message(),
                                            " (start it: systemctl start ibnbd-client.socket, or: "
                                            "ibnbd-client daemon; or map --foreground)"));
  }
  return status;
}

absl::StatusOr<std::string> ReadLine(int fd, std::size_t size_max, absl::Time deadline,
                                     const char* what) {
  std::string line;
  char piece[4096];
  while (true) {
    RETURN_IF_ERROR(Await(fd, POLLIN, deadline, what));
    const ssize_t got = ::recv(fd, piece, sizeof(piece), MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) return ErrnoStatus(errno, what);
    if (got == 0) return absl::UnavailableError(absl::StrCat(what, ": closed before its end"));
    const std::size_t size = static_cast<std::size_t>(got);
    const char* end = static_cast<const char*>(std::memchr(piece, '\n', size));
    line.append(piece, end == nullptr ? size : static_cast<std::size_t>(end - piece));
    if (line.size() > size_max) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": longer than ", size_max, " bytes"));
    }
    if (end != nullptr) return line;
  }
}

absl::Status WriteAll(int fd, const std::string& text, absl::Time deadline, const char* what) {
  for (std::size_t done = 0; done < text.size();) {
    RETURN_IF_ERROR(Await(fd, POLLOUT, deadline, what));
    const ssize_t put =
        ::send(fd, text.data() + done, text.size() - done, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (put < 0) return ErrnoStatus(errno, what);
    done += static_cast<std::size_t>(put);
  }
  return absl::OkStatus();
}

}  // namespace ibnbd::client
