// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/volume.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/prng.h"
#include "base/status_macros.h"
#include "ibnbd-server/backends/block_device.h"

namespace ibnbd {
namespace {

constexpr std::int64_t kLockPollNs = 20 * kNsPerMs;
constexpr std::size_t kZeroesSize = 256 << 10;
constexpr std::uint32_t kMemoryAlignment = 4096;  // Chunks are page aligned.
constexpr std::uint32_t kBlockSizeMax = 32768;    // A 16-bit field of the open response.
// Per request.  They are executed in pieces (file_queue_datapath.cc), and only the answer waits.
constexpr std::uint32_t kUnmapBytesMax = 1u << 30;
constexpr std::uint32_t kPlainZeroesBytesMax = 32u << 20;

constexpr RangeMethod kFileDiscard[] = {RangeMethod::kPunchHole, RangeMethod::kNone};
constexpr RangeMethod kDeviceDiscard[] = {RangeMethod::kBlockDiscard, RangeMethod::kUringDiscard,
                                          RangeMethod::kPunchHole, RangeMethod::kNone};
constexpr RangeMethod kZeroAndUnmap[] = {RangeMethod::kPunchHole, RangeMethod::kZeroRange,
                                         RangeMethod::kWriteZeroes};
constexpr RangeMethod kZeroAndKeep[] = {RangeMethod::kZeroRange, RangeMethod::kWriteZeroes};

std::span<const RangeMethod> MethodList(RangeUse use, bool is_block_device) {
  switch (use) {
    case RangeUse::kDiscard:
      if (is_block_device) return kDeviceDiscard;
      return kFileDiscard;
    case RangeUse::kZeroAndUnmap:
      return kZeroAndUnmap;
    case RangeUse::kZeroAndKeep:
      break;
  }
  return kZeroAndKeep;
}

std::int64_t NowNs() { return MonotonicClock().NowNs(); }

void PauseForLock() {
  const timespec pause{0, kLockPollNs};
  (void)nanosleep(&pause, nullptr);  // Woken early by a signal: looks once more, no harm.
}

bool Unwritable(int error) { return error == -EACCES || error == -EPERM || error == -EROFS; }

// Before the real open, which on a FIFO or a tape would block or do something.
absl::StatusOr<struct stat> Probe(Volume::Opener opener) {
  const UniqueFd probe(opener(O_PATH | O_CLOEXEC));
  if (!probe.valid()) return ErrnoStatus(probe.get(), "open");
  struct stat st {};
  if (fstat(probe.get(), &st) != 0) return ErrnoStatus(errno, "stat");
  if (S_ISDIR(st.st_mode)) return absl::InvalidArgumentError("is a directory");
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
    return absl::InvalidArgumentError("is neither a regular file nor a block device");
  }
  return st;
}

absl::Status CheckFileSize(std::uint64_t size) {
  if (size == 0) return absl::InvalidArgumentError("is empty");
  if (size % rnbd::kSectorSize != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("its size, ", size, " bytes, is not a whole number of sectors"));
  }
  return absl::OkStatus();
}

// Another machine, or a process, may have to answer for it.  Local are file systems on one block
// device, and those that are known to manage their own, or to need none; all else, such as an
// overlay of others, is not known.
bool IsRemoteFileSystem(int fd, std::uint32_t device_major) {
  struct statfs info {};
  if (fstatfs(fd, &info) != 0) return true;
  switch (static_cast<std::uint32_t>(info.f_type)) {
    case FUSE_SUPER_MAGIC:
    case OCFS2_SUPER_MAGIC:
    case 0x01161970:  // GFS2
      return true;
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
    case HUGETLBFS_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case 0x2fc12fc1:  // ZFS
    case 0xca451a4e:  // bcachefs
      return false;
    default:
      return device_major == 0;
  }
}

std::uint64_t MixId(std::uint64_t id, std::uint64_t value) { return Prng(id ^ value).Next(); }

}  // namespace

absl::StatusOr<std::unique_ptr<Volume>> Volume::Open(const std::string& path, Opener opener,
                                                     const VolumeOptions& options) {
  std::unique_ptr<Volume> self(new Volume(path, options));
  const std::string where = absl::StrCat("attach ", path);
  if (absl::Status status = self->OpenAndLock(opener); !status.ok()) return Annotate(status, where);
  if (absl::Status status = self->Examine(); !status.ok()) return Annotate(status, where);
  return self;
}

absl::Status Volume::Check(const std::string& path, Opener opener) {
  const absl::StatusOr<struct stat> found = Probe(opener);
  absl::Status status = found.status();
  if (found.ok() && S_ISREG(found->st_mode)) {
    status = CheckFileSize(static_cast<std::uint64_t>(found->st_size));
  }
  return status.ok() ? status : Annotate(status, absl::StrCat("attach ", path));
}

Volume::~Volume() {
  if (fd_.valid()) mark_.Close(fd_.get());
}

// EBUSY is the exclusive claim on a block device: like the lock it may be a dying predecessor's.
int Volume::OpenWaiting(Opener opener, std::int64_t deadline_ns) {
  const int exclusive = is_block_device_ && !geometry_.read_only ? O_EXCL : 0;
  while (true) {
    const int flags = (geometry_.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | exclusive |
                      (direct_ ? O_DIRECT : 0);
    const int fd = opener(flags);
    if (fd == -EINVAL && direct_) {
      UseBuffered("the file system refuses O_DIRECT");
    } else if (fd != -EBUSY || NowNs() >= deadline_ns) {
      return fd;
    } else {
      PauseForLock();
    }
  }
}

absl::Status Volume::OpenAndLock(Opener opener) {
  ASSIGN_OR_RETURN(const struct stat found, Probe(opener));
  is_block_device_ = S_ISBLK(found.st_mode);
  const std::int64_t deadline_ns = NowNs() + options_.lock_wait_ns;
  geometry_.read_only = options_.read_only;
  direct_ = !options_.buffered;
  int fd = OpenWaiting(opener, deadline_ns);
  if (Unwritable(fd) && !geometry_.read_only && options_.read_only_if_refused) {
    geometry_.read_only = true;
    fd = OpenWaiting(opener, deadline_ns);
  }
  if (fd == -EBUSY) {
    return absl::FailedPreconditionError(
        "in use on this machine (mounted, or part of a RAID, LVM or swap)");
  }
  if (fd < 0) return ErrnoStatus(fd, geometry_.read_only ? "open" : "open for writing");
  fd_.Reset(fd);
  return Lock(deadline_ns);
}

absl::Status Volume::Lock(std::int64_t deadline_ns) {
  while (true) {
    const int error = lock_.TryLock(fd_.get(), !geometry_.read_only);
    if (error == 0) return absl::OkStatus();
    if (error != -EWOULDBLOCK && error != -EBUSY) {
      // A file system without locks (some network ones) is served without the fence, and says so.
      LOG_WARN("attach ", path_, ": no lock: ", std::string(ErrnoStatus(error, "flock").message()));
      return absl::OkStatus();
    }
    if (NowNs() >= deadline_ns) {
      return absl::FailedPreconditionError(error == -EBUSY ? "is exported for writing already"
                                                           : "in use by another server (flock)");
    }
    PauseForLock();
  }
}

absl::Status Volume::Examine() {
  ASSIGN_OR_RETURN(zeroes_, Arena::Create(kZeroesSize));
  RETURN_IF_ERROR(is_block_device_ ? ExamineDevice() : ExamineFile());
  if (geometry_.size_bytes == 0) return absl::InvalidArgumentError("is empty");
  intact_bytes_.store(geometry_.size_bytes, std::memory_order_relaxed);
  if (!geometry_.read_only) ProbeRanges();
  return absl::OkStatus();
}

absl::Status Volume::ExamineFile() {
  struct statx stx {};
  if (statx(fd_.get(), "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stx) != 0) {
    return ErrnoStatus(errno, "statx");
  }
  if (!S_ISREG(stx.stx_mode)) return absl::AbortedError("was replaced while it was opened");
  device_ = (std::uint64_t{stx.stx_dev_major} << 32) | stx.stx_dev_minor;
  inode_ = stx.stx_ino;
  is_remote_ = options_.as_if_remote || IsRemoteFileSystem(fd_.get(), stx.stx_dev_major);
  geometry_.size_bytes = stx.stx_size;
  RETURN_IF_ERROR(CheckFileSize(geometry_.size_bytes));
  // Device numbers change over reboots; the inode with its birth in nanoseconds does not.
  std::uint64_t id = MixId(1, inode_);
  if ((stx.stx_mask & STATX_BTIME) != 0) {
    id = MixId(MixId(id, static_cast<std::uint64_t>(stx.stx_btime.tv_sec)), stx.stx_btime.tv_nsec);
  } else {
    id = MixId(id, device_);
  }
  // In the lowest bits, so that a client can tell what has changed.
  mark_ = VolumeMark::Open(fd_.get(), !geometry_.read_only, path_);
  geometry_.volume_id = std::max<std::uint64_t>(id ^ mark_.generation(), 1);
  geometry_.discard_granularity = std::clamp<std::uint32_t>(stx.stx_blksize, 512, 1u << 20);
  RETURN_IF_ERROR(FitBlockSize(direct_ ? DirectAlignment() : 512));
  geometry_.physical_block_size = std::max<std::uint32_t>(geometry_.logical_block_size, 4096);
  return absl::OkStatus();
}

// The smallest block that O_DIRECT can do here; turns to buffered IO if there is none.
std::uint32_t Volume::DirectAlignment() {
#ifdef STATX_DIOALIGN
  struct statx stx {};
  if (statx(fd_.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
      (stx.stx_mask & STATX_DIOALIGN) != 0) {
    const std::uint32_t alignment = stx.stx_dio_offset_align;
    if (alignment != 0 && alignment <= kBlockSizeMax && stx.stx_dio_mem_align <= kMemoryAlignment) {
      return std::max<std::uint32_t>(alignment, 512);
    }
    UseBuffered("the file system cannot do O_DIRECT on this file");
    return 512;
  }
#endif
  // An older kernel: only trying tells.  Other errors than EINVAL are the IO's own business later.
  auto buffer = Arena::Create(kMemoryAlignment);
  if (!buffer.ok()) return 512;
  for (const std::uint32_t size : {512u, 4096u}) {
    if (pread(fd_.get(), buffer->bytes().data(), size, 0) >= 0 || errno != EINVAL) return size;
  }
  UseBuffered("the file system cannot do O_DIRECT on this file");
  return 512;
}

void Volume::UseBuffered(const std::string& why) {
  direct_ = false;
  if (fd_.valid()) {
    const int flags = fcntl(fd_.get(), F_GETFL);
    CHECK(flags >= 0 && fcntl(fd_.get(), F_SETFL, flags & ~O_DIRECT) == 0);
  }
  LOG_WARN("attach ", path_, ": ", why, "; IO goes through the page cache");
}

// A block smaller than O_DIRECT's is possible only through the page cache.
absl::Status Volume::FitBlockSize(std::uint32_t block_size_min) {
  std::uint32_t size = options_.block_size != 0 ? options_.block_size : block_size_min;
  if (options_.block_size == 0 && geometry_.size_bytes % size != 0) size = 512;
  if (size < block_size_min) {
    UseBuffered(
        absl::StrCat("O_DIRECT here needs blocks of ", block_size_min, " bytes, not of ", size));
  }
  if (geometry_.size_bytes % size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("its size, ", geometry_.size_bytes,
                                                   " bytes, is not a whole number of ", size,
                                                   "-byte blocks"));
  }
  geometry_.logical_block_size = size;
  return absl::OkStatus();
}

absl::Status Volume::ExamineDevice() {
  struct stat st {};
  if (fstat(fd_.get(), &st) != 0) return ErrnoStatus(errno, "stat");
  if (!S_ISBLK(st.st_mode)) return absl::AbortedError("was replaced while it was opened");
  device_ = st.st_rdev;
  ASSIGN_OR_RETURN(const BlockDeviceFacts facts, ExamineBlockDevice(fd_.get(), st.st_rdev));
  if (facts.logical_block_size > kBlockSizeMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("its blocks, ", facts.logical_block_size, " bytes, are larger than 32 KiB"));
  }
  if (options_.block_size != 0 && options_.block_size < facts.logical_block_size) {
    return absl::InvalidArgumentError(absl::StrCat("block-size ", options_.block_size,
                                                   ": its blocks have ", facts.logical_block_size,
                                                   " bytes"));
  }
  if (facts.read_only && !geometry_.read_only) {
    if (!options_.read_only_if_refused) {
      return absl::PermissionDeniedError("the device is read-only: export it with ro");
    }
    geometry_.read_only = true;
  }
  geometry_.size_bytes = facts.size_bytes;
  geometry_.discard_granularity =
      facts.discard_granularity != 0 ? facts.discard_granularity : facts.logical_block_size;
  geometry_.discard_alignment = facts.discard_alignment;
  geometry_.discard_bytes_max =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(facts.discard_bytes_max, kUnmapBytesMax));
  std::uint64_t id = 2;
  for (const char c : facts.identity) id = MixId(id, static_cast<unsigned char>(c));
  geometry_.volume_id = std::max<std::uint64_t>(id, 1);
  if (geometry_.size_bytes == 0) return absl::InvalidArgumentError("is empty");
  RETURN_IF_ERROR(FitBlockSize(facts.logical_block_size));
  geometry_.physical_block_size =
      std::clamp(facts.physical_block_size, geometry_.logical_block_size, kBlockSizeMax);
  return absl::OkStatus();
}

// Finds out what can be given back without touching a byte: a hole behind the end of the file.
void Volume::ProbeRanges() {
  if (!is_block_device_) {
    const std::uint64_t beyond = (geometry_.size_bytes + 0xfffff) & ~std::uint64_t{0xfffff};
    if (fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(beyond),
                  4096) != 0 &&
        errno != EFBIG) {
      GiveUp(RangeUse::kDiscard, RangeMethod::kPunchHole);
      GiveUp(RangeUse::kZeroAndUnmap, RangeMethod::kPunchHole);
    } else {
      geometry_.discard_bytes_max = kUnmapBytesMax;
    }
  }
  const std::uint32_t block = geometry_.logical_block_size;
  geometry_.discard_bytes_max -= geometry_.discard_bytes_max % block;
  if (geometry_.discard_bytes_max == 0) {
    geometry_.discard_granularity = geometry_.discard_alignment = 0;
  }
  // Always possible: where the kernel offers no quicker way, zeros are written.
  geometry_.write_zeroes_bytes_max =
      geometry_.discard_bytes_max != 0 ? kUnmapBytesMax : kPlainZeroesBytesMax;
}

void Volume::CheckSize() { CheckSizeWith(0); }

void Volume::CheckKnownSize() { CheckSizeWith(AT_STATX_DONT_SYNC); }

void Volume::CheckSizeWith(int statx_flags) {
  if (is_block_device_) return;
  for (;;) {
    // First what we believe, then what is: RefreshSize() may be at work, and then this tries again.
    const std::uint64_t believed = intact_bytes_.load(std::memory_order_acquire);
    struct statx stx {};
    if (statx(fd_.get(), "", AT_EMPTY_PATH | statx_flags, STATX_SIZE, &stx) != 0) return;
    if (NoteSize(believed, stx.stx_size)) return;
  }
}

bool Volume::NoteSize(std::uint64_t believed, std::uint64_t found) {
  if (found >= believed) return true;
  if (!intact_bytes_.compare_exchange_strong(believed, found, std::memory_order_acq_rel)) {
    return false;
  }
  LOG_ERROR("volume ", path_, ": shrunk to ", found, " bytes while it was served; IO behind ",
            "that fails until it is attached again");
  return true;
}

absl::StatusOr<std::uint64_t> Volume::SizeNow() const {
  if (is_block_device_) return BlockDeviceSize(fd_.get());
  struct stat st {};
  if (fstat(fd_.get(), &st) != 0) return ErrnoStatus(errno, "stat");
  return static_cast<std::uint64_t>(st.st_size);
}

absl::Status Volume::CheckPlace() const {
  if (!options_.path_is_real) return absl::OkStatus();
  struct statx stx {};
  if (statx(AT_FDCWD, path_.c_str(), 0, STATX_BASIC_STATS, &stx) != 0) {
    if (errno != ENOENT && errno != ENOTDIR) return absl::OkStatus();  // It cannot be told.
    return ErrnoStatus(ESTALE, absl::StrCat(path_,
                                            " was removed or moved away; what clients have "
                                            "open is served until this server ends"));
  }
  const auto number = [](std::uint32_t major, std::uint32_t minor) {
    return (std::uint64_t{major} << 32) | minor;
  };
  const bool same =
      is_block_device_
          ? S_ISBLK(stx.stx_mode) && makedev(stx.stx_rdev_major, stx.stx_rdev_minor) == device_
          : S_ISREG(stx.stx_mode) && stx.stx_ino == inode_ &&
                number(stx.stx_dev_major, stx.stx_dev_minor) == device_;
  if (same) return absl::OkStatus();
  return ErrnoStatus(ESTALE, absl::StrCat(path_,
                                          " was replaced by another file; what clients have "
                                          "open is served from the old one until this server "
                                          "ends"));
}

void Volume::TakeSize(const absl::StatusOr<std::uint64_t>& found) {
  std::uint64_t intact = intact_bytes();
  if (intact != geometry_.size_bytes) return;  // Something was cut off: that stays lost.
  if (!found.ok()) {
    LOG_WARN("volume ", path_, ": its size cannot be told: ", found.status().message());
    return;
  }
  const std::uint64_t size = *found - *found % geometry_.logical_block_size;
  if (size <= geometry_.size_bytes) return;
  // A reactor that finds the file shrunk at this moment wins.
  if (!intact_bytes_.compare_exchange_strong(intact, size, std::memory_order_acq_rel)) return;
  LOG_INFO("volume ", path_, ": grown from ", geometry_.size_bytes, " to ", size, " bytes");
  geometry_.size_bytes = size;
}

RangeMethod Volume::Method(RangeUse use) const {
  const auto list = MethodList(use, is_block_device_);
  return list[method_index_[static_cast<std::size_t>(use)].load(std::memory_order_relaxed)];
}

void Volume::GiveUp(RangeUse use, RangeMethod method) {
  const auto list = MethodList(use, is_block_device_);
  auto& index = method_index_[static_cast<std::size_t>(use)];
  const std::uint8_t now = index.load(std::memory_order_relaxed);
  // Two reactors may find out at once; the second changes nothing.
  if (list[now] == method && now + 1u < list.size()) {
    index.store(static_cast<std::uint8_t>(now + 1), std::memory_order_relaxed);
  }
}

}  // namespace ibnbd
