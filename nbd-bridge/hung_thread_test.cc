// SPDX-License-Identifier: Apache-2.0
// A bridge of which a thread does not come back from the library, which is a fake: it is noticed,
// and costs its own clients only.  In a program of its own, because what is left to such a thread
// is never freed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nbd-bridge/bridge_fixture.h"

namespace ibnbd::bridge {
namespace {

using proto::NbdCmd;
using HungThreadTest = BridgeTest;

TEST_F(HungThreadTest, AThreadThatHangsIsMissedAndOneThatComesBackIsNot) {
  options_.thread_count = 2;
  StartBridge();
  const auto until = [this](bool alive) {
    while (bridge_->AllAlive() != alive) std::this_thread::yield();
  };
  until(true);
  fake::switches().hang_queue = 1;
  until(false);
  EXPECT_FALSE(bridge_->AllAlive());
  fake::switches().hang_queue = -1;
  until(true);
  fake::switches().session_answers = false;
  until(false);
  fake::switches().session_answers = true;
  until(true);
}

TEST_F(HungThreadTest, AThreadThatHangsCostsItsOwnClients) {
#ifdef __SANITIZE_THREAD__
  // It does not see liburing's mappings go, and nobody joins such a thread: rings of others that
  // come to lie at the same place look like races.
  fake::switches().hangs_for_good = true;
#endif
  options_.thread_count = 2;
  options_.stop_timeout_ms = 100;
  for (const int hangs : {0, 1}) {
    SCOPED_TRACE(hangs);
    StartBridge();
    TestClient first = Client(), second = Client();
    fake::switches().hang_queue = hangs;
    while (bridge_->AllAlive()) std::this_thread::yield();
    Inheritance next;
    for (const ListenSocket& socket : bridge_->sockets()) {
      next.before.sockets.emplace_back(::fcntl(socket.fd(), F_DUPFD_CLOEXEC, 0));
    }
    EXPECT_FALSE(bridge_->StopFor(&next.before.clients));
    EXPECT_THAT(Log(), ::testing::HasSubstr("nbd-loop-" + std::to_string(hangs) + " hangs"));
    EXPECT_EQ(next.before.clients.size(), 1u);
    static auto* const left = new std::vector<std::unique_ptr<Bridge>>;  // To its thread.
    left->push_back(std::move(bridge_));
    fake::switches().hang_queue = -1;
    StartBridge(std::move(next));
    EXPECT_EQ((hangs == 0 ? second : first).Do(NbdCmd::kFlush, 0, 0), 0);
    handed_over_ = false;
    bridge_.reset();
  }
}

}  // namespace
}  // namespace ibnbd::bridge
