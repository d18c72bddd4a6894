// SPDX-License-Identifier: Apache-2.0
// Where NBD clients come in: a unix socket, a TCP address, or sockets that systemd opened for us.
// A socket file that nobody listens on any more is replaced, a live one is not stolen; the file is
// removed at the end if it is still ours.  Made on the main thread, used on the first loop.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace ibnbd::bridge {

class ListenSocket {
 public:
  // "unix:/run/x.sock", "/run/x.sock", "tcp:host:port", "host:port", "[::1]:0".  Without a port:
  // NBD's, 10809.  A relative path needs "unix:".
  // If one of `inherited`, which another process has opened, is at that address, it is taken.
  static absl::StatusOr<ListenSocket> Open(const std::string& address,
                                           std::vector<UniqueFd>* inherited = nullptr);
  // True if it is one of `addresses`, as address() has them, so that Open() would take that one.
  static absl::StatusOr<bool> IsOneOf(const std::string& address,
                                      const std::vector<std::string>& addresses);
  // Of systemd's socket activation.
  static absl::StatusOr<ListenSocket> Activated(UniqueFd fd);

  ListenSocket(ListenSocket&& other) noexcept;
  ListenSocket& operator=(ListenSocket&&) = delete;
  ~ListenSocket();

  // It is another process's from now on: its file stays.
  void Leave() { unlink_path_.clear(); }

  [[nodiscard]] int fd() const { return fd_.get(); }
  // For Open(): "unix:/run/x.sock", "tcp:127.0.0.1:10809", with the port that was chosen.
  [[nodiscard]] const std::string& address() const { return address_; }
  // For clients: "nbd+unix:///?socket=/run/x.sock", "nbd://127.0.0.1:10809".
  [[nodiscard]] std::string ClientUri() const;

 private:
  struct Place;
  explicit ListenSocket(UniqueFd fd) : fd_(std::move(fd)) {}
  static absl::StatusOr<Place> PlaceOf(const std::string& address);
  static absl::StatusOr<ListenSocket> OpenUnix(const Place& place,
                                               std::vector<UniqueFd>* inherited);
  static absl::StatusOr<ListenSocket> OpenTcp(const Place& place, std::vector<UniqueFd>* inherited);
  absl::Status BindUnix(const std::string& path, const std::string& what);

  UniqueFd fd_;
  std::string address_;
  std::string unlink_path_;  // Empty: not ours to remove.
  dev_t device_ = 0;         // Of the file, so that a successor's is not removed.
  ino_t inode_ = 0;
};

// The address of a socket, as ListenSocket::address() has it.
std::string LocalAddress(int fd);
// "127.0.0.1:40000" or "a unix socket": who is at the other end, for the log.
std::string PeerOf(int fd);

}  // namespace ibnbd::bridge
