// SPDX-License-Identifier: Apache-2.0
// What a service manager is given of clients, and what is said of those whom it cannot be given.
// With a real one's protocol, over a socket of this test; whole restarts are in tests/e2e.
#include "nbd-bridge/service_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "base/log.h"

namespace ibnbd::bridge {
namespace {

class ServiceManagerTest : public ::testing::Test {
 protected:
  ServiceManagerTest() : manager_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    SetLogSink([this](LogLevel, const std::string& line) { log_ += line + "\n"; }, LogLevel::kWarn);
    char name[] = "/tmp/service_manager_test.XXXXXX";
    directory_ = ::mkdtemp(name);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path().c_str(), path().size() + 1);
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    EXPECT_EQ(::bind(manager_.get(), generic, sizeof(address)), 0);
    ::setenv("NOTIFY_SOCKET", path().c_str(), 1);
    for (int i = 0; i < 2; ++i) {
      clients_.push_back({UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), "state"});
    }
  }
  ~ServiceManagerTest() override {
    ::unsetenv("NOTIFY_SOCKET");
    SetLogSink([](LogLevel, const std::string&) {}, LogLevel::kWarn);
    (void)::unlink(path().c_str());
    ::rmdir(directory_.c_str());
  }
  std::string path() const { return directory_ + "/notify"; }
  // Its next message; what descriptors come with it are only counted.
  std::string Hear(std::size_t* count) {
    char text[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
    iovec bytes{text, sizeof(text)};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t size = ::recvmsg(manager_.get(), &message, MSG_CMSG_CLOEXEC);
    *count = 0;
    for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
      if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
      for (; CMSG_LEN((*count + 1) * sizeof(int)) <= at->cmsg_len; ++*count) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(at) + *count * sizeof(int), sizeof(fd));
        ::close(fd);  // A barrier ends with that.
      }
    }
    return std::string(text, size > 0 ? static_cast<std::size_t>(size) : 0);
  }

  UniqueFd manager_;
  std::string directory_;
  std::vector<HandedClient> clients_;
  std::string log_;
};

TEST_F(ServiceManagerTest, IsGivenASocketAndAStateOfEachClientUnderOneName) {
  std::thread manager([this] {
    std::string names[2];
    for (std::string& name : names) {
      std::size_t descriptors = 0;
      name = Hear(&descriptors);
      EXPECT_THAT(name, ::testing::StartsWith("FDSTORE=1\nFDNAME=nbd-client-"));
      EXPECT_EQ(descriptors, 2u);
    }
    EXPECT_NE(names[0], names[1]);
    std::size_t descriptors = 0;
    EXPECT_EQ(Hear(&descriptors), "BARRIER=1");
  });
  EXPECT_TRUE(LeaveToServiceManager(clients_));
  manager.join();
  EXPECT_EQ(log_, "");
}

TEST_F(ServiceManagerTest, IsGivenNoMoreThanItKeeps) {
  for (const char* kept : {"2", "3"}) {
    SCOPED_TRACE(kept);
    log_.clear();
    ::setenv("FDSTORE", kept, 1);
    std::thread manager([this] {
      std::size_t descriptors = 0;
      EXPECT_THAT(Hear(&descriptors), ::testing::StartsWith("FDSTORE=1\n"));
      EXPECT_EQ(Hear(&descriptors), "BARRIER=1");
    });
    EXPECT_FALSE(LeaveToServiceManager(clients_));
    manager.join();
    EXPECT_THAT(log_, ::testing::HasSubstr("closed the connections of 1 clients: the service "
                                           "manager keeps those of 1 (FileDescriptorStoreMax="));
  }
  ::setenv("FDSTORE", "1000000", 1);
  // All names at once must fit into the next process's environment.
  const std::size_t name = std::string("nbd-client-4194304-2048:").size();
  EXPECT_LT(KeptClientsMax() * 2 * name, 128u * 1024 - std::string("LISTEN_FDNAMES=").size());
  ::unsetenv("FDSTORE");
  EXPECT_GT(KeptClientsMax(), 256u);
}

TEST_F(ServiceManagerTest, AClientWhoCannotBeGivenIsNamed) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = 0;  // Nothing can be opened.
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  const bool all = LeaveToServiceManager(clients_);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(all);
  EXPECT_THAT(log_, ::testing::HasSubstr(
                        "closed the connection of a client: memfd_create: Too many open files"));
}

}  // namespace
}  // namespace ibnbd::bridge
