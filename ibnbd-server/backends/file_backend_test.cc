// SPDX-License-Identifier: Apache-2.0
// The file backend through a real reactor and ring, on files of the temporary directory.
#include "ibnbd-server/backends/file_backend.h"

#include <gmock/gmock.h>
#include <linux/loop.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "tests/support/backend_fixture.h"

namespace ibnbd {
namespace {

using rnbd::BackendOp;

class FileBackendTest : public BackendFixture {
 protected:
  ~FileBackendTest() override { queue_.reset(); }
  void Open(const std::string& path, VolumeOptions options = {}) {
    options.lock_wait_ns = 0;
    auto backend = OpenFileBackend(path, options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    Use(*backend_);
  }
  [[nodiscard]] const rnbd::Geometry& geometry() const { return backend_->geometry(); }
  // What the disk holds for this file: 512-byte units.
  [[nodiscard]] static std::int64_t AllocatedSectors(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(stat(path.c_str(), &st), 0);
    return st.st_blocks;
  }
  TempDir dir_;
  std::unique_ptr<rnbd::Backend> backend_;
};

TEST_F(FileBackendTest, ReadsBackWhatWasWritten) {
  Open(dir_.MakeFile("a.img", 1 << 20));
  EXPECT_EQ(Write(0, 4096, 1), 0);
  EXPECT_EQ(Write(8192, 128 << 10, 2), 0);
  EXPECT_EQ(Write((1 << 20) - 4096, 4096, 3), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 1));
  EXPECT_TRUE(ReadsAs(4096, 4096, 0));
  EXPECT_TRUE(ReadsAs(8192, 128 << 10, 2));
  EXPECT_TRUE(ReadsAs((1 << 20) - 4096, 4096, 3));
}

TEST_F(FileBackendTest, WorksAtTheGranularityItAdvertises) {
  Open(dir_.MakeFile("a.img", 1 << 20));
  const std::uint32_t block = geometry().logical_block_size;
  EXPECT_EQ(Write(0, 8 * block, 7), 0);
  EXPECT_EQ(Write(3 * block, block, 8), 0);
  EXPECT_TRUE(ReadsAs(2 * block, block, 7));
  EXPECT_TRUE(ReadsAs(3 * block, block, 8));
  EXPECT_TRUE(ReadsAs(4 * block, block, 7));
}

TEST_F(FileBackendTest, UsesRegisteredBuffers) {
  Open(dir_.MakeFile("a.img", 1 << 20));
  const int slot = reactor_->ring()->RegisterBuffer(arena_.bytes());
  ASSERT_GE(slot, 0);
  RecordedIo write;
  write.op = BackendOp::kWrite;
  write.fua = true;
  write.length = 65536;
  write.registered_buffer = slot;
  write.data = {memory(), 65536};
  std::fill_n(memory(), 65536, std::byte{0x3c});
  EXPECT_EQ(Run(write), 0);
  RecordedIo read;
  read.op = BackendOp::kRead;
  read.length = 65536;
  read.registered_buffer = slot;
  read.data = {memory() + 65536, 65536};
  EXPECT_EQ(Run(read), 0);
  EXPECT_TRUE(std::equal(memory(), memory() + 65536, memory() + 65536));
  reactor_->ring()->UnregisterBuffer(slot);
}

TEST_F(FileBackendTest, FlushFuaAndPreflushSucceed) {
  Open(dir_.MakeFile("a.img", 1 << 20));
  EXPECT_TRUE(geometry().write_cache);
  EXPECT_TRUE(geometry().fua);
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
  RecordedIo io;
  io.op = BackendOp::kWrite;
  io.fua = io.preflush = true;
  io.length = 4096;
  io.data = {memory(), 4096};
  std::fill_n(memory(), 4096, std::byte{9});
  EXPECT_EQ(Run(io), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 9));
}

TEST_F(FileBackendTest, DiscardZeroesTheRangeAndFreesTheBlocks) {
  const std::string path = dir_.MakeFile("a.img", 4 << 20);
  Open(path);
  if (geometry().discard_bytes_max == 0) GTEST_SKIP() << "this file system cannot punch holes";
  EXPECT_EQ(Write(0, 2 << 20, 5), 0);
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
  const std::int64_t before = AllocatedSectors(path);
  EXPECT_GE(before, (2 << 20) / 512);
  RecordedIo io;
  io.op = BackendOp::kDiscard;
  io.fua = true;
  io.offset = 4096;
  io.length = 1 << 20;
  EXPECT_EQ(Run(io), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 5));
  EXPECT_TRUE(ReadsAs(4096, 1 << 20, 0));
  EXPECT_TRUE(ReadsAs((1 << 20) + 4096, 4096, 5));
  EXPECT_LE(AllocatedSectors(path), before - (1 << 20) / 512 + 64);
}

TEST_F(FileBackendTest, WriteZeroesWithNoUnmapKeepsTheBlocks) {
  const std::string path = dir_.MakeFile("a.img", 4 << 20);
  Open(path);
  EXPECT_EQ(Write(0, 1 << 20, 5), 0);
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
  RecordedIo io;
  io.op = BackendOp::kWriteZeroes;
  io.no_unmap = true;
  io.offset = 4096;
  io.length = 2 << 20;
  EXPECT_EQ(Run(io), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 5));
  EXPECT_TRUE(ReadsAs(4096, 2 << 20, 0));
  EXPECT_GE(AllocatedSectors(path), (2 << 20) / 512);
  struct stat st {};
  EXPECT_EQ(stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_size, 4 << 20);
}

TEST_F(FileBackendTest, WriteZeroesWithUnmapFreesTheBlocks) {
  const std::string path = dir_.MakeFile("a.img", 4 << 20);
  Open(path);
  if (geometry().discard_bytes_max == 0) GTEST_SKIP() << "this file system cannot punch holes";
  EXPECT_EQ(Write(0, 2 << 20, 5), 0);
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
  EXPECT_EQ(Run(BackendOp::kWriteZeroes, 0, 2 << 20), 0);
  EXPECT_TRUE(ReadsAs(0, 2 << 20, 0));
  EXPECT_LE(AllocatedSectors(path), 64);
}

TEST_F(FileBackendTest, FallsBackToWritingZerosWhereTheKernelHasNothingBetter) {
  Open(dir_.MakeFile("a.img", 4 << 20));
  auto& volume = const_cast<Volume&>(static_cast<FileBackend&>(*backend_).volume());
  volume.GiveUp(RangeUse::kZeroAndKeep, RangeMethod::kZeroRange);
  EXPECT_EQ(volume.Method(RangeUse::kZeroAndKeep), RangeMethod::kWriteZeroes);
  EXPECT_EQ(Write(0, 2 << 20, 5), 0);
  RecordedIo io;
  io.op = BackendOp::kWriteZeroes;
  io.no_unmap = io.fua = true;
  io.offset = 4096;
  io.length = (1 << 20) + 4096;
  EXPECT_EQ(Run(io), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 5));
  EXPECT_TRUE(ReadsAs(4096, (1 << 20) + 4096, 0));
  EXPECT_TRUE(ReadsAs((1 << 20) + 8192, 4096, 5));
}

TEST_F(FileBackendTest, RangesLargerThanAPieceAreExecutedWhole) {
  const std::string path = dir_.MakeFile("a.img", std::int64_t{1} << 30);
  Open(path);
  if (geometry().discard_bytes_max == 0) GTEST_SKIP() << "this file system cannot punch holes";
  EXPECT_EQ(Write(0, 4096, 5), 0);
  EXPECT_EQ(Write((std::uint64_t{1} << 30) - 4096, 4096, 5), 0);
  EXPECT_EQ(Run(BackendOp::kDiscard, 0, 1u << 30), 0);
  EXPECT_TRUE(ReadsAs(0, 4096, 0));
  EXPECT_TRUE(ReadsAs((std::uint64_t{1} << 30) - 4096, 4096, 0));
}

class FileBackendPlaceTest : public FileBackendTest, public testing::WithParamInterface<bool> {
 protected:
  static VolumeOptions Options() {
    VolumeOptions options;
    options.as_if_remote = GetParam();
    return options;
  }
};
INSTANTIATE_TEST_SUITE_P(Places, FileBackendPlaceTest, testing::Bool(), [](const auto& place) {
  return place.param ? "WhereItMayHang" : "OnALocalFileSystem";
});

TEST_P(FileBackendPlaceTest, ManyIosAtOnceEachCompleteOnce) {
  Open(dir_.MakeFile("a.img", 8 << 20), Options());
  std::vector<RecordedIo> ios(256);
  for (std::size_t i = 0; i < ios.size(); ++i) {
    ios[i].op = i % 3 == 2 ? BackendOp::kRead : BackendOp::kWrite;
    ios[i].offset = i * 8192;
    ios[i].length = 4096;
    ios[i].data = {memory() + i * 4096, 4096};
    queue_->Submit(ios[i]);
  }
  for (RecordedIo& io : ios) {
    while (io.done_count == 0) {
      if (!reactor_->RunTurn()) reactor_->Wait(-1);
    }
  }
  for (RecordedIo& io : ios) {
    EXPECT_EQ(io.done_count, 1);
    EXPECT_EQ(io.error, 0);
  }
}

TEST_F(FileBackendTest, FilesOnALocalFileSystemAreNotTakenForRemoteOnes) {
  const std::string mount_point = dir_ / "local";
  ASSERT_EQ(mkdir(mount_point.c_str(), 0700), 0);
  if (mount("tmpfs", mount_point.c_str(), "tmpfs", 0, "size=1M") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs is not permitted here";
  }
  Open(dir_.MakeFile("local/a.img", 64 << 10));
  EXPECT_FALSE(static_cast<FileBackend&>(*backend_).volume().is_remote());
  queue_.reset();
  backend_.reset();
  EXPECT_EQ(umount(mount_point.c_str()), 0);
}

TEST_P(FileBackendPlaceTest, AQueueIsTakenDownAndMadeAgainWithTheSizeJustAskedFor) {
  Open(dir_.MakeFile("a.img", 1 << 20), Options());
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(Write(0, 4096, i), 0);
    Use(*backend_);
    EXPECT_TRUE(ReadsAs(0, 4096, i));
  }
}

TEST_P(FileBackendPlaceTest, AFileThatShrinksAndGrowsAgainKeepsWhatWasLostAnError) {
  const std::string path = dir_.MakeFile("a.img", 1 << 20);
  Open(path, Options());
  const Volume& volume = static_cast<FileBackend&>(*backend_).volume();
  EXPECT_EQ(Write(0, 1 << 20, 4), 0);
  ASSERT_EQ(truncate(path.c_str(), 512 << 10), 0);
  // Any IO makes it look, now and then; where it may hang, without waiting for what it finds.
  while (volume.intact_bytes() != 512 << 10) EXPECT_TRUE(ReadsAs(0, 4096, 4));
  ASSERT_EQ(truncate(path.c_str(), 1 << 20), 0);
  EXPECT_EQ(Run(BackendOp::kRead, 768 << 10, 4096, memory()), -EIO);
  EXPECT_EQ(Run(BackendOp::kRead, (512 << 10) - 4096, 8192, memory()), -EIO);
}

TEST_F(FileBackendTest, AFileThatShrinksGivesEioAndNeverZeros) {
  const std::string path = dir_.MakeFile("a.img", 1 << 20);
  Open(path);
  EXPECT_EQ(Write(0, 1 << 20, 4), 0);
  ASSERT_EQ(truncate(path.c_str(), 512 << 10), 0);
  EXPECT_EQ(Run(BackendOp::kRead, 768 << 10, 4096, memory()), -EIO);
  EXPECT_TRUE(ReadsAs(0, 512 << 10, 4));
  // Growing it again does not bring the data back.
  ASSERT_EQ(truncate(path.c_str(), 1 << 20), 0);
  EXPECT_EQ(Run(BackendOp::kRead, 768 << 10, 4096, memory()), -EIO);
  EXPECT_EQ(Write(768 << 10, 4096, 1), -EIO);
  EXPECT_EQ(Run(BackendOp::kRead, (512 << 10) - 4096, 8192, memory()), -EIO);
}

TEST_F(FileBackendTest, AReadOverTheNewEndIsAnErrorNotAShortRead) {
  const std::string path = dir_.MakeFile("a.img", 1 << 20);
  Open(path);
  EXPECT_TRUE(
      ReadsAs(0, 4096, 0));  // The size has just been checked: now the end itself must tell.
  ASSERT_EQ(truncate(path.c_str(), 512 << 10), 0);
  EXPECT_EQ(Run(BackendOp::kRead, (512 << 10) - 8192, 16384, memory()), -EIO);
}

TEST_F(FileBackendTest, BufferedWorksTheSame) {
  VolumeOptions options;
  options.buffered = true;
  Open(dir_.MakeFile("a.img", 1 << 20), options);
  EXPECT_THAT(backend_->Describe(), testing::HasSubstr("buffered"));
  EXPECT_EQ(geometry().logical_block_size, 512u);
  EXPECT_EQ(Write(512, 1024, 6), 0);
  EXPECT_TRUE(ReadsAs(512, 1024, 6));
  EXPECT_TRUE(ReadsAs(0, 512, 0));
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
}

TEST_F(FileBackendTest, SecureEraseIsRefused) {
  Open(dir_.MakeFile("a.img", 1 << 20));
  EXPECT_EQ(Run(BackendOp::kSecureErase, 0, 4096), -EOPNOTSUPP);
}

TEST_F(FileBackendTest, AFullFileSystemIsEnospc) {
  const std::string mount_point = dir_ / "small";
  ASSERT_EQ(mkdir(mount_point.c_str(), 0700), 0);
  if (mount("tmpfs", mount_point.c_str(), "tmpfs", 0, "size=1M") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs is not permitted here";
  }
  const std::string path = dir_.MakeFile("small/a.img", 4 << 20);
  Open(path);
  int error = 0;
  for (std::uint64_t i = 0; i < 4 && error == 0; ++i) error = Write(i << 20, 1 << 20, 1);
  EXPECT_EQ(error, -ENOSPC);
  queue_.reset();
  backend_.reset();
  EXPECT_EQ(umount(mount_point.c_str()), 0);
}

// A loop device over a file; unset if the machine does not let us have one.
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    const UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const UniqueFd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
    const int number = control.valid() ? ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
    if (number < 0) return;
    const std::string path = "/dev/loop" + std::to_string(number);
    fd_.Reset(open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (fd_.valid() && ioctl(fd_.get(), LOOP_SET_FD, backing.get()) == 0) path_ = path;
  }
  ~LoopDevice() {
    if (!path_.empty()) (void)ioctl(fd_.get(), LOOP_CLR_FD, 0);  // At the latest at the last close.
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  UniqueFd fd_;
  std::string path_;
};

TEST_F(FileBackendTest, ABlockDeviceReadsWritesZeroesAndDiscards) {
  const std::string file = dir_.MakeFile("disk.img", 8 << 20);
  const LoopDevice device(file);
  if (device.path().empty()) GTEST_SKIP() << "no loop device to be had";
  Open(device.path());
  EXPECT_EQ(geometry().size_bytes, 8u << 20);
  EXPECT_NE(geometry().volume_id, 0u);
  EXPECT_THAT(backend_->Describe(), testing::StartsWith("device /dev/loop"));
  EXPECT_EQ(Write(0, 2 << 20, 5), 0);
  EXPECT_EQ(Run(BackendOp::kFlush, 0, 0), 0);
  for (const bool no_unmap : {true, false}) {
    RecordedIo io;
    io.op = BackendOp::kWriteZeroes;
    io.no_unmap = no_unmap;
    io.fua = true;
    io.offset = no_unmap ? 4096 : 65536;
    io.length = 32768;
    EXPECT_EQ(Run(io), 0);
    EXPECT_TRUE(ReadsAs(io.offset, io.length, 0));
  }
  EXPECT_TRUE(ReadsAs(0, 4096, 5));
  if (geometry().discard_bytes_max == 0) GTEST_SKIP() << "this loop device cannot discard";
  const std::int64_t before = AllocatedSectors(file);
  EXPECT_EQ(Run(BackendOp::kDiscard, 1 << 20, 1 << 20), 0);
  EXPECT_LE(AllocatedSectors(file), before - (1 << 20) / 512 + 64);
  EXPECT_TRUE(ReadsAs((1 << 20) - 4096, 4096, 5));
  queue_.reset();
  backend_.reset();
}

TEST_F(FileBackendTest, TheFileSizeLimitIsAnErrorOfTheIo) {
  signal(SIGXFSZ, SIG_IGN);
  Open(dir_.MakeFile("a.img", 4 << 20));
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit small = old;
  small.rlim_cur = 1 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const int error = Write(2 << 20, 4096, 1);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_EQ(error, -EFBIG);
}

}  // namespace
}  // namespace ibnbd
