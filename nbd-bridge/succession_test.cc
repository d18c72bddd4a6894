// SPDX-License-Identifier: Apache-2.0
// What a bridge tells one that looks at it, and what that one makes of it, over a library that is a
// fake.
#include "nbd-bridge/succession.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nbd-bridge/bridge_fixture.h"

namespace ibnbd::bridge {
namespace {

using ::testing::HasSubstr;

class SuccessionTest : public BridgeTest {
 protected:
  SuccessionTest() { fake::switches().volume_id = 4711; }
  // One that has chosen its export and got an answer since.
  TestClient Served(bool structured = false, const std::string& name = "vol0") {
    TestClient client = Client(structured, name);
    EXPECT_EQ(client.Do(proto::NbdCmd::kFlush, 0, 0), 0);
    return client;
  }
  std::string Check() {
    const auto before = ParsePredecessor(FormatPredecessor(bridge_->Describe()));
    EXPECT_TRUE(before.ok()) << before.status();
    return before.ok() ? std::string(CheckSuccession(options_, *before).message()) : "";
  }
};

TEST_F(SuccessionTest, WhatABridgeSaysOfItselfArrives) {
  options_.thread_count = 3;
  options_.stop_timeout_ms = 7'000;
  AddVolume("vol1");
  StartBridge();
  EXPECT_TRUE(bridge_->Describe().clients.empty());
  TestClient first = Served(), second = Served();
  TestClient third = Served(true, "vol1");
  const auto told = ParsePredecessor(FormatPredecessor(bridge_->Describe()));
  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_GE(told->ends_within_ns, 21 * kNsPerSecond);
  EXPECT_THAT(told->addresses, ::testing::ElementsAre("unix:" + path()));
  ASSERT_EQ(told->clients.size(), 2u);  // Two of them are alike.
  std::set<std::string> names;
  for (const ClientState& client : told->clients) {
    names.insert(client.export_name);
    EXPECT_EQ(client.volume_id, 4711u);
    EXPECT_EQ(client.limits.size, 64u * kMiB);
    EXPECT_EQ(client.structured_replies, client.export_name == "vol1");
  }
  EXPECT_EQ(names, (std::set<std::string>{"vol0", "vol1"}));
}

TEST_F(SuccessionTest, WhoHasGoneIsNotCounted) {
  StartBridge();
  { TestClient client = Served(); }
  while (!bridge_->Describe().clients.empty()) {
  }
}

TEST_F(SuccessionTest, WhatIsNotKnownIsLeftAloneAndWhatMakesNoSenseIsRefused) {
  EXPECT_TRUE(ParsePredecessor({"ends within ms 5", "of a later version"}).ok());
  EXPECT_FALSE(ParsePredecessor({"ends within ms -5"}).ok());
  EXPECT_FALSE(ParsePredecessor({"ends within ms 99999999999999"}).ok());
  EXPECT_FALSE(ParsePredecessor({"client nbd client 7"}).ok());
}

TEST_F(SuccessionTest, OneThatHasWhatTheClientsHaveMayTakeOver) {
  StartBridge();
  TestClient client = Served();
  EXPECT_EQ(Check(), "");
  EXPECT_EQ(fake::switches().sessions, 1);  // The running bridge's.
  options_.volumes.session_name = "a name";
  EXPECT_EQ(Check(), "");
}

TEST_F(SuccessionTest, OneThatWouldLoseAClientMayNot) {
  StartBridge();
  {
    TestClient client = Served();
    fake::switches().volume_id = 4712;
    EXPECT_THAT(Check(), HasSubstr("another volume"));
    fake::switches().volume_id = 4711;
    fake::switches().device_size = 32u * kMiB;
    EXPECT_THAT(Check(), HasSubstr("smaller"));
    fake::switches().device_size = 64u * kMiB;
    options_.volumes.read_only = true;
    EXPECT_THAT(Check(), HasSubstr("read-only"));
    options_.volumes.read_only = false;
    options_.connection_memory = kMiB;
    EXPECT_THAT(Check(), HasSubstr("--connection-memory"));
    fake::switches().device_size = 32u * kMiB;
  }
  while (!bridge_->Describe().clients.empty()) {
  }
  EXPECT_EQ(Check(), "");  // Nobody is there who would be lost.
}

TEST_F(SuccessionTest, OneThatFindsNoServerOrVolumeMayNot) {
  StartBridge();
  AddVolume("missing");
  EXPECT_THAT(Check(), HasSubstr("No such file"));
  // The server may have it in the directory of that session.
  options_.volumes.session_name = "vm7";
  EXPECT_EQ(Check(), "");
  options_.volumes.volumes.back() = {"missing", *ParseUri("tcp://nobody/missing")};
  EXPECT_THAT(Check(), HasSubstr("refused"));
}

TEST_F(SuccessionTest, AnAddressIsTriedUnlessItIsTheOtherOnes) {
  StartBridge();
  options_.listen.push_back("unix:" + directory_ + "/no/such/directory");
  EXPECT_THAT(Check(), HasSubstr("listen on unix:"));
  options_.listen.back() = "unix:" + directory_ + "/other";
  EXPECT_EQ(Check(), "");
  struct stat info {};
  EXPECT_NE(::stat((directory_ + "/other").c_str(), &info), 0);
  options_.listen.back() = "tcp:no-such-host.invalid:1";
  EXPECT_THAT(Check(), HasSubstr("no-such-host.invalid"));
}

TEST_F(SuccessionTest, WhoHasTakenOverServesThoughAnAddressIsLost) {
  StartBridge();
  TestClient client = Served();
  Inheritance next = HandOver();
  next.before.taken = true;
  options_.listen.push_back("unix:" + directory_ + "/no/such/directory");
  StartBridge(std::move(next));
  char data[512];
  EXPECT_EQ(client.Do(proto::NbdCmd::kRead, 0, 512, 0, data), 0);
  EXPECT_THAT(Log(), HasSubstr("there are clients to be served all the same"));
}

}  // namespace
}  // namespace ibnbd::bridge
