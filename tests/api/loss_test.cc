// SPDX-License-Identifier: Apache-2.0
// What the application sees when the server dies: IOs are held and completed after its return, or
// fail when the loss policy says so; closing is bounded; each IO is answered once.
#include <errno.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <ibnbd/ibnbd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "tests/api/server_process.h"

namespace {

using Clock = std::chrono::steady_clock;

class LossTest : public testing::Test {
 protected:
  void SetUp() override {
    ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
    ASSERT_EQ(ibnbd_session_open(server_.uri().c_str(), &options, &session_), 0)
        << ibnbd_error_message();
    queue_ = ibnbd_session_queue(session_, 0);
    ASSERT_EQ(ibnbd_buffer_alloc(session_, 1 << 20, &buffer_), 0);
    Open("disk");
  }
  void Open(const char* name) {
    ASSERT_EQ(ibnbd_device_open(session_, name, nullptr, &device_), 0) << ibnbd_error_message();
  }
  void TearDown() override { ibnbd_session_close(session_, 0); }

  void SubmitWrites(std::size_t count) {
    ios_.resize(count);
    answers_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      ibnbd_io& io = ios_[i] = {};
      io.op = IBNBD_OP_WRITE;
      io.offset = i * 4096;
      io.length = 4096;
      io.data = ibnbd_buffer_data(buffer_);
      io.buffer = buffer_;
      io.opaque = this;
      io.done = [](ibnbd_io* done, int result) {
        static_cast<LossTest*>(done->opaque)->answers_.push_back(result);
      };
      ASSERT_EQ(ibnbd_submit(queue_, device_, &io), 0) << ibnbd_error_message();
    }
  }
  void PollFor(std::chrono::milliseconds time) {
    const auto end = Clock::now() + time;
    while (Clock::now() < end) ASSERT_GE(ibnbd_queue_wait(queue_, 10), 0);
  }
  void PollUntilAnswered(std::size_t count) {
    const auto end = Clock::now() + std::chrono::seconds(40);
    while (answers_.size() < count && Clock::now() < end) {
      ASSERT_GE(ibnbd_queue_wait(queue_, 100), 0);
    }
    ASSERT_EQ(answers_.size(), count);
  }
  std::uint32_t State(std::string* reason = nullptr) {
    struct ibnbd_device_info info = {};
    info.struct_size = sizeof info;
    EXPECT_EQ(ibnbd_device_get_info(device_, &info), 0) << ibnbd_error_message();
    if (reason != nullptr) *reason = info.state_reason;
    return info.state;
  }

  ServerProcess server_;
  ibnbd_session* session_ = nullptr;
  ibnbd_queue* queue_ = nullptr;
  ibnbd_device* device_ = nullptr;
  ibnbd_buffer* buffer_ = nullptr;
  std::vector<ibnbd_io> ios_;
  std::vector<int> answers_;
};

TEST_F(LossTest, IosFailWhenTheLossPolicyEnds) {
  ASSERT_EQ(ibnbd_device_set_fail_after(device_, 500), 0) << ibnbd_error_message();
  server_.Kill();
  const auto start = Clock::now();
  SubmitWrites(20);
  PollUntilAnswered(20);
  EXPECT_THAT(answers_, testing::Each(-ETIMEDOUT));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(State(), static_cast<std::uint32_t>(IBNBD_STATE_FAILING));
}

// A log that makes who writes a certain line wait.
class Trap {
 public:
  Trap() { ibnbd_set_log(&Trap::OnLine, this, IBNBD_LOG_INFO); }
  ~Trap() {
    Release();
    ibnbd_set_log(nullptr, nullptr, IBNBD_LOG_WARN);
  }
  void AwaitPrey() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return caught_; });
  }
  void Release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  static void OnLine(void* opaque, int /*level*/, const char* line) {
    auto& trap = *static_cast<Trap*>(opaque);
    if (std::string(line).find("path down") == std::string::npos) return;
    std::unique_lock<std::mutex> lock(trap.mutex_);
    trap.caught_ = true;
    trap.changed_.notify_all();
    trap.changed_.wait(lock, [&trap] { return trap.open_; });
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool caught_ = false;
  bool open_ = false;
};

TEST_F(LossTest, ASessionWhoseThreadHangsGivesNoSignOfLife) {
  const auto await_life = [this] {
    for (int left = 4000; left > 0; --left) {
      const int alive = ibnbd_session_is_alive(session_);
      if (alive != 0) return alive;
      ibnbd_queue_wait(queue_, 10);
    }
    return 0;
  };
  EXPECT_EQ(ibnbd_session_is_alive(session_), 1);
  EXPECT_EQ(await_life(), 1);
  Trap trap;
  server_.Kill();
  trap.AwaitPrey();
  (void)ibnbd_session_is_alive(session_);  // Asks, if the last question is answered.
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(ibnbd_session_is_alive(session_), 0);
    ibnbd_queue_wait(queue_, 1);
  }
  trap.Release();
  EXPECT_EQ(await_life(), 1);
  EXPECT_EQ(await_life(), 1);
}

TEST_F(LossTest, ClosingADeviceIsBoundedWhileTheServerIsAway) {
  server_.Kill();
  SubmitWrites(20);
  PollFor(std::chrono::milliseconds(200));
  std::string reason;
  EXPECT_EQ(State(&reason), static_cast<std::uint32_t>(IBNBD_STATE_HELD));
  EXPECT_FALSE(reason.empty());
  const auto start = Clock::now();
  EXPECT_EQ(ibnbd_device_close(device_, 300), -ETIMEDOUT);
  EXPECT_THAT(ibnbd_error_message(), testing::HasSubstr("cancelled"));
  ibnbd_queue_poll(queue_, 0);
  EXPECT_EQ(answers_.size(), 20u);
  EXPECT_THAT(answers_, testing::Each(-ECANCELED));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
}

TEST_F(LossTest, ClosingASessionIsBoundedWhileTheServerIsAway) {
  server_.Kill();
  SubmitWrites(20);
  PollFor(std::chrono::milliseconds(200));
  std::vector<char> block(1 << 20);
  const auto start = Clock::now();
  EXPECT_EQ(ibnbd_session_close(session_, 300), -ETIMEDOUT);
  session_ = nullptr;
  EXPECT_EQ(answers_.size(), 20u);
  EXPECT_THAT(answers_, testing::Each(-ECANCELED));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
}

TEST_F(LossTest, WhatIsHeldCanBeListed) {
  std::vector<ibnbd_io_info> ios;
  const ibnbd_io_fn add = [](void* opaque, const struct ibnbd_io_info* info) {
    static_cast<std::vector<ibnbd_io_info>*>(opaque)->push_back(*info);
    return 0;
  };
  ASSERT_EQ(ibnbd_device_list_ios(device_, 5000, add, &ios), 0) << ibnbd_error_message();
  EXPECT_TRUE(ios.empty());
  server_.Kill();
  SubmitWrites(3);
  PollFor(std::chrono::milliseconds(300));
  ASSERT_EQ(ibnbd_device_list_ios(device_, 5000, add, &ios), 0) << ibnbd_error_message();
  ASSERT_EQ(ios.size(), 3u);
  for (std::size_t i = 0; i < ios.size(); ++i) {
    EXPECT_EQ(ios[i].op, static_cast<std::uint32_t>(IBNBD_OP_WRITE));
    EXPECT_EQ(ios[i].offset, i * 4096);
    EXPECT_EQ(ios[i].length, 4096u);
    EXPECT_EQ(ios[i].queue, 0u);
    EXPECT_EQ(ios[i].waits_for, static_cast<std::uint32_t>(IBNBD_WAITS_FOR_SERVER));
    EXPECT_GE(ios[i].waited_ns, 300'000'000u);
  }
  const ibnbd_io_fn stop = [](void*, const struct ibnbd_io_info*) { return 42; };
  EXPECT_EQ(ibnbd_device_list_ios(device_, 5000, stop, nullptr), 42);
  EXPECT_EQ(ibnbd_device_list_ios(device_, 5000, nullptr, nullptr), -EINVAL);
  EXPECT_EQ(ibnbd_device_close(device_, 0), -ETIMEDOUT);
  PollUntilAnswered(3);
}

TEST_F(LossTest, IosAreHeldAndCompleteWhenTheServerReturns) {
  server_.Kill();
  SubmitWrites(20);
  PollFor(std::chrono::milliseconds(300));
  EXPECT_TRUE(answers_.empty());
  server_.Restart();
  ASSERT_NO_FATAL_FAILURE(PollUntilAnswered(20));
  EXPECT_THAT(answers_, testing::Each(0));
  EXPECT_EQ(ibnbd_pread(queue_, device_, ibnbd_buffer_data(buffer_), 4096, 0), 0)
      << ibnbd_error_message();
  struct ibnbd_session_info info = {};
  info.struct_size = sizeof info;
  ASSERT_EQ(ibnbd_session_get_info(session_, &info), 0);
  EXPECT_GE(info.reconnects, 1u);
}

// Memory is another volume after a restart: nothing of the old one is in it.
TEST_F(LossTest, AnotherVolumeUnderTheSameNameGetsNothing) {
  ASSERT_EQ(ibnbd_device_close(device_, 1000), 0) << ibnbd_error_message();
  Open("mem");
  server_.Kill();
  SubmitWrites(5);
  server_.Restart();
  std::string reason;
  const auto end = Clock::now() + std::chrono::seconds(20);
  do {
    PollFor(std::chrono::milliseconds(20));
    EXPECT_EQ(State(&reason), static_cast<std::uint32_t>(IBNBD_STATE_HELD));
  } while (reason.find("another volume") == std::string::npos && Clock::now() < end);
  EXPECT_THAT(reason, testing::HasSubstr("another volume"));
  EXPECT_TRUE(answers_.empty());
}

}  // namespace
