// SPDX-License-Identifier: Apache-2.0
// A regular file or a block device, opened, locked and examined: all that is learned before the
// first IO.  Made on a control thread (it may block), then read by the queues of all reactors; what
// changes later is atomic, but for the size in geometry(), which belongs to the control thread.
//
// The lock (volume_lock.h) is the fence between servers: an IO that a killed predecessor left in
// the kernel keeps its open file, and with it the lock, until it has landed.  So opening waits for
// the lock rather than fails at once.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "ibnbd-server/backends/volume_lock.h"
#include "ibnbd-server/backends/volume_mark.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

struct VolumeOptions {
  bool read_only = false;
  // Serve it read-only if it may not be written, instead of failing.
  bool read_only_if_refused = false;
  bool buffered = false;
  std::uint32_t block_size = 0;  // 0: the smallest the volume can do.
  std::int64_t lock_wait_ns = 5 * kNsPerSecond;
  // The path given to Volume::Open() is one that stat(2) can follow.
  bool path_is_real = false;
  bool as_if_remote = false;  // For tests: is_remote() of any file.
};

// How a range is given back or zeroed; tried in the order of the lists in volume.cc, from the best
// to the plainest.  What the kernel refuses as unsupported is not tried again.
enum class RangeMethod : std::uint8_t {
  kNone,          // End of a list: not supported.
  kPunchHole,     // FALLOC_FL_PUNCH_HOLE: reads zeros afterwards.
  kZeroRange,     // FALLOC_FL_ZERO_RANGE: reads zeros, stays allocated.
  kWriteZeroes,   // Plain writes of zeros.
  kBlockDiscard,  // FALLOC_FL_NO_HIDE_STALE on a block device, kernels before 6.13.
  kUringDiscard,  // BLOCK_URING_CMD_DISCARD, kernels from 6.12.
};
enum class RangeUse : std::uint8_t { kDiscard, kZeroAndUnmap, kZeroAndKeep };

class Volume {
 public:
  // Opens with the given flags; a descriptor or a negative errno.
  using Opener = absl::FunctionRef<int(int flags)>;
  // Errors begin with "attach PATH: ".
  static absl::StatusOr<std::unique_ptr<Volume>> Open(const std::string& path, Opener opener,
                                                      const VolumeOptions& options);
  // What can be told without opening: it is there, and of a kind and size that can be served.
  // Takes nothing from a server that has it open.
  static absl::Status Check(const std::string& path, Opener opener);
  ~Volume();  // No IO is under way any more.
  Volume(const Volume&) = delete;
  Volume& operator=(const Volume&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const rnbd::Geometry& geometry() const { return geometry_; }
  [[nodiscard]] bool direct() const { return direct_; }
  [[nodiscard]] bool is_block_device() const { return is_block_device_; }
  [[nodiscard]] std::uint64_t device() const { return device_; }  // st_dev, or st_rdev of a device.
  [[nodiscard]] std::uint64_t inode() const { return inode_; }    // 0 for a device.

  // Takes the size, as SizeNow() has it, if it has grown; of a file that was ever shrunk, never.
  // Control thread.
  void TakeSize(const absl::StatusOr<std::uint64_t>& found);

  // --- Any thread, from here on. ---
  // As rnbd::Backend has it, but that it may take as long as the file system does.
  [[nodiscard]] absl::Status CheckPlace() const;
  [[nodiscard]] absl::StatusOr<std::uint64_t> SizeNow() const;  // Likewise.
  // How much of the file is still what was opened.  Somebody may shrink the file; what was cut off
  // stays lost even if it grows again: it would read as zeros that nobody wrote.
  [[nodiscard]] std::uint64_t intact_bytes() const {
    return intact_bytes_.load(std::memory_order_relaxed);
  }
  // Looks at the file's size again and lowers intact_bytes().  May take as long as the file system.
  void CheckSize();
  // The same with what the kernel knows already: nobody is asked, and waited for.
  void CheckKnownSize();
  // While intact_bytes() was `believed`, `found` was said to be the size.  False: it is not what
  // was believed any more, so look again.
  bool NoteSize(std::uint64_t believed, std::uint64_t found);
  // A file that may get smaller without the kernel's knowledge, and whose file system may keep who
  // asks it waiting (NFS, FUSE).
  [[nodiscard]] bool is_remote() const { return is_remote_; }

  [[nodiscard]] const std::shared_ptr<rnbd::SyncErrors>& sync_errors() const {
    return sync_errors_;
  }

  [[nodiscard]] RangeMethod Method(RangeUse use) const;
  // The kernel does not support `method` here: the next one of the list from now on.
  void GiveUp(RangeUse use, RangeMethod method);
  // Never written, so that it costs no memory: the source of kWriteZeroes.
  [[nodiscard]] std::span<std::byte> zeroes() const { return zeroes_.bytes(); }

 private:
  Volume(std::string path, const VolumeOptions& options)
      : path_(std::move(path)), options_(options) {}
  absl::Status OpenAndLock(Opener opener);
  void CheckSizeWith(int statx_flags);
  int OpenWaiting(Opener opener, std::int64_t deadline_ns);
  absl::Status Lock(std::int64_t deadline_ns);
  absl::Status Examine();
  absl::Status ExamineFile();
  absl::Status ExamineDevice();
  std::uint32_t DirectAlignment();
  void UseBuffered(const std::string& why);
  absl::Status FitBlockSize(std::uint32_t block_size_min);
  void ProbeRanges();

  const std::string path_;
  const VolumeOptions options_;
  UniqueFd fd_;
  VolumeLock lock_;  // Of fd_; let go before it is closed.
  VolumeMark mark_;  // Of a file.
  rnbd::Geometry geometry_;
  bool direct_ = true;
  bool is_block_device_ = false;
  bool is_remote_ = false;
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  Arena zeroes_;
  std::atomic<std::uint64_t> intact_bytes_{0};
  const std::shared_ptr<rnbd::SyncErrors> sync_errors_ = std::make_shared<rnbd::SyncErrors>();
  std::array<std::atomic<std::uint8_t>, 3> method_index_{};  // By RangeUse.
};

}  // namespace ibnbd
