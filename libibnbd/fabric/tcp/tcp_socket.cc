// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/status_macros.h"

namespace ibnbd::tcp {
namespace {

constexpr int kBacklog = 128;

SocketAddress FromStorage(const sockaddr_storage& storage, socklen_t length) {
  return SocketAddressFrom(&storage, length);
}

}  // namespace

absl::StatusOr<UniqueFd> OpenSocket(const SocketAddress& peer) {
  if (peer.family != AF_INET && peer.family != AF_INET6) {
    return absl::InvalidArgumentError(
        absl::StrCat("tcp ", peer.ToString(), ": not an IPv4 or IPv6 address"));
  }
  // Blocking: io_uring answers EAGAIN on O_NONBLOCK sockets instead of waiting.
  UniqueFd fd(::socket(peer.family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("tcp ", peer.ToString(), ": socket"));
  SetNoDelay(fd.get());
  return fd;
}

// The port is chosen with the connection, when the peer is known: many may share it.
absl::Status BindSource(int fd, const SocketAddress& source) {
  const int one = 1;
  (void)::setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  sockaddr_storage storage{};
  std::memcpy(&storage, source.bytes.data(), std::min<std::size_t>(source.length, sizeof storage));
  if (storage.ss_family == AF_INET) reinterpret_cast<sockaddr_in*>(&storage)->sin_port = 0;
  if (storage.ss_family == AF_INET6) reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port = 0;
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&storage), source.length) == 0) {
    return absl::OkStatus();
  }
  return ErrnoStatus(errno, absl::StrCat("tcp: connect from ", source.ToString(), ": bind"));
}

absl::StatusOr<UniqueFd> OpenListener(const SocketAddress& local) {
  const std::string what = absl::StrCat("listen ", local.ToString());
  absl::StatusOr<UniqueFd> opened = OpenSocket(local);
  if (!opened.ok()) return Annotate(opened.status(), what);
  UniqueFd fd = *std::move(opened);
  const int one = 1;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0) {
    return ErrnoStatus(errno, absl::StrCat(what, ": SO_REUSEADDR"));
  }
  const auto* address = reinterpret_cast<const sockaddr*>(local.bytes.data());
  if (::bind(fd.get(), address, local.length) < 0) {
    return ErrnoStatus(errno, absl::StrCat(what, ": bind"));
  }
  // With SO_REUSEADDR two sockets may be bound to a port; the second listen() is what fails.
  if (::listen(fd.get(), kBacklog) < 0) return ErrnoStatus(errno, absl::StrCat(what, ": listen"));
  return fd;
}

void SetNoDelay(int fd) {
  const int one = 1;
  // Batches are made by us; a kernel that refuses merely adds latency.
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

SocketAddress LocalAddressOf(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) < 0) length = 0;
  return FromStorage(storage, length);
}

SocketAddress PeerAddressOf(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &length) < 0) length = 0;
  return FromStorage(storage, length);
}

std::span<std::byte> GreetingReader::Window() {
  return std::span<std::byte>(bytes_).subspan(have_, need_ - have_);
}

const char* GreetingReader::Advance(std::size_t byte_count) {
  CHECK_LE(byte_count, need_ - have_);
  have_ += byte_count;
  if (header_seen_ || have_ < need_) return nullptr;
  header_seen_ = true;
  std::memcpy(&greeting_, bytes_.data(), sizeof greeting_);
  if (const char* reason = proto::tcp::WhyInvalid(greeting_)) return reason;
  need_ += greeting_.private_data_size.get();
  return nullptr;
}

std::span<const std::byte> GreetingReader::private_data() const {
  return std::span<const std::byte>(bytes_).subspan(sizeof greeting_, need_ - sizeof greeting_);
}

void OutgoingGreeting::Set(proto::tcp::GreetingKind kind, std::span<const std::byte> private_data) {
  CHECK_LE(private_data.size(), proto::tcp::kPrivateDataSizeMax);
  const proto::tcp::Greeting greeting = proto::tcp::MakeGreeting(kind, private_data.size());
  std::memcpy(bytes.data(), &greeting, sizeof greeting);
  if (!private_data.empty()) {
    std::memcpy(bytes.data() + sizeof greeting, private_data.data(), private_data.size());
  }
  size = sizeof greeting + private_data.size();
}

}  // namespace ibnbd::tcp
