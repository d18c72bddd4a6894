// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/memory_backend.h"

#include <gmock/gmock.h>
#include <sys/mman.h>

#include <fstream>

#include "ibnbd-server/backends/null_backend.h"
#include "tests/support/backend_fixture.h"

namespace ibnbd {
namespace {

using rnbd::BackendOp;
using testing::HasSubstr;

class MemoryBackendTest : public BackendFixture {
 protected:
  void Open(const char* size) {
    auto backend = CreateMemoryBackend(size, 0);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    Use(*backend_);
  }
  ~MemoryBackendTest() override { queue_.reset(); }
  std::unique_ptr<rnbd::Backend> backend_;
};

std::int64_t ResidentPages() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident;
}

TEST_F(MemoryBackendTest, ReadsBackWhatWasWrittenAndZerosElsewhere) {
  Open("1M");
  EXPECT_EQ(Write(4096, 8192, 0x5a), 0);
  EXPECT_TRUE(ReadsAs(4096, 8192, 0x5a));
  EXPECT_TRUE(ReadsAs(0, 4096, 0));
  EXPECT_TRUE(ReadsAs((1 << 20) - 512, 512, 0));
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
}

TEST_F(MemoryBackendTest, DiscardZeroesTheExactRange) {
  Open("1M");
  EXPECT_EQ(Write(0, 64 << 10, 0x77), 0);
  EXPECT_EQ(Run(BackendOp::kDiscard, 512, 12288), 0);
  EXPECT_TRUE(ReadsAs(0, 512, 0x77));
  EXPECT_TRUE(ReadsAs(512, 12288, 0));
  EXPECT_TRUE(ReadsAs(12800, 4096, 0x77));
  EXPECT_EQ(Run(BackendOp::kDiscard, 20480 + 512, 512), 0);  // Inside one page.
  EXPECT_TRUE(ReadsAs(20480, 512, 0x77));
  EXPECT_TRUE(ReadsAs(20992, 512, 0));
  EXPECT_TRUE(ReadsAs(21504, 512, 0x77));
}

TEST_F(MemoryBackendTest, WriteZeroesZeroesWithAndWithoutUnmap) {
  Open("1M");
  for (const bool no_unmap : {false, true}) {
    EXPECT_EQ(Write(0, 32768, 0x11), 0);
    RecordedIo io;
    io.op = BackendOp::kWriteZeroes;
    io.no_unmap = no_unmap;
    io.offset = 4096 + 512;
    io.length = 16384;
    EXPECT_EQ(Run(io), 0);
    EXPECT_TRUE(ReadsAs(0, 4608, 0x11));
    EXPECT_TRUE(ReadsAs(4608, 16384, 0));
    EXPECT_TRUE(ReadsAs(20992, 4096, 0x11));
  }
}

TEST_F(MemoryBackendTest, IsThinAndGivesDiscardedMemoryBack) {
  Open("8T");
  std::fill_n(memory(), 4 << 20, std::byte{1});  // The test's own buffers are not what is measured.
  const std::int64_t before = ResidentPages();
  EXPECT_TRUE(ReadsAs(std::uint64_t{4} << 40, 1 << 20, 0));
  EXPECT_LT(ResidentPages() - before, 64);
  for (std::uint64_t i = 0; i < 16; ++i) EXPECT_EQ(Write(i << 20, 1 << 20, 1), 0);
  EXPECT_GT(ResidentPages() - before, 4000);
  EXPECT_EQ(Run(BackendOp::kDiscard, 0, 16 << 20), 0);
  EXPECT_LT(ResidentPages() - before, 1000);
}

TEST_F(MemoryBackendTest, IsAnotherVolumeEachTime) {
  Open("1M");
  const auto other = CreateMemoryBackend("1M", 0);
  ASSERT_TRUE(other.ok());
  EXPECT_NE(backend_->geometry().volume_id, 0u);
  EXPECT_NE(backend_->geometry().volume_id, (*other)->geometry().volume_id);
}

TEST_F(MemoryBackendTest, RefusesSecureErase) {
  Open("1M");
  EXPECT_EQ(backend_->geometry().secure_erase_bytes_max, 0u);
  EXPECT_EQ(Run(BackendOp::kSecureErase, 0, 4096), -EOPNOTSUPP);
}

TEST(MemoryBackend, RefusesSizesThatCannotBe) {
  for (const char* size : {"", "0", "1000", "x", "4000P"}) {
    const auto backend = CreateMemoryBackend(size, 0);
    ASSERT_FALSE(backend.ok()) << size;
    EXPECT_THAT(std::string(backend.status().message()), HasSubstr(std::string("mem:") + size));
  }
  EXPECT_FALSE(CreateMemoryBackend("2K", 4096).ok());
}

class NullBackendTest : public BackendFixture {};

TEST_F(NullBackendTest, GivesZerosWhateverWasWritten) {
  auto backend = CreateNullBackend("1G", 0);
  ASSERT_TRUE(backend.ok());
  EXPECT_THAT((*backend)->Describe(), HasSubstr("keeps nothing"));
  Use(**backend);
  EXPECT_EQ(Write(0, 4096, 3), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 0));
  EXPECT_EQ(Run(BackendOp::kDiscard, 0, 1 << 20), 0);
  EXPECT_EQ(Run(BackendOp::kSecureErase, 0, 4096), -EOPNOTSUPP);
  queue_.reset();
}

}  // namespace
}  // namespace ibnbd
