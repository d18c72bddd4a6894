// SPDX-License-Identifier: Apache-2.0
// Who waits for whom on the control socket, with a server that takes connections and says nothing.
#include "ibnbd-client/daemon/control_server.h"

#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/unique_fd.h"
#include "ibnbd-client/daemon/control_socket.h"
#include "ibnbd-client/mapping/silent_server_fixture.h"

namespace ibnbd::client {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(15);

class ControlServerTest : public ::testing::Test {
 protected:
  ControlServerTest() {
    char name[] = "/tmp/ibnbd-control.XXXXXX";
    directory_ = ::mkdtemp(name);
    auto listening = ListenControl(directory_ + "/sock", "");
    EXPECT_TRUE(listening.ok()) << listening.status();
    door_ = UniqueFd(::dup(listening->get()));
    names_ = std::make_unique<DeviceNames>(directory_ + "/devices");
    table_ = std::make_unique<DeviceTable>(
        *loops_, sessions_, *names_, [](const TableRecords&) { return absl::OkStatus(); },
        [] { return std::int64_t{1}; });
    server_ = ControlServer::Start(std::move(*listening), *table_);
  }
  ~ControlServerTest() override {
    silent_.End();
    clients_.clear();
    EXPECT_TRUE(server_->Stop(60'000));
    table_->StopThreads();
    std::filesystem::remove_all(directory_);
  }

  UniqueFd Connect() {
    while (true) {
      auto client = ConnectControl(directory_ + "/sock");
      if (client.ok()) return std::move(*client);
      absl::SleepFor(absl::Milliseconds(1));  // More than listen() keeps in line.
    }
  }
  // A client whose answer is not waited for.
  int Ask(const ControlRequest& request) {
    clients_.push_back(Connect());
    const int client = clients_.back().get();
    EXPECT_TRUE(WriteAll(client, FormatRequest(request), absl::Now() + kPatience, "ask").ok());
    return client;
  }
  int AskForMap(int number) {
    ControlRequest request;
    request.command = Command::kMap;
    request.map.uri = *ParseUri(absl::StrCat(silent_.uri(), "/vol", number));
    request.timeout_ms = 60'000;
    return Ask(request);
  }
  static absl::StatusOr<std::string> AnswerTo(int client) {
    return ReadLine(client, kAnswerSizeMax, absl::Now() + kPatience, "the answer");
  }
  static bool IsUnread(int client) {
    int bytes = 0;
    return ::ioctl(client, SIOCOUTQ, &bytes) == 0 && bytes > 0;
  }
  static bool HasAnswer(int fd) {
    pollfd one{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&one, 1, 0) > 0;
  }

  std::string directory_;
  UniqueFd door_;  // Where clients wait to be let in.
  SilentServer silent_;
  std::unique_ptr<DeviceLoops> loops_ = DeviceLoops::Start(1);
  SessionTable sessions_{*loops_, "", 1, ""};
  std::unique_ptr<DeviceNames> names_;
  std::unique_ptr<DeviceTable> table_;
  std::unique_ptr<ControlServer> server_;
  std::vector<UniqueFd> clients_;
};

TEST_F(ControlServerTest, AnswersOthersHoweverManyWaitForAServer) {
  std::vector<int> maps;
  for (int i = 0; i < 2 * ControlServer::kWorkersMax; ++i) maps.push_back(AskForMap(i));
  const auto list = AnswerTo(Ask(ControlRequest()));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(*list, R"({"devices":[]})");
  ControlRequest unmap;
  unmap.command = Command::kUnmap;
  unmap.device = "/dev/ublkb7";
  const auto unmapped = AnswerTo(Ask(unmap));
  ASSERT_TRUE(unmapped.ok()) << unmapped.status();
  EXPECT_TRUE(absl::StrContains(*unmapped, "not mapped")) << *unmapped;
  for (const int map : maps) EXPECT_FALSE(HasAnswer(map));
  // And all of those have their turn.
  silent_.End();
  for (const int map : maps) {
    const auto answer = AnswerTo(map);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(absl::StrContains(*answer, "error")) << *answer;
  }
}

TEST_F(ControlServerTest, TheEndDropsWhatIsNotBegun) {
  std::vector<pollfd> maps;
  for (int i = 0; i <= ControlServer::kMappingMax; ++i) {
    maps.push_back({.fd = AskForMap(i), .events = POLLIN, .revents = 0});
  }
  ASSERT_TRUE(AnswerTo(Ask(ControlRequest())).ok());
  EXPECT_FALSE(server_->Stop(0));
  ASSERT_GE(::poll(maps.data(), maps.size(), 60'000), 1);  // More than have their turn at once.
  for (const pollfd& map : maps) {
    if (map.revents == 0) continue;
    const auto answer = AnswerTo(map.fd);
    EXPECT_TRUE(absl::IsUnavailable(answer.status())) << answer.status();
  }
}

TEST_F(ControlServerTest, EndsAlthoughAllWorkersAreBusyAndMoreIsToBeDone) {
  for (int i = 0; i < ControlServer::kWorkersMax; ++i) {
    clients_.push_back(Connect());
    const int client = clients_.back().get();
    ASSERT_TRUE(WriteAll(client, "{", absl::Now() + kPatience, "ask").ok());
    while (IsUnread(client)) absl::SleepFor(absl::Milliseconds(1));
  }
  Ask(ControlRequest());
  while (HasAnswer(door_.get())) absl::SleepFor(absl::Milliseconds(1));  // It is let in.
  EXPECT_FALSE(server_->Stop(0));
  for (std::size_t i = 0; i < ControlServer::kWorkersMax; ++i)
    EXPECT_FALSE(HasAnswer(clients_.at(i).get()));
}

TEST_F(ControlServerTest, AVolumeIsNotMappedForOneWhoHasLeft) {
  MapRequest request;
  request.uri = *ParseUri(silent_.uri() + "/vol");
  const auto mapped = table_->Map(request, false, [] { return false; });
  EXPECT_TRUE(absl::IsCancelled(mapped.status())) << mapped.status();
  EXPECT_EQ(silent_.AcceptAll(), 0);
}

}  // namespace
}  // namespace ibnbd::client
