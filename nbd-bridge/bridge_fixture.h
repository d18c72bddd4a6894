// SPDX-License-Identifier: Apache-2.0
// For tests of the whole bridge: one on a unix socket, over a library that is a fake, and clients
// of it.  At the end everything that it had must be gone.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "base/log.h"
#include "nbd-bridge/bridge.h"
#include "nbd-bridge/fake_ibnbd.h"
#include "nbd-bridge/test_client.h"

namespace ibnbd::bridge {

inline constexpr std::uint32_t kMiB = 1u << 20;

class BridgeTest : public ::testing::Test {
 protected:
  BridgeTest() {
    SetLogSink(
        [this](LogLevel, const std::string& line) {
          const std::lock_guard<std::mutex> lock(log_mutex_);
          log_ += line + "\n";
        },
        LogLevel::kWarn);
    char name[] = "/tmp/nbd_bridge_test.XXXXXX";
    directory_ = ::mkdtemp(name);
    options_.listen = {"unix:" + path()};
    AddVolume("vol0");
    auto& seen = fake::switches();
    seen.device_size = 64 * kMiB;
    seen.logical_block_size = 512;
    seen.volume_id = 0;
    seen.fail_info = 0;
    seen.can_discard = seen.can_write_zeroes = true;
    seen.hold = false;
    seen.hang_queue = -1;
    seen.session_answers = true;
    seen.fail_with = 0;
    seen.fail_flush_on_queue = -1;
    seen.io_depth_max = 1024;
    seen.ios_done = seen.flushes = seen.fua_writes = seen.zeroes_without_unmap = 0;
  }
  ~BridgeTest() override {
    fake::switches().hold = false;
    const bool expect_clean = bridge_ != nullptr && !gave_up_;
    bridge_.reset();
    SetLogSink([](LogLevel, const std::string&) {}, LogLevel::kWarn);
    if (expect_clean) {
      EXPECT_EQ(fake::switches().buffers, 0);
      EXPECT_EQ(fake::switches().sessions, 0);
    }
    if (handed_over_) (void)::unlink(path().c_str());
    struct stat info {};
    EXPECT_NE(::stat(path().c_str(), &info), 0) << "the socket file is still there";
    ::rmdir(directory_.c_str());
  }
  void AddVolume(const std::string& name, const std::string& server = "tcp://server/") {
    options_.volumes.volumes.push_back({name, *ParseUri(server + name)});
  }
  void StartBridge(Inheritance inheritance = {}) {
    auto bridge = Bridge::Start(options_, std::move(inheritance));
    ASSERT_TRUE(bridge.ok()) << bridge.status();
    bridge_ = *std::move(bridge);
    handed_over_ = false;
  }
  // The bridge ends; what the next one gets.
  Inheritance HandOver(bool clean = true) {
    Inheritance next;
    for (const ListenSocket& socket : bridge_->sockets()) {
      next.before.sockets.emplace_back(::fcntl(socket.fd(), F_DUPFD_CLOEXEC, 0));
    }
    handed_over_ = true;
    EXPECT_EQ(bridge_->StopFor(&next.before.clients), clean);
    bridge_.reset();
    return next;
  }
  TestClient Client(bool structured = false, const std::string& name = "vol0") {
    TestClient client(path());
    EXPECT_TRUE(client.Open(name, structured));
    return client;
  }
  std::string path() const { return directory_ + "/s"; }
  std::string Log() {
    const std::lock_guard<std::mutex> lock(log_mutex_);
    return log_;
  }

  std::string directory_;
  BridgeOptions options_;
  std::unique_ptr<Bridge> bridge_;
  bool gave_up_ = false;
  bool handed_over_ = false;  // The socket file is the next process's.
  std::mutex log_mutex_;
  std::string log_;
};

}  // namespace ibnbd::bridge
