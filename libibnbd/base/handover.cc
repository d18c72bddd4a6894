// SPDX-License-Identifier: Apache-2.0
#include "base/handover.h"

#include <fcntl.h>
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
#include <iterator>
#include <span>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/process_limits.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

constexpr std::size_t kSocketsMax = 64;  // In one message.
// Of a connection's send buffer, and of a successor's patience with a client's message.
constexpr int kBufferSize = 2 * kHandedStateMax;
constexpr timeval kSendTimeout{5, 0};
constexpr std::int64_t kReportNs = 10 * kNsPerSecond;  // That we still wait.
constexpr timeval kWordTimeout{1, 0};                  // It is said right after the connect.
constexpr std::size_t kShownMax = 100'000;

// The message in which they come; says what it is, and its version.
std::string SocketsMessage(std::string_view program, bool more_come) {
  return absl::StrCat(absl::string_view(program.data(), program.size()), more_come ? " more" : "",
                      " listening sockets 1", absl::string_view("", 1));
}

// What a successor wants.
std::string Word(std::string_view program, absl::string_view wants) {
  return absl::StrCat(absl::string_view(program.data(), program.size()), " ", wants, " 1");
}
constexpr char kLooks[] = "looks";
constexpr char kTakes[] = "takes";

// The first of the messages that one who looks gets: how many come.
std::string ShownMessage(std::string_view program, std::size_t count) {
  return absl::StrCat(Word(program, "shows"), " ", count);
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
  const std::size_t count = sockets.size();
  CHECK(count <= kSocketsMax);
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
  while (sendmsg(connection, &message, MSG_NOSIGNAL | flags) < 0) {
    if (errno != EINTR) return ErrnoStatus(errno, "hand over");
  }
  return absl::OkStatus();
}

struct Received {
  std::string text;
  std::vector<UniqueFd> sockets;
  bool cut = false;             // The text was longer.
  bool no_descriptors = false;  // There were more sockets.
  [[nodiscard]] bool end() const { return text.empty() && sockets.empty() && !no_descriptors; }
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
  ssize_t size = 0;
  do {
    size = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  } while (size < 0 && errno == EINTR);
  if (size < 0 && errno != ECONNRESET) return ErrnoStatus(errno, "receive");
  received.cut = (message.msg_flags & MSG_TRUNC) != 0;
  received.no_descriptors = (message.msg_flags & MSG_CTRUNC) != 0;
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
absl::Status WaitFor(int connection, std::int64_t deadline_ns,
                     absl::string_view missing = "ended") {
  const std::int64_t begin_ns = MonotonicClock().NowNs();
  for (std::int64_t now_ns = begin_ns; now_ns < deadline_ns; now_ns = MonotonicClock().NowNs()) {
    pollfd waiting{connection, POLLIN, 0};
    const std::int64_t pause_ns = std::min(deadline_ns - now_ns, kReportNs);
    const timespec timeout{pause_ns / kNsPerSecond, pause_ns % kNsPerSecond};
    const int count = ppoll(&waiting, 1, &timeout, nullptr);
    if (count > 0) return absl::OkStatus();
    if (count < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
    const std::int64_t waited_ns = MonotonicClock().NowNs() - begin_ns;
    if (count == 0) {
      LOG_WARN("the process before has not ", missing, " after ", waited_ns / kNsPerSecond, " s");
    }
  }
  return absl::DeadlineExceededError(absl::StrCat("the process before has not ", missing));
}

absl::Status NotOfThisKind(std::string_view program) {
  return absl::FailedPreconditionError(absl::StrCat(
      "it is no ", absl::string_view(program.data(), program.size()), " of this kind"));
}

absl::Status Refused(std::string_view program) {
  return absl::FailedPreconditionError(
      absl::StrCat("it refused: is it another user's, or no ",
                   absl::string_view(program.data(), program.size()), " of this kind?"));
}

std::string NoDescriptors() {
  return absl::StrCat("no more than ", DescriptorLimit(), " open files are allowed (ulimit -n)");
}

absl::StatusOr<std::vector<UniqueFd>> TakeSockets(std::string_view program, int connection,
                                                  std::int64_t deadline_ns) {
  std::vector<UniqueFd> sockets;
  while (true) {
    RETURN_IF_ERROR(WaitFor(connection, deadline_ns));
    ASSIGN_OR_RETURN(Received next, Receive(connection));
    if (next.end()) return Refused(program);
    const bool last = next.text == SocketsMessage(program, false);
    if (!last && next.text != SocketsMessage(program, true)) return NotOfThisKind(program);
    if (next.no_descriptors) LOG_WARN("a listening socket is not taken over: ", NoDescriptors());
    std::move(next.sockets.begin(), next.sockets.end(), std::back_inserter(sockets));
    if (last) return sockets;
  }
}

// Until the process before has ended.
absl::Status TakeClients(int connection, std::int64_t deadline_ns,
                         std::vector<HandedClient>* clients) {
  while (true) {
    RETURN_IF_ERROR(WaitFor(connection, deadline_ns));
    ASSIGN_OR_RETURN(Received next, Receive(connection));
    if (next.end()) return absl::OkStatus();
    if (next.sockets.size() == 1 && !next.cut && !next.no_descriptors) {
      clients->push_back({std::move(next.sockets.front()), std::move(next.text)});
      continue;
    }
    LOG_WARN("a client's connection is closed: ",
             next.no_descriptors ? NoDescriptors()
                                 : std::string("what was handed over of it is not understood"));
  }
}

absl::StatusOr<std::vector<std::string>> ReceiveShown(std::string_view program, int connection,
                                                      std::int64_t deadline_ns) {
  RETURN_IF_ERROR(WaitFor(connection, deadline_ns, "answered"));
  ASSIGN_OR_RETURN(const Received first, Receive(connection));
  if (first.end()) return Refused(program);
  std::size_t count = 0;
  const std::string expected = absl::StrCat(Word(program, "shows"), " ");
  if (!absl::StartsWith(first.text, expected) ||
      !absl::SimpleAtoi(absl::string_view(first.text).substr(expected.size()), &count) ||
      count > kShownMax) {
    return NotOfThisKind(program);
  }
  std::vector<std::string> shown;
  while (shown.size() < count) {
    RETURN_IF_ERROR(WaitFor(connection, deadline_ns, "answered"));
    ASSIGN_OR_RETURN(Received next, Receive(connection));
    if (next.end() || next.cut) return absl::UnavailableError("it did not show everything");
    shown.push_back(std::move(next.text));
  }
  return shown;
}

// Whoever listens there has been told what we want.  Invalid: nobody does.
absl::StatusOr<UniqueFd> Knock(std::string_view program, const std::string& path,
                               absl::string_view wants) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  RETURN_IF_ERROR(CheckPlace(path));
  UniqueFd connection(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!connection.valid()) return ErrnoStatus(errno, "socket");
  if (connect(connection.get(), Generic(address), sizeof address) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED) return UniqueFd();
    return ErrnoStatus(errno, "connect");
  }
  RETURN_IF_ERROR(CheckedPeer(connection.get()).status());
  // Who does not read it has closed, and that is found when the answer is to be read.
  (void)Send(connection.get(), Word(program, wants), {}, 0);
  return connection;
}

absl::StatusOr<HandedOver> TakeFrom(std::string_view program, int connection,
                                    std::int64_t timeout_ns) {
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + timeout_ns;
  HandedOver taken;
  taken.taken = true;
  ASSIGN_OR_RETURN(taken.sockets, TakeSockets(program, connection, deadline_ns));
  LOG_INFO("took over ", taken.sockets.size(), " listening sockets; the process before finishes");
  const absl::Status status = TakeClients(connection, deadline_ns, &taken.clients);
  if (status.ok()) return taken;
  // Who has handed over a client was done with all of them.
  if (taken.clients.empty()) return status;
  LOG_WARN("took over ", taken.clients.size(), " clients, others are lost: ", status.message());
  return taken;
}

void LimitSending(int connection) {
  (void)setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &kBufferSize, sizeof kBufferSize);
  (void)setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof kSendTimeout);
}

absl::Status ShowTo(int connection, std::string_view program,
                    const std::vector<std::string>& shown) {
  LimitSending(connection);
  RETURN_IF_ERROR(Send(connection, ShownMessage(program, shown.size()), {}, 0));
  for (const std::string& piece : shown) RETURN_IF_ERROR(Send(connection, piece, {}, 0));
  return absl::OkStatus();
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

HandoverSocket::HandoverSocket(UniqueFd fd)
    : fd_(std::move(fd)), spare_(fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0)) {}

absl::StatusOr<UniqueFd> HandoverSocket::HandOver(std::string_view program,
                                                  const std::vector<int>& sockets,
                                                  const Show& show) {
  spare_.Reset();
  auto successor = LetIn(program, sockets, show);
  if (!successor.ok() || !successor->valid()) spare_.Reset(fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  return successor;
}

absl::StatusOr<UniqueFd> HandoverSocket::LetIn(std::string_view program,
                                               const std::vector<int>& sockets, const Show& show) {
  UniqueFd connection(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection.valid()) return ErrnoStatus(errno, "accept");
  ASSIGN_OR_RETURN(const ucred peer, CheckedPeer(connection.get()));
  (void)setsockopt(connection.get(), SOL_SOCKET, SO_RCVTIMEO, &kWordTimeout, sizeof kWordTimeout);
  ASSIGN_OR_RETURN(const Received word, Receive(connection.get()));
  if (show && word.text == Word(program, kLooks)) {
    RETURN_IF_ERROR(ShowTo(connection.get(), program, show()));
    LOG_INFO("process ", peer.pid, " looks whether it can take over");
    return UniqueFd();
  }
  if (word.text != Word(program, kTakes)) {
    return absl::InvalidArgumentError(absl::StrCat("process ", peer.pid, " does not want it"));
  }
  std::span<const int> left(sockets);
  while (left.size() > kSocketsMax) {
    RETURN_IF_ERROR(Send(connection.get(), SocketsMessage(program, true), left.first(kSocketsMax),
                         MSG_DONTWAIT));
    left = left.subspan(kSocketsMax);
  }
  // Only with this it is done.
  RETURN_IF_ERROR(Send(connection.get(), SocketsMessage(program, false), left, MSG_DONTWAIT));
  LOG_INFO("process ", peer.pid, " takes over");
  return connection;
}

bool HandOverClients(int successor, const std::vector<HandedClient>& clients) {
  LimitSending(successor);
  bool all = true;
  for (const HandedClient& client : clients) {
    const int socket = client.socket.get();
    absl::Status status = client.state.size() <= kHandedStateMax
                              ? Send(successor, client.state, {&socket, 1}, 0)
                              : absl::InvalidArgumentError("hand over: it has sent too much");
    if (status.ok()) continue;
    all = false;
    LOG_ERROR("a client's connection is closed: ", status.message());
    // It has gone, or has not taken anything for so long: likewise for all others.
    const int error = -ErrnoFromStatus(status);
    if (error != EPIPE && error != ECONNRESET && error != EAGAIN) continue;
    LOG_ERROR("so are those of ", &clients.back() - &client, " others");
    break;
  }
  return all;
}

absl::StatusOr<std::optional<std::vector<std::string>>> LookAt(std::string_view program,
                                                               const std::string& path,
                                                               std::int64_t timeout_ns) {
  const std::string what = absl::StrCat("look at ", path);
  auto connection = Knock(program, path, kLooks);
  if (!connection.ok()) return Annotate(connection.status(), what);
  if (!connection->valid()) return std::nullopt;
  auto shown = ReceiveShown(program, connection->get(), MonotonicClock().NowNs() + timeout_ns);
  if (!shown.ok()) return Annotate(shown.status(), what);
  return *std::move(shown);
}

absl::StatusOr<HandedOver> TakeOver(std::string_view program, const std::string& path,
                                    std::int64_t timeout_ns) {
  const std::string what = absl::StrCat("take over at ", path);
  auto connection = Knock(program, path, kTakes);
  if (!connection.ok()) return Annotate(connection.status(), what);
  if (!connection->valid()) return HandedOver();
  auto taken = TakeFrom(program, connection->get(), timeout_ns);
  if (!taken.ok()) return Annotate(taken.status(), what);
  return taken;
}

}  // namespace ibnbd
