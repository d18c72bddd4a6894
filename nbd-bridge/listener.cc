// SPDX-License-Identifier: Apache-2.0
// See listener.h.
#include "nbd-bridge/listener.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "proto/nbd.h"

namespace ibnbd::bridge {
namespace {

constexpr int kBacklog = 128;
// A killed process's socket answers until the kernel has taken its io_uring down.
constexpr std::int64_t kDeadSocketNs = 2 * kNsPerSecond;
constexpr timespec kProbePause{0, 100'000'000};

sockaddr* Generic(sockaddr_storage& storage) { return reinterpret_cast<sockaddr*>(&storage); }

std::string TextOf(const sockaddr_storage& storage, socklen_t length) {
  if (storage.ss_family == AF_UNIX) {
    const auto& address = reinterpret_cast<const sockaddr_un&>(storage);
    return absl::StrCat("unix:", length > sizeof(sa_family_t) ? address.sun_path : "");
  }
  SocketAddress address;
  address.family = storage.ss_family;
  address.length = length;
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);  // The port is where v6 has it.
  address.port = ntohs(v4.sin_port);
  std::memcpy(address.bytes.data(), &storage, std::min<std::size_t>(length, address.bytes.size()));
  return absl::StrCat("tcp:", address.ToString());
}

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("listen on unix:", path, ": the path must have ",
                                                   "1 to ", sizeof(address.sun_path) - 1,
                                                   " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

bool IsRefused(const sockaddr_un& address, int probe) {
  return ::connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
         (errno == ECONNREFUSED || errno == ENOENT);
}

// Removes a socket file that refuses connections.  OK if it is gone now.
absl::Status RemoveStale(const sockaddr_un& address, const std::string& what) {
  struct stat info {};
  if (::lstat(address.sun_path, &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, what);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat(what, ": there is a file that is not a socket"));
  }
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + kDeadSocketNs;
  while (true) {
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe.valid()) return ErrnoStatus(errno, absl::StrCat(what, ": socket"));
    if (IsRefused(address, probe.get())) break;
    if (MonotonicClock().NowNs() >= deadline_ns) {
      return absl::AlreadyExistsError(absl::StrCat(what, ": another server is using the socket"));
    }
    (void)::nanosleep(&kProbePause, nullptr);
  }
  if (::unlink(address.sun_path) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat(what, ": remove the stale socket"));
  }
  return absl::OkStatus();
}

}  // namespace

struct ListenSocket::Place {
  std::string what;  // For errors.
  bool is_unix = false;
  std::string unix_path;
  SocketAddress tcp;
  std::string wanted;     // As address() has it...
  bool any_port = false;  // ...or its beginning: the system's choice is the one chosen before.

  [[nodiscard]] bool Is(const std::string& address) const {
    return any_port ? absl::StartsWith(address, wanted) : address == wanted;
  }
  // Invalid if none of them is there.
  UniqueFd TakeFrom(std::vector<UniqueFd>* inherited) const {
    for (auto fd = inherited->begin(); fd != inherited->end(); ++fd) {
      if (!Is(LocalAddress(fd->get()))) continue;
      UniqueFd found = std::move(*fd);
      inherited->erase(fd);
      return found;
    }
    return UniqueFd();
  }
};

ListenSocket::ListenSocket(ListenSocket&& other) noexcept
    : fd_(std::move(other.fd_)),
      address_(std::move(other.address_)),
      unlink_path_(std::exchange(other.unlink_path_, std::string())),
      device_(other.device_),
      inode_(other.inode_) {}

ListenSocket::~ListenSocket() {
  if (unlink_path_.empty()) return;
  struct stat info {};
  if (::lstat(unlink_path_.c_str(), &info) == 0 && info.st_dev == device_ &&
      info.st_ino == inode_) {
    ::unlink(unlink_path_.c_str());
  }
}

absl::StatusOr<ListenSocket> ListenSocket::Open(const std::string& address,
                                                std::vector<UniqueFd>* inherited) {
  std::vector<UniqueFd> none;
  if (inherited == nullptr) inherited = &none;
  ASSIGN_OR_RETURN(const Place place, PlaceOf(address));
  return place.is_unix ? OpenUnix(place, inherited) : OpenTcp(place, inherited);
}

absl::StatusOr<bool> ListenSocket::IsOneOf(const std::string& address,
                                           const std::vector<std::string>& addresses) {
  ASSIGN_OR_RETURN(const Place place, PlaceOf(address));
  return std::any_of(addresses.begin(), addresses.end(),
                     [&place](const std::string& other) { return place.Is(other); });
}

absl::StatusOr<ListenSocket::Place> ListenSocket::PlaceOf(const std::string& address) {
  Place place;
  absl::string_view rest = address;
  place.is_unix = absl::ConsumePrefix(&rest, "unix:") || absl::StartsWith(rest, "/");
  if (place.is_unix) {
    place.unix_path = std::string(rest);
    place.wanted = absl::StrCat("unix:", rest);
    place.what = absl::StrCat("listen on ", place.wanted);
    return place;
  }
  if (!absl::ConsumePrefix(&rest, "tcp://")) absl::ConsumePrefix(&rest, "tcp:");
  place.what = absl::StrCat("listen on tcp:", rest);
  // Without a host, or with "*": all addresses.  NBD's port is the default.
  const bool no_host = rest.empty() || rest.front() == ':';
  auto parts = ParseHostPort(absl::StrCat(no_host ? "*" : "", rest), BareIpv6::kTaken);
  if (!parts.ok()) return Annotate(parts.status(), place.what);
  auto resolved = ResolveAddress(parts->host == "*" ? "::" : parts->host,
                                 parts->port.value_or(proto::kNbdPort));
  if (!resolved.ok()) return Annotate(resolved.status(), place.what);
  place.tcp = *resolved;
  place.wanted = absl::StrCat("tcp:", resolved->ToString());
  place.any_port = resolved->port == 0;
  if (place.any_port) place.wanted.pop_back();
  return place;
}

absl::StatusOr<ListenSocket> ListenSocket::OpenUnix(const Place& place,
                                                    std::vector<UniqueFd>* inherited) {
  const std::string& path = place.unix_path;
  ListenSocket result(place.TakeFrom(inherited));
  if (!result.fd_.valid()) RETURN_IF_ERROR(result.BindUnix(path, place.what));
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0) {
    result.device_ = info.st_dev;
    result.inode_ = info.st_ino;
    result.unlink_path_ = path;
  }
  if (::listen(result.fd(), kBacklog) != 0) return ErrnoStatus(errno, place.what);
  result.address_ = place.wanted;
  return result;
}

absl::Status ListenSocket::BindUnix(const std::string& path, const std::string& what) {
  ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(path));
  fd_.Reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd_.valid()) return ErrnoStatus(errno, absl::StrCat(what, ": socket"));
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  if (::bind(fd(), generic, sizeof(address)) == 0) return absl::OkStatus();
  if (errno != EADDRINUSE) return ErrnoStatus(errno, absl::StrCat(what, ": bind"));
  RETURN_IF_ERROR(RemoveStale(address, what));
  if (::bind(fd(), generic, sizeof(address)) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat(what, ": bind"));
}

absl::StatusOr<ListenSocket> ListenSocket::OpenTcp(const Place& place,
                                                   std::vector<UniqueFd>* inherited) {
  const std::string& what = place.what;
  const SocketAddress* resolved = &place.tcp;
  ListenSocket result(place.TakeFrom(inherited));
  if (result.fd_.valid()) {
    result.address_ = LocalAddress(result.fd());
    return result;
  }
  result.fd_.Reset(::socket(resolved->family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!result.fd_.valid()) return ErrnoStatus(errno, absl::StrCat(what, ": socket"));
  const int one = 1;
  (void)::setsockopt(result.fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  const auto* generic = reinterpret_cast<const sockaddr*>(resolved->bytes.data());
  if (::bind(result.fd(), generic, resolved->length) != 0) {
    return ErrnoStatus(errno, absl::StrCat(what, ": bind"));
  }
  if (::listen(result.fd(), kBacklog) != 0) return ErrnoStatus(errno, what);
  result.address_ = LocalAddress(result.fd());
  return result;
}

absl::StatusOr<ListenSocket> ListenSocket::Activated(UniqueFd fd) {
  if (sd_is_socket(fd.get(), AF_UNSPEC, SOCK_STREAM, 1) <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("socket activation: descriptor ", fd.get(),
                                                   " is not a listening stream socket"));
  }
  ListenSocket socket(std::move(fd));
  socket.address_ = LocalAddress(socket.fd());
  return socket;
}

std::string ListenSocket::ClientUri() const {
  absl::string_view rest = address_;
  if (absl::ConsumePrefix(&rest, "tcp:")) return absl::StrCat("nbd://", rest);
  absl::ConsumePrefix(&rest, "unix:");
  std::string uri = "nbd+unix:///?socket=";
  for (const char c : rest) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("/-._~", c)) {
      uri.push_back(c);
    } else {
      absl::StrAppend(&uri, "%", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    }
  }
  return uri;
}

std::string LocalAddress(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  if (::getsockname(fd, Generic(storage), &length) != 0) return "?";
  return TextOf(storage, length);
}

std::string PeerOf(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  if (::getpeername(fd, Generic(storage), &length) != 0) return "a client";
  if (storage.ss_family != AF_UNIX) return TextOf(storage, length);
  ucred credentials{};
  length = sizeof(credentials);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return "a client";
  return absl::StrCat("process ", credentials.pid);
}

}  // namespace ibnbd::bridge
