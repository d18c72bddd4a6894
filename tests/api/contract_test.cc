// SPDX-License-Identifier: Apache-2.0
// The contract of <ibnbd/ibnbd.h> against a real server process over loopback TCP: what works, and
// what every misuse answers: its errno and a text that names it.
#include <errno.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <ibnbd/ibnbd.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/api/server_process.h"

namespace {

using testing::HasSubstr;

// What a call that failed answered.
#define EXPECT_REFUSED(call, error, text)                                      \
  do {                                                                         \
    EXPECT_EQ((call), (error)) << ibnbd_error_message();                       \
    EXPECT_THAT(std::string(ibnbd_error_message()), testing::HasSubstr(text)); \
  } while (false)

ServerProcess& Server() {
  static ServerProcess& server = *new ServerProcess;
  return server;
}

class ContractTest : public testing::Test {
 public:  // Callbacks of tests use it.
  void SetUp() override {
    uri_ = Server().uri();
    options_.connect_timeout_ms = 10'000;
    Open();
  }
  void TearDown() override { ibnbd_session_close(session_, 5000); }

  void Open() {
    ASSERT_EQ(ibnbd_session_open(uri_.c_str(), &options_, &session_), 0) << ibnbd_error_message();
    queue_ = ibnbd_session_queue(session_, 0);
    device_ = OpenDevice("mem");
    ASSERT_EQ(ibnbd_buffer_alloc(session_, kBufferSize, &buffer_), 0) << ibnbd_error_message();
  }
  ibnbd_device* OpenDevice(const char* name, std::uint32_t access = IBNBD_READ_WRITE) {
    ibnbd_device_options options = IBNBD_DEVICE_OPTIONS_INIT;
    options.access = access;
    ibnbd_device* device = nullptr;
    EXPECT_EQ(ibnbd_device_open(session_, name, &options, &device), 0) << ibnbd_error_message();
    return device;
  }
  char* data() { return static_cast<char*>(ibnbd_buffer_data(buffer_)); }

  ibnbd_io MakeIo(std::uint32_t op, std::uint64_t offset, std::uint64_t length) {
    ibnbd_io io = {};
    io.op = op;
    io.offset = offset;
    io.length = length;
    if (op == IBNBD_OP_READ || op == IBNBD_OP_WRITE) {
      io.data = data();
      io.buffer = buffer_;
    }
    io.opaque = this;
    io.done = [](ibnbd_io* done, int result) {
      auto* self = static_cast<ContractTest*>(done->opaque);
      ++self->done_count_;
      self->last_result_ = result;
    };
    return io;
  }
  int Submit(ibnbd_io& io) { return ibnbd_submit(queue_, device_, &io); }
  void PollUntil(int count) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (done_count_ < count && std::chrono::steady_clock::now() < deadline) {
      ASSERT_GE(ibnbd_queue_wait(queue_, 100), 0) << ibnbd_error_message();
    }
    ASSERT_EQ(done_count_, count);
  }
  int Run(ibnbd_io& io) {
    const int error = Submit(io);
    if (error != 0) return error;
    PollUntil(done_count_ + 1);
    return last_result_;
  }

  static constexpr std::size_t kBufferSize = std::size_t{4} << 20;
  static constexpr std::uint64_t kMemSize = std::uint64_t{64} << 20;
  std::string uri_;
  ibnbd_session_options options_ = IBNBD_SESSION_OPTIONS_INIT;
  ibnbd_session* session_ = nullptr;
  ibnbd_queue* queue_ = nullptr;
  ibnbd_device* device_ = nullptr;
  ibnbd_buffer* buffer_ = nullptr;
  int done_count_ = 0;
  int last_result_ = 0;
};

// Memory of each kind carries data; that of a memfd is another process's, too.
TEST(Memory, OfEveryKindCarriesData) {
  for (const char* kind : {"pages", "huge", "memfd"}) {
    ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
    options.memory = kind;
    ibnbd_session* session = nullptr;
    ASSERT_EQ(ibnbd_session_open(Server().uri().c_str(), &options, &session), 0)
        << ibnbd_error_message();
    ibnbd_device* device = nullptr;
    ASSERT_EQ(ibnbd_device_open(session, "mem", nullptr, &device), 0) << ibnbd_error_message();
    ibnbd_buffer* buffer = nullptr;
    ASSERT_EQ(ibnbd_buffer_alloc(session, 3u << 20, &buffer), 0) << ibnbd_error_message();
    auto* data = static_cast<char*>(ibnbd_buffer_data(buffer));
    if (std::strcmp(kind, "memfd") == 0) {
      ASSERT_EQ(pwrite(ibnbd_buffer_fd(buffer), kind, 5, 4096), 5);
    } else {
      EXPECT_REFUSED(ibnbd_buffer_fd(buffer), -ENOTSUP, "memfd");
      std::memcpy(data + 4096, kind, 5);
    }
    EXPECT_EQ(ibnbd_pwrite(ibnbd_session_queue(session, 0), device, data + 4096, 4096, 8192, 0), 0)
        << ibnbd_error_message();
    char back[4096] = {};
    EXPECT_EQ(ibnbd_pread(ibnbd_session_queue(session, 0), device, back, sizeof back, 8192), 0)
        << ibnbd_error_message();
    EXPECT_EQ(std::memcmp(back, kind, 5), 0) << kind;
    EXPECT_EQ(ibnbd_session_close(session, 5000), 0);
  }
}

TEST(Memory, OfAnUnknownKindIsRefused) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  options.memory = "gold";
  ibnbd_session* session = nullptr;
  EXPECT_REFUSED(ibnbd_session_open(Server().uri().c_str(), &options, &session), -EINVAL,
                 "memory \"gold\": expected pages, huge or memfd");
}

TEST_F(ContractTest, WhatIsWrittenIsReadBack) {
  for (std::size_t i = 0; i < kBufferSize; ++i) data()[i] = static_cast<char>(i * 131 + i / 4096);
  const std::vector<char> copy(data(), data() + kBufferSize);
  ibnbd_io io = MakeIo(IBNBD_OP_WRITE, 1 << 20, kBufferSize);
  ASSERT_EQ(Run(io), 0);
  std::memset(data(), 0, kBufferSize);
  io = MakeIo(IBNBD_OP_READ, 1 << 20, kBufferSize);
  ASSERT_EQ(Run(io), 0);
  EXPECT_EQ(std::memcmp(data(), copy.data(), kBufferSize), 0);
}

TEST_F(ContractTest, UnregisteredMemoryOfAnySizeAndAlignmentWorks) {
  std::vector<char> out((9 << 20) + 1), in(out.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<char>(i * 37 + i / 65536);
  const std::size_t size = out.size() - 1;
  ASSERT_EQ(ibnbd_pwrite(queue_, device_, out.data() + 1, size, 512, IBNBD_IO_FUA), 0)
      << ibnbd_error_message();
  ASSERT_EQ(ibnbd_pread(queue_, device_, in.data() + 1, size, 512), 0) << ibnbd_error_message();
  EXPECT_EQ(std::memcmp(in.data() + 1, out.data() + 1, size), 0);
}

TEST_F(ContractTest, ZeroesDiscardAndFlushDoWhatTheySay) {
  std::memset(data(), 0x5a, 65536);
  ibnbd_io io = MakeIo(IBNBD_OP_WRITE, 0, 65536);
  ASSERT_EQ(Run(io), 0);
  EXPECT_EQ(ibnbd_flush(queue_, device_), 0) << ibnbd_error_message();
  EXPECT_EQ(ibnbd_write_zeroes(queue_, device_, 4096, 8192, 0), 0) << ibnbd_error_message();
  EXPECT_EQ(ibnbd_write_zeroes(queue_, device_, 4096, 12288, IBNBD_IO_NO_UNMAP), 0);
  EXPECT_EQ(ibnbd_discard(queue_, device_, 32768, 32768), 0) << ibnbd_error_message();
  ASSERT_EQ(ibnbd_pread(queue_, device_, data(), 32768, 0), 0);
  EXPECT_EQ(data()[8191], 0x5a);
  EXPECT_TRUE(std::all_of(data() + 8192, data() + 16384, [](char c) { return c == 0; }));
  EXPECT_EQ(data()[16384], 0x5a);
}

TEST_F(ContractTest, ManyIosAreEachAnsweredOnceAndNeverInsideSubmit) {
  constexpr int kCount = 500;
  std::vector<ibnbd_io> ios(kCount);
  for (int i = 0; i < kCount; ++i) {
    ios[static_cast<std::size_t>(i)] = MakeIo(i % 2 == 0 ? IBNBD_OP_READ : IBNBD_OP_WRITE,
                                              static_cast<std::uint64_t>(i) * 4096, 4096);
    const int before = done_count_;
    ASSERT_EQ(Submit(ios[static_cast<std::size_t>(i)]), 0) << ibnbd_error_message();
    ASSERT_EQ(done_count_, before);
  }
  ASSERT_EQ(ibnbd_queue_flush(queue_), 0);
  EXPECT_EQ(done_count_, 0);
  PollUntil(kCount);
  ibnbd_queue_wait(queue_, 20);
  EXPECT_EQ(done_count_, kCount);
}

TEST_F(ContractTest, ThePollBudgetIsKept) {
  std::vector<ibnbd_io> ios(20);
  for (ibnbd_io& io : ios) {
    io = MakeIo(IBNBD_OP_READ, 0, 4096);
    ASSERT_EQ(Submit(io), 0);
  }
  int polls = 0;
  while (done_count_ < 20) {
    const int ran = ibnbd_queue_poll(queue_, 3);
    ASSERT_LE(ran, 3);
    polls += ran > 0 ? 1 : 0;
  }
  EXPECT_GE(polls, 7);
}

TEST_F(ContractTest, ACallbackMayResubmitItsIo) {
  struct Loop {
    ibnbd_queue* queue;
    ibnbd_device* device;
    int left;
  } loop{queue_, device_, 100};
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  io.opaque = &loop;
  io.done = [](ibnbd_io* done, int) {
    auto* self = static_cast<Loop*>(done->opaque);
    if (--self->left > 0) {
      EXPECT_EQ(ibnbd_submit(self->queue, self->device, done), 0) << ibnbd_error_message();
    }
  };
  ASSERT_EQ(Submit(io), 0);
  while (loop.left > 0) ASSERT_GE(ibnbd_queue_wait(queue_, 1000), 0);
}

TEST_F(ContractTest, ACallbackMustNotWait) {
  static std::vector<int> answers;
  answers.clear();
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  io.done = [](ibnbd_io* done, int) {
    auto* self = static_cast<ContractTest*>(done->opaque);
    answers.push_back(ibnbd_queue_poll(self->queue_, 0));
    answers.push_back(ibnbd_queue_wait(self->queue_, 0));
    answers.push_back(ibnbd_pread(self->queue_, self->device_, self->data(), 4096, 0));
    answers.push_back(ibnbd_device_close(self->device_, 0));
    answers.push_back(ibnbd_session_close(self->session_, 0));
    ++self->done_count_;
  };
  ASSERT_EQ(Submit(io), 0);
  PollUntil(1);
  EXPECT_THAT(answers, testing::Each(-EDEADLK));
  EXPECT_EQ(answers.size(), 5u);
}

TEST_F(ContractTest, MisuseOfSubmitIsNamed) {
  const auto refuse = [this](const std::function<void(ibnbd_io&)>& spoil, int error,
                             const char* text) {
    ibnbd_io io = MakeIo(IBNBD_OP_WRITE, 0, 4096);
    spoil(io);
    EXPECT_REFUSED(Submit(io), error, text);
  };
  refuse([](ibnbd_io& io) { io.op = 6; }, -EINVAL, "unknown op 6");
  refuse([](ibnbd_io& io) { io.op = ~0u; }, -EINVAL, "unknown op");
  refuse([](ibnbd_io& io) { io.flags = 64; }, -EINVAL, "0x40");
  refuse([](ibnbd_io& io) { io.flags = IBNBD_IO_NO_UNMAP; }, -EINVAL, "do not fit a write");
  refuse([](ibnbd_io& io) { io.offset = 100; }, -EINVAL, "not a multiple");
  refuse([](ibnbd_io& io) { io.length = 100; }, -EINVAL, "not a multiple");
  refuse([](ibnbd_io& io) { io.length = 0; }, -EINVAL, "length is 0");
  refuse([](ibnbd_io& io) { io.offset = kMemSize; }, -EINVAL, "ends behind");
  refuse([](ibnbd_io& io) { io.offset = ~std::uint64_t{4095}; }, -EINVAL, "ends behind");
  refuse([](ibnbd_io& io) { io.data = nullptr; }, -EINVAL, "data is NULL");
  refuse([this](ibnbd_io& io) { io.data = data() - 1; }, -EINVAL, "not inside the buffer");
  refuse([this](ibnbd_io& io) { io.data = data() + kBufferSize - 4095; }, -EINVAL, "not inside");
  refuse([](ibnbd_io& io) { io.done = nullptr; }, -EINVAL, "callback is NULL");
  refuse([](ibnbd_io& io) { io.reserved[1] = 1; }, -EINVAL, "reserved");
  refuse([](ibnbd_io& io) { io.op = IBNBD_OP_FLUSH; }, -EINVAL, "must be 0");
  refuse([](ibnbd_io& io) { io.op = IBNBD_OP_DISCARD; }, -EINVAL, "has no data");
  refuse(
      [](ibnbd_io& io) {
        io.op = IBNBD_OP_SECURE_ERASE;
        io.data = nullptr;
        io.buffer = nullptr;
      },
      -EOPNOTSUPP, "does not support secure erase");
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  EXPECT_REFUSED(ibnbd_submit(nullptr, device_, &io), -EINVAL, "queue is NULL");
  EXPECT_REFUSED(ibnbd_submit(queue_, nullptr, &io), -EINVAL, "device is NULL");
  EXPECT_REFUSED(ibnbd_submit(queue_, device_, nullptr), -EINVAL, "IO is NULL");
  EXPECT_EQ(done_count_, 0);
}

TEST_F(ContractTest, AnIoCannotBeSubmittedTwiceAtOnce) {
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  ASSERT_EQ(Submit(io), 0);
  EXPECT_REFUSED(Submit(io), -EBUSY, "outstanding already");
  PollUntil(1);
  ASSERT_EQ(Submit(io), 0);
  PollUntil(2);
}

TEST_F(ContractTest, HandlesOfAnotherSessionAreRefused) {
  ibnbd_session* other = nullptr;
  ASSERT_EQ(ibnbd_session_open(uri_.c_str(), nullptr, &other), 0) << ibnbd_error_message();
  ibnbd_buffer* foreign = nullptr;
  ASSERT_EQ(ibnbd_buffer_alloc(other, 4096, &foreign), 0);
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  EXPECT_REFUSED(ibnbd_submit(ibnbd_session_queue(other, 0), device_, &io), -EINVAL,
                 "different sessions");
  io.buffer = foreign;
  io.data = ibnbd_buffer_data(foreign);
  EXPECT_REFUSED(Submit(io), -EINVAL, "another session");
  EXPECT_EQ(ibnbd_session_close(other, 1000), 0);
  ibnbd_buffer_free(foreign);  // Gone with its session: said, not crashed.
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("not a buffer"));
}

TEST_F(ContractTest, AWriteToAReadOnlyDeviceIsRefused) {
  ibnbd_device* read_only = OpenDevice("ro", IBNBD_READ_ONLY);
  ibnbd_io io = MakeIo(IBNBD_OP_WRITE, 0, 4096);
  EXPECT_REFUSED(ibnbd_submit(queue_, read_only, &io), -EPERM, "read-only");
  EXPECT_REFUSED(ibnbd_write_zeroes(queue_, read_only, 4096, 0, 0), -EPERM, "read-only");
  EXPECT_EQ(ibnbd_pread(queue_, read_only, data(), 4096, 0), 0) << ibnbd_error_message();
}

TEST_F(ContractTest, AnUnknownExportIsNamed) {
  ibnbd_device* device = nullptr;
  const int error = ibnbd_device_open(session_, "nothere", nullptr, &device);
  EXPECT_EQ(error, -ENOENT);
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("nothere"));
  EXPECT_EQ(device, nullptr);
}

TEST_F(ContractTest, MisuseOfOpeningIsNamed) {
  ibnbd_session* session = nullptr;
  EXPECT_REFUSED(ibnbd_session_open(nullptr, nullptr, &session), -EINVAL, "URI is NULL");
  EXPECT_REFUSED(ibnbd_session_open("tcp://h", nullptr, nullptr), -EINVAL, "NULL");
  EXPECT_REFUSED(ibnbd_session_open("http://h", nullptr, &session), -EINVAL, "http");
  const auto refuse = [&](const std::function<void(ibnbd_session_options&)>& spoil,
                          const char* text) {
    ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
    spoil(options);
    EXPECT_REFUSED(ibnbd_session_open(uri_.c_str(), &options, &session), -EINVAL, text);
    EXPECT_EQ(session, nullptr);
  };
  refuse([](auto& o) { o.struct_size = 8; }, "struct_size");
  refuse([](auto& o) { o.flags = 1u << 31; }, "unknown flags");
  refuse([](auto& o) { o.queue_count = 0; }, "queue_count is 0");
  refuse([](auto& o) { o.queue_count = 65; }, "queue_count is 65");
  refuse([](auto& o) { o.io_depth_max = 0; }, "io_depth_max");
  refuse([](auto& o) { o.name = "a/b"; }, "a/b");
  refuse([](auto& o) { o.reserved[1] = 1; }, "reserved");
  ibnbd_device* device = nullptr;
  ibnbd_device_options options = IBNBD_DEVICE_OPTIONS_INIT;
  EXPECT_REFUSED(ibnbd_device_open(session_, nullptr, nullptr, &device), -EINVAL, "name is NULL");
  EXPECT_REFUSED(ibnbd_device_open(session_, "", nullptr, &device), -EINVAL, "1 to 255");
  options.access = 3;
  EXPECT_REFUSED(ibnbd_device_open(session_, "mem", &options, &device), -EINVAL, "access 3");
  options.access = IBNBD_READ_ONLY;
  options.fail_after_ms = -2;
  EXPECT_REFUSED(ibnbd_device_open(session_, "mem", &options, &device), -EINVAL, "fail_after_ms");
  EXPECT_REFUSED(ibnbd_device_set_fail_after(device_, -7), -EINVAL, "-7");
  EXPECT_EQ(ibnbd_session_queue(session_, 1), nullptr);
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("no queue 1"));
  struct ibnbd_device_info info = {};
  EXPECT_REFUSED(ibnbd_device_get_info(device_, &info), -EINVAL, "struct_size");
}

TEST_F(ContractTest, ARefusedConnectionSaysWhereAndWhy) {
  ibnbd_session* session = nullptr;
  const int error = ibnbd_session_open("tcp://127.0.0.1:1", nullptr, &session);
  EXPECT_LT(error, 0);
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(ibnbd_error_message(), HasSubstr("Connection refused"));
}

TEST_F(ContractTest, ADeviceIsUnusableAfterClosing) {
  ASSERT_EQ(ibnbd_device_close(device_, 1000), 0) << ibnbd_error_message();
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  EXPECT_REFUSED(Submit(io), -ENODEV, "mem was closed");
  EXPECT_REFUSED(ibnbd_device_close(device_, 1000), -ENODEV, "mem was closed");
  EXPECT_REFUSED(ibnbd_pread(queue_, device_, data(), 4096, 0), -ENODEV, "closed");
  device_ = OpenDevice("mem");  // And may be opened again.
  EXPECT_EQ(ibnbd_pread(queue_, device_, data(), 4096, 0), 0) << ibnbd_error_message();
}

TEST_F(ContractTest, ClosingADeviceWaitsForItsIos) {
  std::vector<ibnbd_io> ios(50);
  for (ibnbd_io& io : ios) {
    io = MakeIo(IBNBD_OP_READ, 0, 65536);
    ASSERT_EQ(Submit(io), 0);
  }
  EXPECT_EQ(ibnbd_device_close(device_, 10'000), 0) << ibnbd_error_message();
  EXPECT_EQ(done_count_, 50);
  EXPECT_EQ(last_result_, 0);
}

TEST_F(ContractTest, ClosingASessionTwiceIsAnError) {
  ibnbd_session* session = nullptr;
  ASSERT_EQ(ibnbd_session_open(uri_.c_str(), nullptr, &session), 0) << ibnbd_error_message();
  ASSERT_EQ(ibnbd_session_close(session, 1000), 0);
  EXPECT_REFUSED(ibnbd_session_close(session, 1000), -EINVAL, "not an open session");
  EXPECT_REFUSED(ibnbd_session_ping(session, 1000, nullptr), -EINVAL, "not an open session");
}

TEST_F(ContractTest, ClosingASessionAnswersWhatIsOutstanding) {
  std::vector<ibnbd_io> ios(64);
  for (ibnbd_io& io : ios) {
    io = MakeIo(IBNBD_OP_READ, 0, 65536);
    ASSERT_EQ(Submit(io), 0);
  }
  const int closed = ibnbd_session_close(std::exchange(session_, nullptr), 0);
  EXPECT_EQ(done_count_, 64);
  EXPECT_TRUE(closed == 0 || closed == -ETIMEDOUT);
}

TEST_F(ContractTest, MoreThanTheDepthIsRefusedUntilSomethingIsDone) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  options.io_depth_max = 4;
  ibnbd_session_close(session_, 1000);
  options_ = options;
  Open();
  std::vector<ibnbd_io> ios(5);
  for (ibnbd_io& io : ios) io = MakeIo(IBNBD_OP_READ, 0, 4096);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(Submit(ios[static_cast<std::size_t>(i)]), 0);
  EXPECT_REFUSED(Submit(ios[4]), -EAGAIN, "io_depth_max");
  PollUntil(4);
  ASSERT_EQ(Submit(ios[4]), 0);
  PollUntil(5);
}

TEST_F(ContractTest, WithoutBounceBytesUnregisteredMemoryIsRefused) {
  ibnbd_session_close(session_, 1000);
  options_.bounce_bytes = 0;
  Open();
  char block[512];
  EXPECT_REFUSED(ibnbd_pread(queue_, device_, block, sizeof block, 0), -EINVAL, "bounce_bytes");
}

TEST_F(ContractTest, OneThreadMeansOneThread) {
  ibnbd_session_close(session_, 1000);
  options_.flags = IBNBD_SESSION_ONE_THREAD;
  Open();
  EXPECT_EQ(ibnbd_pread(queue_, device_, data(), 4096, 0), 0) << ibnbd_error_message();
  int answer = 0;
  std::thread([&] { answer = ibnbd_queue_poll(queue_, 0); }).join();
  EXPECT_EQ(answer, -EPERM);
  EXPECT_EQ(ibnbd_pread(queue_, device_, data(), 4096, 0), 0) << ibnbd_error_message();
}

TEST_F(ContractTest, AQueueOutlivesTheThreadsThatUsedIt) {
  ibnbd_session_close(session_, 1000);
  std::thread([&] { Open(); }).join();
  for (int i = 0; i < 8; ++i) {
    std::thread([&] {
      EXPECT_EQ(ibnbd_pread(queue_, device_, data(), 4096, 0), 0) << ibnbd_error_message();
    }).join();
  }
  EXPECT_EQ(ibnbd_session_ping(session_, 5000, nullptr), 0) << ibnbd_error_message();
  struct ibnbd_session_info info = {};
  info.struct_size = sizeof info;
  ASSERT_EQ(ibnbd_session_get_info(session_, &info), 0) << ibnbd_error_message();
  EXPECT_EQ(info.reconnects, 0u);
}

TEST_F(ContractTest, EachQueueCanHaveAThreadWhileOthersAskAndClose) {
  ibnbd_session_close(session_, 1000);
  options_.queue_count = 4;
  Open();
  std::atomic<bool> stop{false};
  std::atomic<int> errors{0};
  std::atomic<std::uint64_t> reads{0};
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      ibnbd_queue* queue = ibnbd_session_queue(session_, i);
      std::vector<char> block(16384);
      while (!stop) {
        const int error = ibnbd_pread(queue, device_, block.data(), block.size(), i * 65536);
        if (error != 0 && error != -ENODEV) ++errors;
        if (error == 0) ++reads;
        if (error == -ENODEV) ibnbd_queue_wait(queue, 1);
      }
    });
  }
  while (reads < 1000 && errors == 0) std::this_thread::yield();
  for (int i = 0; i < 20; ++i) {
    struct ibnbd_device_info info = {};
    info.struct_size = sizeof info;
    EXPECT_EQ(ibnbd_device_get_info(device_, &info), 0) << ibnbd_error_message();
    EXPECT_EQ(info.state, static_cast<std::uint32_t>(IBNBD_STATE_OPEN));
    EXPECT_EQ(ibnbd_session_ping(session_, 5000, nullptr), 0) << ibnbd_error_message();
  }
  EXPECT_EQ(ibnbd_device_close(device_, 5000), 0) << ibnbd_error_message();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(errors, 0);
}

TEST_F(ContractTest, AForeignEventLoopSleepsOnTheFd) {
  ibnbd_io io = MakeIo(IBNBD_OP_READ, 0, 4096);
  ASSERT_EQ(Submit(io), 0);
  int rounds = 0;
  while (done_count_ == 0 && rounds < 1000) {
    ++rounds;
    if (ibnbd_queue_prepare_sleep(queue_) == 0) {
      pollfd fd{ibnbd_queue_fd(queue_), POLLIN, 0};
      ASSERT_EQ(poll(&fd, 1, 10'000), 1);
    }
    ASSERT_GE(ibnbd_queue_poll(queue_, 0), 0);
  }
  EXPECT_EQ(done_count_, 1);
  EXPECT_LT(rounds, 100);
}

TEST_F(ContractTest, AWaitingThreadCanBeWoken) {
  std::atomic<bool> waiting{false};
  int answer = -1;
  std::thread waiter([&] {
    waiting = true;
    answer = ibnbd_queue_wait(queue_, 20'000);
  });
  while (!waiting) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(ibnbd_queue_wake(queue_), 0);
  waiter.join();
  EXPECT_EQ(answer, 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST_F(ContractTest, InfoAndListSayWhatTheServerHas) {
  struct ibnbd_session_info session = {};
  session.struct_size = sizeof session;
  ASSERT_EQ(ibnbd_session_get_info(session_, &session), 0) << ibnbd_error_message();
  EXPECT_EQ(session.connected, 1u);
  EXPECT_EQ(session.queue_count, 1u);
  EXPECT_GT(session.io_size_max, 0u);
  EXPECT_THAT(std::string(session.address), HasSubstr("@127.0.0.1:"));
  struct ibnbd_device_info device = {};
  device.struct_size = sizeof device;
  ASSERT_EQ(ibnbd_device_get_info(device_, &device), 0) << ibnbd_error_message();
  EXPECT_EQ(device.size, kMemSize);
  EXPECT_EQ(std::string(device.name), "mem");
  std::vector<std::string> names;
  ASSERT_EQ(ibnbd_session_list(
                session_, 5000,
                [](void* opaque, const ibnbd_export_info* info) {
                  static_cast<std::vector<std::string>*>(opaque)->push_back(info->name);
                  return 0;
                },
                &names),
            0)
      << ibnbd_error_message();
  EXPECT_THAT(names, testing::UnorderedElementsAre("mem", "ro", "disk"));
  const auto stop = [](void*, const ibnbd_export_info*) { return 42; };
  EXPECT_EQ(ibnbd_session_list(session_, 5000, stop, nullptr), 42);
}

TEST(Uri, NamesOfExportsAreDecodedAndChecked) {
  char name[8];
  EXPECT_EQ(ibnbd_uri_export("tcp://h:1/a%2Fb", name, sizeof name), 0) << ibnbd_error_message();
  EXPECT_STREQ(name, "a/b");
  EXPECT_EQ(ibnbd_uri_export("tcp://h:1/", name, sizeof name), -ENOENT);
  EXPECT_EQ(ibnbd_uri_export("tcp://h:1/eight-is-too-long", name, sizeof name), -ENAMETOOLONG);
  EXPECT_EQ(ibnbd_uri_export("ftp://h/x", name, sizeof name), -EINVAL);
  EXPECT_EQ(ibnbd_uri_export(nullptr, name, sizeof name), -EINVAL);
}

}  // namespace
