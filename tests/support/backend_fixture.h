// SPDX-License-Identifier: Apache-2.0
// For tests of backends: a temporary directory, a reactor with a ring, and IOs that are run to
// their end.  One thread.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "base/arena.h"
#include "base/unique_fd.h"
#include "reactor/io_ring.h"
#include "reactor/reactor.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

class TempDir {
 public:
  TempDir() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base != nullptr ? base : "/tmp") + "/ibnbd-test-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TempDir() {
    std::error_code ignored;  // Leftovers in a temporary directory fail no test.
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  // A sparse file of that size.
  std::string MakeFile(const std::string& name, std::int64_t size) const {
    const std::string file = path_ + "/" + name;
    const UniqueFd fd(open(file.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd.valid());
    EXPECT_EQ(ftruncate(fd.get(), size), 0);
    return file;
  }

 private:
  std::string path_;
};

class RecordedIo final : public rnbd::BackendIo {
 public:
  void OnBackendDone(int result) override {
    ++done_count;
    error = result;
  }
  int done_count = 0;
  int error = 1;
};

class BackendFixture : public testing::Test {
 protected:
  BackendFixture() {
    ReactorOptions options;
    auto created = Reactor::Create(clock_, options);
    EXPECT_TRUE(created.ok()) << created.status();
    reactor_ = *std::move(created);
    auto arena = Arena::Create(4 << 20);
    EXPECT_TRUE(arena.ok());
    arena_ = *std::move(arena);
    reactor_->RunTurn();
  }
  ~BackendFixture() override { queue_.reset(); }

  void Use(rnbd::Backend& backend) {
    auto queue = backend.CreateQueue(*reactor_, 16);
    ASSERT_TRUE(queue.ok()) << queue.status();
    queue_ = *std::move(queue);
  }
  int Run(RecordedIo& io) {
    queue_->Submit(io);
    while (io.done_count == 0) {
      if (!reactor_->RunTurn() && io.done_count == 0) reactor_->Wait(-1);
    }
    EXPECT_EQ(io.done_count, 1);
    return io.error;
  }
  int Run(rnbd::BackendOp op, std::uint64_t offset, std::uint32_t length,
          std::byte* data = nullptr) {
    RecordedIo io;
    io.op = op;
    io.offset = offset;
    io.length = length;
    if (data != nullptr) io.data = {data, length};
    return Run(io);
  }
  int Write(std::uint64_t offset, std::uint32_t length, int value) {
    std::fill_n(memory(), length, static_cast<std::byte>(value));
    return Run(rnbd::BackendOp::kWrite, offset, length, memory());
  }
  // Reads, and says whether every byte has the value; fails the test on an error.
  bool ReadsAs(std::uint64_t offset, std::uint32_t length, int value) {
    std::byte* data = memory() + (2 << 20);
    std::fill_n(data, length, std::byte{0xee});
    EXPECT_EQ(Run(rnbd::BackendOp::kRead, offset, length, data), 0);
    for (std::uint32_t i = 0; i < length; ++i) {
      if (data[i] != static_cast<std::byte>(value)) return false;
    }
    return true;
  }
  [[nodiscard]] std::byte* memory() { return arena_.bytes().data(); }

  MonotonicClock clock_;
  std::unique_ptr<Reactor> reactor_;
  Arena arena_;
  std::unique_ptr<rnbd::BackendQueue> queue_;
};

}  // namespace ibnbd
