// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/listen_sockets.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-server/notify.h"

namespace ibnbd {
namespace {

std::string AddressOf(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return "";
  return SocketAddressFrom(&storage, length).ToString();
}

}  // namespace

absl::Status ListenSockets::AddFromServiceManager() {
  const int count = sd_listen_fds(1);
  if (count < 0) return ErrnoStatus(count, "sockets of the service manager");
  for (int i = 0; i < count; ++i) {
    const int fd = SD_LISTEN_FDS_START + i;
    if (absl::Status status = Add(UniqueFd(fd)); !status.ok()) {
      return Annotate(status, absl::StrCat("descriptor ", fd, " of the service manager"));
    }
  }
  return absl::OkStatus();
}

absl::Status ListenSockets::Add(UniqueFd fd) {
  const bool tcp = sd_is_socket(fd.get(), AF_INET, SOCK_STREAM, 1) > 0 ||
                   sd_is_socket(fd.get(), AF_INET6, SOCK_STREAM, 1) > 0;
  if (!tcp) return absl::InvalidArgumentError("not a TCP socket that listens");
  // The service manager's own sockets do not block; the fabric waits for them with io_uring.
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return ErrnoStatus(errno, "fcntl");
  }
  absl::MutexLock lock(&mutex_);
  inherited_.push_back(std::move(fd));
  return absl::OkStatus();
}

bool ListenSockets::has_inherited() const {
  absl::MutexLock lock(&mutex_);
  return !inherited_.empty();
}

UniqueFd ListenSockets::TakeInherited(const SocketAddress& local) {
  const std::string wanted = local.ToString();
  absl::MutexLock lock(&mutex_);
  const auto found = std::find_if(inherited_.begin(), inherited_.end(), [&](const UniqueFd& fd) {
    return AddressOf(fd.get()) == wanted;
  });
  if (found == inherited_.end()) return UniqueFd();
  UniqueFd fd = std::move(*found);
  inherited_.erase(found);
  return fd;
}

bool ListenSockets::OnListening(int fd) {
  UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return false;  // Then the next process opens its own.
  absl::MutexLock lock(&mutex_);
  ours_.push_back(std::move(copy));
  return true;
}

void ListenSockets::Settle() {
  absl::MutexLock lock(&mutex_);
  for (const UniqueFd& fd : inherited_) {
    LOG_WARN("listens no more on ", AddressOf(fd.get()), ", a socket of the process before");
  }
  inherited_.clear();
  std::vector<int> ours;
  for (const UniqueFd& fd : ours_) ours.push_back(fd.get());
  NotifyStoredSockets(ours);
}

std::vector<int> ListenSockets::ours() const {
  absl::MutexLock lock(&mutex_);
  std::vector<int> ours;
  for (const UniqueFd& fd : ours_) ours.push_back(fd.get());
  return ours;
}

void ListenSockets::Close(bool for_good) {
  absl::MutexLock lock(&mutex_);
  for (const UniqueFd& fd : ours_) {
    if (for_good && !HasServiceManager()) (void)shutdown(fd.get(), SHUT_RDWR);
  }
  ours_.clear();
}

}  // namespace ibnbd
