// SPDX-License-Identifier: Apache-2.0
// What one process gives another at the door arrives, however much it is; what is not as it should
// be costs the one it is about.
#include "base/handover.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <cstring>
#include <span>
#include <thread>

#include "base/clock.h"
#include "base/log.h"

namespace ibnbd {
namespace {

constexpr char kProgram[] = "test";
constexpr std::int64_t kTimeoutNs = 30 * kNsPerSecond;

UniqueFd AnyFd() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

class HandoverTest : public ::testing::Test {
 protected:
  HandoverTest() {
    SetLogSink([this](LogLevel, const std::string& line) { log_ += line + "\n"; }, LogLevel::kWarn);
    char name[] = "/tmp/handover_test.XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  ~HandoverTest() override {
    if (next_.joinable()) next_.join();
    SetLogSink([](LogLevel, const std::string&) {}, LogLevel::kWarn);
    (void)::unlink(path().c_str());
    ::rmdir(directory_.c_str());
  }
  std::string path() const { return directory_ + "/door"; }
  // The next process; result() waits for it.
  void StartNext(std::int64_t timeout_ns = kTimeoutNs) {
    next_ = std::thread([this, timeout_ns] { result_ = TakeOver(kProgram, path(), timeout_ns); });
  }
  static absl::StatusOr<UniqueFd> Succeed(HandoverSocket& door, const std::vector<int>& sockets,
                                          const HandoverSocket::Show& show = nullptr) {
    pollfd waiting{door.fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&waiting, 1, 30'000), 1);
    return door.HandOver(kProgram, sockets, show);
  }
  const absl::StatusOr<HandedOver>& result() {
    next_.join();
    return result_;
  }

  std::string log_;
  std::string directory_;
  std::thread next_;
  absl::StatusOr<HandedOver> result_;
};

// A process that runs and may say anything.
class Running {
 public:
  explicit Running(const std::string& path)
      : listening_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    EXPECT_EQ(::bind(listening_.get(), generic, sizeof address), 0);
    EXPECT_EQ(::listen(listening_.get(), 1), 0);
  }
  void Accept() {
    connection_.Reset(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    char word[64];
    EXPECT_GT(::recv(connection_.get(), word, sizeof word, 0), 0);
  }
  void SayFirst() { Say(std::string("test listening sockets 1\0", 25), 0); }
  void Say(const std::string& text, std::size_t descriptors) {
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    iovec bytes{const_cast<char*>(text.data()), text.size()};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    if (descriptors != 0) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(descriptors * sizeof(int));
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(descriptors * sizeof(int));
      const int fds[2] = {any_.get(), any_.get()};
      std::memcpy(CMSG_DATA(header), fds, descriptors * sizeof(int));
    }
    EXPECT_EQ(::sendmsg(connection_.get(), &message, MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  void End() { connection_.Reset(); }
  // As End(), but its descriptor stays in use.
  void Stop() { EXPECT_EQ(::shutdown(connection_.get(), SHUT_WR), 0); }

 private:
  UniqueFd listening_;
  UniqueFd connection_;
  const UniqueFd any_ = AnyFd();
};

TEST_F(HandoverTest, AnyNumberOfSocketsAndClientsArrives) {
  for (const std::size_t count : {0u, 1u, 64u, 65u, 200u}) {
    SCOPED_TRACE(count);
    auto door = HandoverSocket::Open(path());
    ASSERT_TRUE(door.ok()) << door.status();
    std::vector<UniqueFd> fds;
    std::vector<int> sockets;
    std::vector<HandedClient> clients;
    for (std::size_t i = 0; i < count; ++i) {
      fds.push_back(AnyFd());
      sockets.push_back(fds.back().get());
      clients.push_back({AnyFd(), std::to_string(i)});
    }
    StartNext();
    auto successor = Succeed(*door, sockets);
    ASSERT_TRUE(successor.ok()) << successor.status();
    EXPECT_TRUE(HandOverClients(successor->get(), clients));
    successor->Reset();
    ASSERT_TRUE(result().ok()) << result_.status();
    EXPECT_EQ(result_->sockets.size(), count);
    ASSERT_EQ(result_->clients.size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(result_->clients[i].state, std::to_string(i));
      EXPECT_TRUE(result_->clients[i].socket.valid());
    }
  }
}

TEST_F(HandoverTest, AMessageThatMakesNoSenseCostsTheClientItIsAbout) {
  Running running(path());
  StartNext();
  running.Accept();
  running.SayFirst();
  running.Say("first", 1);
  running.Say("no socket", 0);
  running.Say("two sockets", 2);
  running.Say(std::string(kHandedStateMax + 1, 'x'), 1);
  running.Say("", 1);
  running.Say("last", 1);
  running.End();
  ASSERT_TRUE(result().ok()) << result_.status();
  ASSERT_EQ(result_->clients.size(), 3u);
  EXPECT_EQ(result_->clients.front().state, "first");
  EXPECT_EQ(result_->clients[1].state, "");  // Its reader will not understand it.
  EXPECT_EQ(result_->clients.back().state, "last");
  EXPECT_THAT(log_, ::testing::HasSubstr("is not understood"));
}

TEST_F(HandoverTest, AClientThatCannotBeHandedOverCostsNobodyElse) {
  auto door = HandoverSocket::Open(path());
  ASSERT_TRUE(door.ok()) << door.status();
  StartNext();
  auto successor = Succeed(*door, {});
  ASSERT_TRUE(successor.ok()) << successor.status();
  std::vector<HandedClient> clients;
  clients.push_back({AnyFd(), "first"});
  clients.push_back({UniqueFd(), "no socket"});
  clients.push_back({AnyFd(), std::string(kHandedStateMax + 1, 'x')});
  clients.push_back({AnyFd(), "last"});
  EXPECT_FALSE(HandOverClients(successor->get(), clients));
  successor->Reset();
  ASSERT_TRUE(result().ok()) << result_.status();
  ASSERT_EQ(result_->clients.size(), 2u);
  EXPECT_EQ(result_->clients.back().state, "last");
}

TEST_F(HandoverTest, TooFewDescriptorsCostThoseForWhomThereAreNone) {
  Running running(path());
  StartNext();
  running.Accept();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const int free = AnyFd().get();  // Of the next that is opened.
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(free) + 1;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  running.SayFirst();
  for (const char* name : {"first", "second", "third"}) running.Say(name, 1);
  running.Stop();
  const bool ok = result().ok();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(ok) << result_.status();
  ASSERT_EQ(result_->clients.size(), 1u);
  EXPECT_EQ(result_->clients.front().state, "first");
  EXPECT_THAT(log_, ::testing::HasSubstr("open files are allowed"));
}

TEST_F(HandoverTest, AProcessWithoutADescriptorLeftCanBeReplaced) {
  auto door = HandoverSocket::Open(path());
  ASSERT_TRUE(door.ok()) << door.status();
  StartNext();
  pollfd waiting{door->fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&waiting, 1, 30'000), 1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(AnyFd().get());  // The next that would be opened.
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_FALSE(AnyFd().valid());
  auto successor = door->HandOver(kProgram, {});
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(successor.ok()) << successor.status();
  successor->Reset();
  EXPECT_TRUE(result().ok()) << result_.status();
}

TEST_F(HandoverTest, WhoDoesNotEndKeepsNobodyWhomHeHasHandedOver) {
  Running running(path());
  StartNext(2 * kNsPerSecond);
  running.Accept();
  running.SayFirst();
  running.Say("first", 1);
  ASSERT_TRUE(result().ok()) << result_.status();
  EXPECT_EQ(result_->clients.size(), 1u);
}

TEST_F(HandoverTest, WhoDoesNotEndAndHandsNobodyOverIsNotSucceeded) {
  Running running(path());
  StartNext(kNsPerSecond / 10);
  running.Accept();
  running.SayFirst();
  EXPECT_EQ(result().status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(HandoverTest, WhoLooksSeesEverythingAndTakesNothing) {
  for (const std::size_t count : {0u, 1u, 300u}) {
    SCOPED_TRACE(count);
    auto door = HandoverSocket::Open(path());
    ASSERT_TRUE(door.ok()) << door.status();
    std::vector<std::string> shown;
    for (std::size_t i = 0; i < count; ++i) {
      shown.push_back(std::to_string(i) + std::string(i % 100 == 0 ? 90'000 : 1, '.'));
    }
    absl::StatusOr<std::optional<std::vector<std::string>>> seen;
    std::thread looking([&] { seen = LookAt(kProgram, path(), kTimeoutNs); });
    const UniqueFd socket = AnyFd();
    const auto visitor = Succeed(*door, {socket.get()}, [&shown] { return shown; });
    looking.join();
    ASSERT_TRUE(visitor.ok()) << visitor.status();
    EXPECT_FALSE(visitor->valid());
    ASSERT_TRUE(seen.ok()) << seen.status();
    ASSERT_TRUE(seen->has_value());
    EXPECT_EQ(**seen, shown);
    // The next one may take.
    StartNext();
    auto successor = Succeed(*door, {socket.get()});
    ASSERT_TRUE(successor.ok()) << successor.status();
    successor->Reset();
    ASSERT_TRUE(result().ok()) << result_.status();
    EXPECT_EQ(result_->sockets.size(), 1u);
  }
}

TEST_F(HandoverTest, NobodyIsThereToLookAt) {
  const auto seen = LookAt(kProgram, path(), kTimeoutNs);
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_FALSE(seen->has_value());
}

TEST_F(HandoverTest, WhoDoesNotAnswerOrShowsHalfOfItIsNotSeen) {
  Running running(path());
  EXPECT_EQ(LookAt(kProgram, path(), kNsPerSecond / 10).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  running.Accept();
  for (const char* first : {"test shows 1 2", "test shows 1 x", "test shows 1 -1", "other"}) {
    SCOPED_TRACE(first);
    absl::StatusOr<std::optional<std::vector<std::string>>> seen;
    std::thread looking([&] { seen = LookAt(kProgram, path(), kTimeoutNs); });
    running.Accept();
    running.Say(first, 0);  // Whoever looks leaves at once if that is wrong.
    if (first == std::string("test shows 1 2")) running.Say("one", 0);
    running.End();
    looking.join();
    EXPECT_FALSE(seen.ok());
  }
}

TEST_F(HandoverTest, WhoSaysNothingOrWantsSomethingElseGetsNothing) {
  auto door = HandoverSocket::Open(path());
  ASSERT_TRUE(door.ok()) << door.status();
  for (const char* word : {"", "test takes 2", "other takes 1", "test looks 1"}) {
    SCOPED_TRACE(word);
    const UniqueFd visitor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path().c_str(), path().size() + 1);
    ASSERT_EQ(::connect(visitor.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
              0);
    if (*word != '\0') {
      ASSERT_GT(::send(visitor.get(), word, std::strlen(word), 0), 0);
    }
    EXPECT_FALSE(Succeed(*door, {}).ok());
    char byte = 0;
    EXPECT_LE(::recv(visitor.get(), &byte, 1, 0), 0);
  }
}

}  // namespace
}  // namespace ibnbd
