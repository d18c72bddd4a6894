// SPDX-License-Identifier: Apache-2.0
// For tests: a server that takes connections and says nothing.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace ibnbd::client {

class SilentServer {
 public:
  SilentServer() : listening_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(listening_.get(), generic, size), 0);
    EXPECT_EQ(::listen(listening_.get(), 128), 0);
    EXPECT_EQ(::getsockname(listening_.get(), generic, &size), 0);
    uri_ = absl::StrCat("tcp://127.0.0.1:", ::ntohs(address.sin_port));
  }
  // Waits for one.
  void Accept() {
    pollfd one{.fd = listening_.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&one, 1, 60'000), 1);
    AcceptAll();
  }
  int AcceptAll() {  // How many there were, ever.
    while (true) {
      UniqueFd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client.valid()) return static_cast<int>(clients_.size());
      clients_.push_back(std::move(client));
    }
  }
  void End() {  // Who is connected sees it, and who comes is refused.
    AcceptAll();
    listening_.Reset();
    clients_.clear();
  }
  [[nodiscard]] const std::string& uri() const { return uri_; }

 private:
  UniqueFd listening_;
  std::vector<UniqueFd> clients_;
  std::string uri_;
};

}  // namespace ibnbd::client
