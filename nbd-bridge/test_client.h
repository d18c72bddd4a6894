// SPDX-License-Identifier: Apache-2.0
// An NBD client for tests that says exactly what it is told to, well-formed or not, over a blocking
// socket.  A wait of 30 seconds is a failure, not a hang.  Nothing here allocates per request.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <string>

#include "base/check.h"
#include "base/unique_fd.h"
#include "proto/nbd.h"

namespace ibnbd::bridge {

class TestClient {
 public:
  explicit TestClient(const std::string& path)
      : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const timeval limit{.tv_sec = 30, .tv_usec = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    CHECK_EQ(::connect(fd_.get(), generic, sizeof(address)), 0);
  }

  [[nodiscard]] int fd() const { return fd_.get(); }
  void Leave() { fd_.Reset(); }

  bool Send(const void* data, std::size_t size) {
    for (const auto* at = static_cast<const char*>(data); size != 0;) {
      const ssize_t sent = ::send(fd_.get(), at, size, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      at += sent;
      size -= static_cast<std::size_t>(sent);
    }
    return true;
  }
  template <typename T>
  bool SendMessage(const T& message) {
    return Send(&message, sizeof(message));
  }
  bool Receive(void* data, std::size_t size) {
    return size == 0 || ::recv(fd_.get(), data, size, MSG_WAITALL) == static_cast<ssize_t>(size);
  }
  // True if the server has closed; what it sent before is thrown away.
  bool AtEnd() {
    char buffer[4096];
    ssize_t got = 0;
    do {
      got = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
    } while (got > 0);
    return got == 0 || errno == ECONNRESET;
  }

  // EXPORT_NAME, or GO after STRUCTURED_REPLY.  False if the server declined.
  bool Open(const std::string& name, bool structured = false) {
    char greeting[18];
    if (!Receive(greeting, sizeof(greeting)) || !SendMessage(proto::NbdClientFlags{})) return false;
    if (!structured) {
      SendOption(proto::NbdOption::kExportName, name);
      proto::NbdExportNameReply reply;
      if (!Receive(&reply, sizeof(reply))) return false;
      export_size = reply.size.get();
      export_flags = reply.flags.get();
      return true;
    }
    SendOption(proto::NbdOption::kStructuredReply, "");
    const proto::be32 length(static_cast<std::uint32_t>(name.size()));
    std::string payload(reinterpret_cast<const char*>(&length), sizeof(length));
    SendOption(proto::NbdOption::kGo, payload + name + std::string(2, '\0'));
    proto::NbdOptionReply reply;
    char body[4096];
    do {
      if (!Receive(&reply, sizeof(reply)) || reply.length.get() > sizeof(body)) return false;
      if (!Receive(body, reply.length.get())) return false;
    } while (reply.type.get() == static_cast<std::uint32_t>(proto::NbdRep::kInfo) ||
             reply.option.get() == static_cast<std::uint32_t>(proto::NbdOption::kStructuredReply));
    return reply.type.get() == static_cast<std::uint32_t>(proto::NbdRep::kAck);
  }
  void SendOption(proto::NbdOption option, const std::string& payload) {
    SendMessage(
        proto::NbdOptionHeader{.option = proto::be32(static_cast<std::uint32_t>(option)),
                               .length = proto::be32(static_cast<std::uint32_t>(payload.size()))});
    Send(payload.data(), payload.size());
  }

  bool SendRequest(std::uint16_t cmd, std::uint64_t cookie, std::uint64_t offset,
                   std::uint32_t length, std::uint16_t cmd_flags = 0) {
    return SendMessage(proto::NbdRequest{.flags = proto::be16(cmd_flags),
                                         .type = proto::be16(cmd),
                                         .cookie = proto::be64(cookie),
                                         .offset = proto::be64(offset),
                                         .length = proto::be32(length)});
  }
  // The header of a simple reply; -1: there is none.
  std::int64_t ReceiveError(std::uint64_t* cookie = nullptr) {
    proto::NbdSimpleReply reply;
    if (!Receive(&reply, sizeof(reply)) || reply.magic.get() != proto::kNbdSimpleReplyMagic) {
      return -1;
    }
    if (cookie != nullptr) *cookie = reply.cookie.get();
    return reply.error.get();
  }
  // One command from request to reply.  For reads `data` is filled, for writes it is sent.
  std::int64_t Do(proto::NbdCmd cmd, std::uint64_t offset, std::uint32_t length,
                  std::uint16_t cmd_flags = 0, char* data = nullptr) {
    const std::uint64_t sent = next_cookie_++;
    SendRequest(static_cast<std::uint16_t>(cmd), sent, offset, length, cmd_flags);
    if (cmd == proto::NbdCmd::kWrite) Send(data, length);
    std::uint64_t got = ~sent;
    const std::int64_t error = ReceiveError(&got);
    CHECK(error < 0 || got == sent);
    if (cmd == proto::NbdCmd::kRead && error == 0 && !Receive(data, length)) return -1;
    return error;
  }

  std::uint64_t export_size = 0;
  std::uint16_t export_flags = 0;

 private:
  UniqueFd fd_;
  std::uint64_t next_cookie_ = 0x1122334455667788;
};

}  // namespace ibnbd::bridge
