// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/listener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>

namespace ibnbd::bridge {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class ListenerTest : public ::testing::Test {
 protected:
  ListenerTest() {
    char name[] = "/tmp/listener_test.XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  ~ListenerTest() override {
    ::unlink(path().c_str());
    EXPECT_EQ(::rmdir(directory_.c_str()), 0);
  }
  std::string path() const { return directory_ + "/s"; }
  bool Exists() const {
    struct stat info {};
    return ::lstat(path().c_str(), &info) == 0;
  }
  std::string directory_;
};

TEST_F(ListenerTest, AUnixSocketIsThereWhileItIsHeld) {
  {
    const auto socket = ListenSocket::Open("unix:" + path());
    ASSERT_TRUE(socket.ok()) << socket.status();
    EXPECT_EQ(socket->address(), "unix:" + path());
    EXPECT_TRUE(Exists());
  }
  EXPECT_FALSE(Exists());
}

TEST_F(ListenerTest, ClientsAreToldAUri) {
  const std::string odd = directory_ + "/a b+c";
  {
    const auto socket = ListenSocket::Open("unix:" + odd);
    ASSERT_TRUE(socket.ok());
    EXPECT_EQ(socket->ClientUri(), "nbd+unix:///?socket=" + directory_ + "/a%20b%2bc");
  }
  const auto tcp = ListenSocket::Open("tcp:127.0.0.1:0");
  ASSERT_TRUE(tcp.ok());
  EXPECT_EQ(tcp->ClientUri(), "nbd://" + tcp->address().substr(4));
}

TEST_F(ListenerTest, ALiveSocketIsNotStolen) {
  const auto first = ListenSocket::Open(path());
  ASSERT_TRUE(first.ok());
  const auto second = ListenSocket::Open(path());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another server"));
  EXPECT_TRUE(Exists());
}

TEST_F(ListenerTest, AStaleSocketIsReplaced) {
  auto first = ListenSocket::Open(path());
  ASSERT_TRUE(first.ok());
  // As a crash leaves it: the file without a listener.  The link keeps it from being removed.
  const std::string keep = directory_ + "/keep";
  ASSERT_EQ(::link(path().c_str(), keep.c_str()), 0);
  { const ListenSocket gone = *std::move(first); }
  ASSERT_EQ(::rename(keep.c_str(), path().c_str()), 0);
  ASSERT_TRUE(Exists());
  const auto second = ListenSocket::Open(path());
  EXPECT_TRUE(second.ok()) << second.status();
}

TEST_F(ListenerTest, AFileThatIsNoSocketIsLeftAlone) {
  ::close(::open(path().c_str(), O_CREAT | O_WRONLY, 0600));
  EXPECT_FALSE(ListenSocket::Open(path()).ok());
  EXPECT_TRUE(Exists());
}

TEST_F(ListenerTest, ASuccessorsSocketIsNotRemoved) {
  std::optional<ListenSocket> first;
  {
    auto opened = ListenSocket::Open(path());
    ASSERT_TRUE(opened.ok());
    first.emplace(*std::move(opened));
  }
  ASSERT_EQ(::unlink(path().c_str()), 0);
  const auto second = ListenSocket::Open(path());
  ASSERT_TRUE(second.ok());
  first.reset();
  EXPECT_TRUE(Exists());
}

TEST_F(ListenerTest, PortZeroIsReadBack) {
  const auto socket = ListenSocket::Open("tcp:127.0.0.1:0");
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_THAT(socket->address(), StartsWith("tcp:127.0.0.1:"));
  EXPECT_NE(socket->address(), "tcp:127.0.0.1:0");
  // The port is taken now, and that is said with the address.
  const auto second = ListenSocket::Open(socket->address());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(socket->address()));
}

TEST_F(ListenerTest, AddressesThatMakeNoSenseAreRefused) {
  EXPECT_FALSE(ListenSocket::Open("tcp:127.0.0.1:99999").ok());
  EXPECT_FALSE(ListenSocket::Open("tcp:127.0.0.1:x").ok());
  EXPECT_TRUE(ListenSocket::Open("tcp::0").ok());
  EXPECT_TRUE(ListenSocket::Open("tcp:*:0").ok());
  EXPECT_FALSE(ListenSocket::Open("unix:").ok());
  EXPECT_FALSE(ListenSocket::Open("unix:/" + std::string(200, 'x')).ok());
}

TEST_F(ListenerTest, WhatAnotherProcessHasOpenedIsTakenByItsAddress) {
  for (const std::string& address : {"unix:" + path(), std::string("tcp:127.0.0.1:0")}) {
    std::vector<UniqueFd> inherited;
    std::string was;
    {
      auto before = ListenSocket::Open(address);
      ASSERT_TRUE(before.ok()) << before.status();
      was = before->address();
      const auto other = ListenSocket::Open("tcp:127.0.0.2:0");
      ASSERT_TRUE(other.ok()) << other.status();
      inherited.emplace_back(dup(other->fd()));
      inherited.emplace_back(dup(before->fd()));
      before->Leave();
    }
    const auto after = ListenSocket::Open(address, &inherited);
    ASSERT_TRUE(after.ok()) << after.status();
    EXPECT_EQ(after->address(), was);
    EXPECT_EQ(inherited.size(), 1u);
  }
}

}  // namespace
}  // namespace ibnbd::bridge
