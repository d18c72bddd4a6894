// SPDX-License-Identifier: Apache-2.0
#include "base/handover.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

constexpr std::size_t kSocketsMax = 64;
// Of a connection's send buffer, and of a successor's patience with a client's message.
constexpr int kBufferSize = 2 * kHandedStateMax;
constexpr timeval kSendTimeout{5, 0};

// The message in which they come; says what it is, and its version.
std::string FirstMessage(std::string_view program) {
  return absl::StrCat(absl::string_view(program.data(), program.size()), " listening sockets 1",
                      absl::string_view("", 1));
}

// What is handed over is trusted, either way: only root and our own user may be at the other end.
absl::StatusOr<ucred> CheckedPeer(int connection) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return ErrnoStatus(errno, "SO_PEERCRED");
  }
  if (peer.uid != 0 && peer.uid != geteuid()) {
    return absl::PermissionDeniedError(absl::StrCat("user ", peer.uid, " is at the other end"));
  }
  return peer;
}

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("the path must have 1 to ", sizeof address.sun_path - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

// Nothing there, or a socket: a file of another kind is somebody's mistake.
absl::Status CheckPlace(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, "stat");
  }
  return S_ISSOCK(info.st_mode) ? absl::OkStatus()
                                : absl::AlreadyExistsError("there is a file that is not a socket");
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

union Control {
  cmsghdr header;
  char bytes[CMSG_SPACE(kSocketsMax * sizeof(int))];
};

absl::Status Send(int connection, std::string_view text, std::span<const int> sockets, int flags) {
  const std::size_t count = std::min(sockets.size(), kSocketsMax);
  Control control{};
  iovec bytes{const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    std::memcpy(CMSG_DATA(header), sockets.data(), count * sizeof(int));
  }
  if (sendmsg(connection, &message, MSG_NOSIGNAL | flags) < 0) {
    return ErrnoStatus(errno, "hand over");
  }
  return absl::OkStatus();
}

struct Received {
  std::string text;  // Empty: the end.
  std::vector<UniqueFd> sockets;
};

absl::StatusOr<Received> Receive(int connection) {
  Control control{};
  Received received;
  received.text.resize(kHandedStateMax);
  iovec bytes{received.text.data(), received.text.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  const ssize_t size = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  if (size < 0 && errno != ECONNRESET) return ErrnoStatus(errno, "receive");
  received.text.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
    for (std::size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= at->cmsg_len; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(at) + i * sizeof(int), sizeof fd);
      received.sockets.emplace_back(fd);
    }
  }
  return received;
}

// Until there is something to read, or the end.
absl::Status WaitFor(int connection, std::int64_t deadline_ns) {
  while (true) {
    const std::int64_t left_ns = deadline_ns - MonotonicClock().NowNs();
    if (left_ns <= 0) return absl::DeadlineExceededError("the process before has not ended");
    pollfd waiting{connection, POLLIN, 0};
    const timespec timeout{left_ns / kNsPerSecond, left_ns % kNsPerSecond};
    const int count = ppoll(&waiting, 1, &timeout, nullptr);
    if (count > 0) return absl::OkStatus();
    if (count < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
  }
}

absl::StatusOr<HandedOver> TakeFrom(std::string_view program, int connection,
                                    std::int64_t timeout_ns) {
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + timeout_ns;
  RETURN_IF_ERROR(WaitFor(connection, deadline_ns));
  ASSIGN_OR_RETURN(Received first, Receive(connection));
  if (first.text != FirstMessage(program)) {
    return absl::FailedPreconditionError(
        first.text.empty()
            ? std::string("it refused; is it another user's?")
            : absl::StrCat("it is no ", absl::string_view(program.data(), program.size()),
                           " of this kind"));
  }
  HandedOver taken{std::move(first.sockets), {}};
  LOG_INFO("took over ", taken.sockets.size(), " listening sockets; the process before finishes");
  while (true) {
    RETURN_IF_ERROR(WaitFor(connection, deadline_ns));
    ASSIGN_OR_RETURN(Received next, Receive(connection));
    if (next.text.empty()) return taken;  // Its end.
    if (next.sockets.size() != 1) return absl::FailedPreconditionError("a client without socket");
    taken.clients.push_back({std::move(next.sockets.front()), std::move(next.text)});
  }
}

}  // namespace

absl::StatusOr<HandoverSocket> HandoverSocket::Open(const std::string& path) {
  const std::string what = absl::StrCat("handover socket ", path);
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, what);
  if (absl::Status status = CheckPlace(path); !status.ok()) return Annotate(status, what);
  (void)unlink(path.c_str());  // Who listened there has ended, or would have handed over.
  const mode_t mask = umask(0177);
  const int bound = bind(fd.get(), Generic(address), sizeof address);
  const int error = errno;
  (void)umask(mask);
  if (bound != 0) return ErrnoStatus(error, absl::StrCat(what, ": bind"));
  if (listen(fd.get(), 4) != 0) return ErrnoStatus(errno, absl::StrCat(what, ": listen"));
  return HandoverSocket(std::move(fd));
}

absl::StatusOr<UniqueFd> HandoverSocket::HandOver(std::string_view program,
                                                  const std::vector<int>& sockets) {
  UniqueFd connection(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection.valid()) return ErrnoStatus(errno, "accept");
  ASSIGN_OR_RETURN(const ucred peer, CheckedPeer(connection.get()));
  RETURN_IF_ERROR(Send(connection.get(), FirstMessage(program), sockets, MSG_DONTWAIT));
  LOG_INFO("process ", peer.pid, " takes over");
  return connection;
}

absl::Status HandOverClient(int successor, const HandedClient& client) {
  (void)setsockopt(successor, SOL_SOCKET, SO_SNDBUF, &kBufferSize, sizeof kBufferSize);
  (void)setsockopt(successor, SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof kSendTimeout);
  const int socket = client.socket.get();
  return Send(successor, client.state, {&socket, 1}, 0);
}

absl::StatusOr<HandedOver> TakeOver(std::string_view program, const std::string& path,
                                    std::int64_t timeout_ns) {
  const std::string what = absl::StrCat("take over at ", path);
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  if (absl::Status status = CheckPlace(path); !status.ok()) return Annotate(status, what);
  const UniqueFd connection(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!connection.valid()) return ErrnoStatus(errno, what);
  if (connect(connection.get(), Generic(address), sizeof address) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED) return HandedOver();
    return ErrnoStatus(errno, what);
  }
  if (const auto peer = CheckedPeer(connection.get()); !peer.ok()) {
    return Annotate(peer.status(), what);
  }
  auto taken = TakeFrom(program, connection.get(), timeout_ns);
  if (!taken.ok()) return Annotate(taken.status(), what);
  return taken;
}

}  // namespace ibnbd
