// SPDX-License-Identifier: Apache-2.0
// What a volume says when it is attached, and when it refuses.
#include "ibnbd-server/backends/volume.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <atomic>
#include <thread>

#include "base/status_macros.h"
#include "ibnbd-server/backends/file_backend.h"
#include "tests/support/backend_fixture.h"

namespace ibnbd {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

class VolumeTest : public testing::Test {
 protected:
  static absl::StatusOr<std::unique_ptr<rnbd::Backend>> Open(const std::string& path,
                                                             VolumeOptions options = {}) {
    options.lock_wait_ns = 0;
    return OpenFileBackend(path, options);
  }
  static std::string ErrorOf(const std::string& path, VolumeOptions options = {}) {
    const auto backend = Open(path, options);
    return backend.ok() ? "" : std::string(backend.status().message());
  }
  TempDir dir_;
};

TEST_F(VolumeTest, RefusesAMissingFile) {
  EXPECT_EQ(ErrorOf(dir_ / "none"),
            "attach " + (dir_ / "none") + ": open: No such file or directory");
}

TEST_F(VolumeTest, RefusesADirectory) {
  EXPECT_EQ(ErrorOf(dir_.path()), "attach " + dir_.path() + ": is a directory");
}

TEST_F(VolumeTest, RefusesAFifoWithoutWaitingForAWriter) {
  const std::string path = dir_ / "fifo";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(ErrorOf(path), EndsWith("is neither a regular file nor a block device"));
}

TEST_F(VolumeTest, RefusesAnEmptyFile) {
  EXPECT_THAT(ErrorOf(dir_.MakeFile("e", 0)), EndsWith(": is empty"));
}

TEST_F(VolumeTest, RefusesAFileThatIsNotAWholeNumberOfSectors) {
  EXPECT_THAT(ErrorOf(dir_.MakeFile("odd", 1000)),
              EndsWith("its size, 1000 bytes, is not a whole number of sectors"));
}

TEST_F(VolumeTest, RefusesAFileThatIsNotAWholeNumberOfTheBlocksAskedFor) {
  VolumeOptions options;
  options.block_size = 4096;
  EXPECT_THAT(ErrorOf(dir_.MakeFile("odd", 4096 + 512), options),
              EndsWith("its size, 4608 bytes, is not a whole number of 4096-byte blocks"));
}

TEST_F(VolumeTest, RefusesAFileThatMayNotBeWritten) {
  const std::string path = dir_.MakeFile("a", 4096);
  if (geteuid() == 0) {
    // Root may write anything; what nobody may write is a program that runs.
    EXPECT_THAT(ErrorOf("/proc/self/exe"), HasSubstr("open for writing: "));
    return;
  }
  ASSERT_EQ(chmod(path.c_str(), 0400), 0);
  EXPECT_THAT(ErrorOf(path), EndsWith("open for writing: Permission denied"));
}

// Another server: locks as one does, from outside of this one's bookkeeping.
bool AnotherServerCanLock(const std::string& path, int operation) {
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_TRUE(fd.valid());
  return flock(fd.get(), operation | LOCK_NB) == 0;
}

TEST_F(VolumeTest, RefusesWhatAnotherServerHas) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  VolumeOptions read_only;
  read_only.read_only = true;
  const UniqueFd other(open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(flock(other.get(), LOCK_EX), 0);
  EXPECT_EQ(ErrorOf(path), "attach " + path + ": in use by another server (flock)");
  EXPECT_THAT(ErrorOf(path, read_only), EndsWith("in use by another server (flock)"));
  ASSERT_EQ(flock(other.get(), LOCK_SH), 0);
  EXPECT_THAT(ErrorOf(path), EndsWith("in use by another server (flock)"));
  EXPECT_EQ(ErrorOf(path, read_only), "");
}

TEST_F(VolumeTest, RefusesToBeExportedTwiceForWriting) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  const auto first = Open(path);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(ErrorOf(path), "attach " + path + ": is exported for writing already");
}

TEST_F(VolumeTest, ReadersAllowReadersOfOtherServersButNoWriter) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  VolumeOptions read_only;
  read_only.read_only = true;
  const auto first = Open(path, read_only);
  const auto second = Open(path, read_only);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE((*first)->geometry().read_only);
  EXPECT_EQ((*first)->geometry().discard_bytes_max, 0u);
  EXPECT_EQ((*first)->geometry().write_zeroes_bytes_max, 0u);
  EXPECT_TRUE(AnotherServerCanLock(path, LOCK_SH));
  EXPECT_FALSE(AnotherServerCanLock(path, LOCK_EX));
}

TEST_F(VolumeTest, OneServerMayExportAVolumeForWritingAndForReading) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  VolumeOptions read_only;
  read_only.read_only = true;
  auto before = Open(path, read_only);
  auto writer = Open(path);
  auto after = Open(path, read_only);
  ASSERT_TRUE(before.ok() && writer.ok() && after.ok());
  EXPECT_FALSE(AnotherServerCanLock(path, LOCK_SH));
  // When the writer leaves, the readers still keep other writers off, to the last.
  writer = absl::CancelledError();
  EXPECT_TRUE(AnotherServerCanLock(path, LOCK_SH));
  EXPECT_FALSE(AnotherServerCanLock(path, LOCK_EX));
  before = absl::CancelledError();
  EXPECT_FALSE(AnotherServerCanLock(path, LOCK_EX));
  after = absl::CancelledError();
  EXPECT_TRUE(AnotherServerCanLock(path, LOCK_EX));
}

TEST_F(VolumeTest, WaitsForAServerThatIsGoingAway) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  UniqueFd holder(open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(flock(holder.get(), LOCK_EX), 0);
  // Lets go once we have opened the file and stand before the lock.
  std::atomic<bool> opened{false};
  std::thread release([&] {
    opened.wait(false);
    EXPECT_EQ(flock(holder.get(), LOCK_UN), 0);
  });
  const auto opener = [&](int flags) {
    const int fd = open(path.c_str(), flags);
    opened.store((flags & O_PATH) == 0);
    opened.notify_one();
    return fd;
  };
  VolumeOptions options;
  options.lock_wait_ns = 30 * kNsPerSecond;
  const auto volume = Volume::Open(path, opener, options);
  release.join();
  EXPECT_TRUE(volume.ok()) << volume.status();
}

TEST_F(VolumeTest, TheIdIsStableAndDiffersBetweenFiles) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  const std::uint64_t id = (*Open(path))->geometry().volume_id;
  EXPECT_NE(id, 0u);
  EXPECT_EQ((*Open(path))->geometry().volume_id, id);
  EXPECT_NE((*Open(dir_.MakeFile("b.img", 4096)))->geometry().volume_id, id);
  // Another file under the same name is another volume.
  ASSERT_EQ(rename((dir_ / "b.img").c_str(), path.c_str()), 0);
  EXPECT_NE((*Open(path))->geometry().volume_id, id);
}

// What somebody does to a file while no server has it.
void SetTimes(const std::string& path, timespec modified) {
  const timespec times[] = {{0, UTIME_OMIT}, modified};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}
timespec ModifiedAt(const std::string& path) {
  struct stat st {};
  EXPECT_EQ(stat(path.c_str(), &st), 0);
  return st.st_mtim;
}

TEST_F(VolumeTest, AFileThatOthersHaveWrittenToIsAnotherVolumeAndStaysThat) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  if (setxattr(path.c_str(), "user.test", "x", 1, 0) != 0) GTEST_SKIP() << "no user.* here";
  const std::uint64_t id = (*Open(path))->geometry().volume_id;
  const timespec closed = ModifiedAt(path);
  SetTimes(path, {closed.tv_sec, (closed.tv_nsec + 1) % 1'000'000'000});
  const std::uint64_t next = (*Open(path))->geometry().volume_id;
  EXPECT_NE(next, id);
  EXPECT_EQ((next ^ id) & ~std::uint64_t{0xffff}, 0u);
  EXPECT_EQ((*Open(path))->geometry().volume_id, next);
  VolumeOptions read_only;
  read_only.read_only = true;
  EXPECT_EQ((*Open(path, read_only))->geometry().volume_id, next);
  // As the first one was, but not when the second one was closed.
  SetTimes(path, closed);
  EXPECT_NE((*Open(path))->geometry().volume_id, next);
  EXPECT_NE((*Open(path))->geometry().volume_id, id);
}

TEST_F(VolumeTest, AFileThatWasNotClosedInOrderIsTheSameVolume) {
  const std::string path = dir_.MakeFile("a.img", 4096);
  if (setxattr(path.c_str(), "user.test", "x", 1, 0) != 0) GTEST_SKIP() << "no user.* here";
  std::string mark(64, ' ');
  std::uint64_t id = 0;
  {
    const auto open = Open(path);  // As a killed server leaves it.
    id = (*open)->geometry().volume_id;
    const ssize_t size = getxattr(path.c_str(), "user.ibnbd.volume", mark.data(), mark.size());
    ASSERT_GT(size, 0);
    mark.resize(static_cast<std::size_t>(size));
  }
  for (const std::string& found : {mark, std::string("nonsense"), std::string(4000, '9')}) {
    if (setxattr(path.c_str(), "user.ibnbd.volume", found.data(), found.size(), 0) != 0) continue;
    SetTimes(path, {1, 2});
    EXPECT_EQ((*Open(path))->geometry().volume_id, id) << found;
  }
}

TEST_F(VolumeTest, ProbingChangesNeitherSizeNorBlocks) {
  const std::string path = dir_.MakeFile("a.img", (1 << 20) + 512);
  struct stat before {
  }, after{};
  ASSERT_EQ(stat(path.c_str(), &before), 0);
  ASSERT_TRUE(Open(path).ok());
  ASSERT_EQ(stat(path.c_str(), &after), 0);
  EXPECT_EQ(before.st_size, after.st_size);
  EXPECT_EQ(before.st_blocks, after.st_blocks);
}

TEST_F(VolumeTest, AFileThatHasGrownIsServedInWholeBlocks) {
  const std::string path = dir_.MakeFile("a.img", 1 << 20);
  const auto backend = Open(path);
  ASSERT_TRUE(backend.ok()) << backend.status();
  const std::uint32_t block = (*backend)->geometry().logical_block_size;
  ASSERT_EQ(truncate(path.c_str(), (2 << 20) + block / 2), 0);
  EXPECT_EQ((*backend)->geometry().size_bytes, 1u << 20);  // Nobody has looked.
  (*backend)->RefreshSize();
  EXPECT_EQ((*backend)->geometry().size_bytes, 2u << 20);
}

TEST_F(VolumeTest, AFileThatWasShrunkDoesNotGrowAgain) {
  const std::string path = dir_.MakeFile("a.img", 1 << 20);
  const auto backend = Open(path);
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_EQ(truncate(path.c_str(), 4096), 0);
  (*backend)->RefreshSize();
  ASSERT_EQ(truncate(path.c_str(), 4 << 20), 0);
  (*backend)->RefreshSize();
  EXPECT_EQ((*backend)->geometry().size_bytes, 1u << 20);
  const auto& file = dynamic_cast<const FileBackend&>(**backend);
  EXPECT_EQ(file.volume().intact_bytes(), 4096u);
}

TEST_F(VolumeTest, AFileThatIsReplacedOrMovedIsNoticed) {
  const std::string path = dir_.MakeFile("a.img", 1 << 20);
  const auto backend = Open(path);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_TRUE((*backend)->CheckPlace().ok());
  ASSERT_EQ(truncate(path.c_str(), 2 << 20), 0);  // Still the same file.
  EXPECT_TRUE((*backend)->CheckPlace().ok());
  const std::string aside = path + ".old";
  ASSERT_EQ(rename(path.c_str(), aside.c_str()), 0);
  EXPECT_EQ(ErrnoFromStatus((*backend)->CheckPlace()), -ESTALE);
  (void)dir_.MakeFile("a.img", 1 << 20);
  EXPECT_EQ(ErrnoFromStatus((*backend)->CheckPlace()), -ESTALE);
  EXPECT_THAT(std::string((*backend)->CheckPlace().message()), testing::HasSubstr("replaced"));
  ASSERT_EQ(rename(aside.c_str(), path.c_str()), 0);
  EXPECT_TRUE((*backend)->CheckPlace().ok());
}

TEST_F(VolumeTest, ABlockSizeAskedForIsTheGeometrys) {
  VolumeOptions options;
  options.block_size = 4096;
  const auto backend = Open(dir_.MakeFile("a.img", 8192), options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->geometry().logical_block_size, 4096u);
  EXPECT_GE((*backend)->geometry().physical_block_size, 4096u);
}

TEST_F(VolumeTest, ASparseFileOfManyTebibytesHasItsSize) {
  const auto backend = Open(dir_.MakeFile("big.img", std::int64_t{5} << 40));
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->geometry().size_bytes, std::uint64_t{5} << 40);
}

}  // namespace
}  // namespace ibnbd
