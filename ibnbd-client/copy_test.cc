// SPDX-License-Identifier: Apache-2.0
// The copy engine between files and an endpoint of memory that fails on demand; volumes come in
// with the end-to-end tests.
#include "ibnbd-client/copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

namespace ibnbd::client {
namespace {

using testing::HasSubstr;

// Bytes in memory; counts what is done to them.
class MemoryEndpoint final : public Endpoint {
 public:
  explicit MemoryEndpoint(std::size_t its_size) : bytes(its_size) {}
  const std::string& name() const override { return name_; }
  std::optional<std::uint64_t> size() const override { return bytes.size(); }
  absl::Status UseMemory(std::span<std::byte>) override { return absl::OkStatus(); }
  void Start(Operation& operation) override {
    if (operation.kind == fail_kind && operation.offset >= fail_offset) {
      return operation.done(-EIO);
    }
    std::byte* place = bytes.data() + operation.offset;
    switch (operation.kind) {
      case OperationKind::kRead:
        std::memcpy(operation.data, place, operation.length);
        break;
      case OperationKind::kWrite:
        std::memcpy(place, operation.data, operation.length);
        written += operation.length;
        break;
      case OperationKind::kZero:
        std::memset(place, 0, operation.length);
        zeroed += operation.length;
        break;
    }
    operation.done(0);
  }
  absl::Status Finish(std::uint64_t) override {
    ++finished;
    return absl::OkStatus();
  }
  absl::Status ReadNow(std::uint64_t offset, std::span<std::byte> into) override {
    std::memcpy(into.data(), bytes.data() + offset, into.size());
    return absl::OkStatus();
  }

  std::vector<std::byte> bytes;
  std::uint64_t written = 0, zeroed = 0, fail_offset = ~std::uint64_t{0};
  OperationKind fail_kind = OperationKind::kWrite;
  int finished = 0;

 private:
  const std::string name_ = "memory";
};

constexpr std::size_t kMiB = std::size_t{1} << 20;

class CopyTest : public testing::Test {
 protected:
  CopyTest() {
    for (std::size_t i = kMiB; i < 2 * kMiB; ++i) source_.bytes[i] = std::byte(i * 7 + 1);
    std::fill(target_.bytes.begin(), target_.bytes.end(), std::byte{0xee});
  }
  MemoryEndpoint source_{5 * kMiB + 1000};
  MemoryEndpoint target_{6 * kMiB};
  CopyOptions options_;
  CopyStats stats_;

  void ExpectCopied() {
    EXPECT_EQ(stats_.bytes, source_.bytes.size());
    EXPECT_TRUE(std::equal(source_.bytes.begin(), source_.bytes.end(), target_.bytes.begin()));
    EXPECT_EQ(target_.bytes[source_.bytes.size()], std::byte{0xee});
    EXPECT_EQ(target_.finished, 1);
  }
};

TEST_F(CopyTest, WritesZeroesAsZeroes) {
  ASSERT_TRUE(Copy(source_, target_, options_, stats_).ok());
  ExpectCopied();
  EXPECT_EQ(target_.written, kMiB);
  EXPECT_EQ(target_.zeroed, 4 * kMiB + 1000);
  EXPECT_EQ(stats_.zero_bytes, 4 * kMiB + 1000);
}

TEST_F(CopyTest, WritesAllAsDataIfNotSparse) {
  options_.sparse = false;
  ASSERT_TRUE(Copy(source_, target_, options_, stats_).ok());
  ExpectCopied();
  EXPECT_EQ(target_.zeroed, 0u);
}

TEST_F(CopyTest, LeavesZeroesOutIfTheDestinationHasThem) {
  std::fill(target_.bytes.begin(), target_.bytes.begin() + 5 * kMiB + 1000, std::byte{0});
  options_.destination_is_zero = true;
  ASSERT_TRUE(Copy(source_, target_, options_, stats_).ok());
  ExpectCopied();
  EXPECT_EQ(target_.zeroed, 0u);
  EXPECT_EQ(target_.written, kMiB);
}

TEST_F(CopyTest, RefusesASourceThatDoesNotFitBeforeWritingAnything) {
  MemoryEndpoint small(kMiB);
  const absl::Status status = Copy(source_, small, options_, stats_);
  EXPECT_THAT(std::string(status.message()), HasSubstr("larger"));
  EXPECT_EQ(small.written + small.zeroed, 0u);
}

TEST_F(CopyTest, ReportsAFailedWriteWithItsPlaceAndDoesNotFinish) {
  target_.fail_offset = kMiB + 1;
  const absl::Status status = Copy(source_, target_, options_, stats_);
  EXPECT_THAT(std::string(status.message()), HasSubstr("of memory: Input/output error"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("write "));
  EXPECT_EQ(target_.finished, 0);
}

TEST_F(CopyTest, ReportsAFailedRead) {
  source_.fail_kind = OperationKind::kRead;
  source_.fail_offset = 3 * kMiB;
  const absl::Status status = Copy(source_, target_, options_, stats_);
  EXPECT_THAT(std::string(status.message()), HasSubstr("read 524288 bytes at 3145728 of memory"));
  EXPECT_EQ(target_.finished, 0);
}

TEST_F(CopyTest, CompareNamesTheFirstByteThatDiffers) {
  ASSERT_TRUE(Copy(source_, target_, options_, stats_).ok());
  EXPECT_TRUE(Compare(source_, target_, stats_.bytes, options_).ok());
  target_.bytes[4'500'000] = std::byte{1};
  EXPECT_THAT(std::string(Compare(source_, target_, stats_.bytes, options_).message()),
              HasSubstr("byte 4500000 differs"));
}

class FileCopyTest : public CopyTest {
 protected:
  FileCopyTest() {
    char name[] = "/tmp/ibnbd-copy-test.XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  ~FileCopyTest() override {
    ::unlink(Path("file").c_str());
    ::rmdir(directory_.c_str());
  }
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  std::string directory_;
};

TEST_F(FileCopyTest, AFileThatIsWrittenIsSparseAndHasTheRightSize) {
  auto file = OpenFileEndpoint(Path("file"), true);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(Copy(source_, **file, options_, stats_).ok());
  struct stat status = {};
  ASSERT_EQ(::stat(Path("file").c_str(), &status), 0);
  EXPECT_EQ(static_cast<std::size_t>(status.st_size), source_.bytes.size());
  EXPECT_LT(status.st_blocks * 512, static_cast<blkcnt_t>(2 * kMiB));
  EXPECT_TRUE(Compare(source_, **file, stats_.bytes, options_).ok());
}

TEST_F(FileCopyTest, HolesOfAFileAreNotRead) {
  {
    std::ofstream file(Path("file"));
    file << "data";
  }
  ASSERT_EQ(::truncate(Path("file").c_str(), 5 * kMiB), 0);
  auto file = OpenFileEndpoint(Path("file"), false);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(Copy(**file, target_, options_, stats_).ok());
  EXPECT_EQ(stats_.bytes, 5 * kMiB);
  EXPECT_LE(target_.written, 64u << 10);
  EXPECT_EQ(std::memcmp(target_.bytes.data(), "data", 5), 0);
  EXPECT_EQ(target_.bytes[5 * kMiB - 1], std::byte{0});
}

TEST_F(FileCopyTest, AFileIsRecognisedUnderAnotherName) {
  const std::string other = Path("file") + ".link";
  std::ofstream(Path("file")) << "data";
  ASSERT_EQ(::symlink(Path("file").c_str(), other.c_str()), 0);
  EXPECT_TRUE(IsSameFile(Path("file"), other));
  EXPECT_FALSE(IsSameFile(Path("file"), Path("missing")));
  EXPECT_FALSE(IsSameFile(Path("file"), "/proc/self/exe"));
  EXPECT_FALSE(IsSameFile("/dev/null", "/dev/null"));  // Nothing to lose.
  ::unlink(other.c_str());
}

TEST_F(FileCopyTest, AMissingFileIsNamed) {
  const auto file = OpenFileEndpoint(Path("missing"), false);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("/missing: No such file"));
}

}  // namespace
}  // namespace ibnbd::client
