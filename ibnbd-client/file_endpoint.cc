// SPDX-License-Identifier: Apache-2.0
// Files, block devices and pipes as a side of a copy.  Every operation is done within Start().
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "ibnbd-client/endpoint.h"

namespace ibnbd::client {
namespace {

// Reads until `size` bytes are there or the end is; -errno, or the count.
ssize_t ReadFully(int fd, std::byte* data, std::size_t size, off_t offset, bool positioned) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count =
        positioned ? ::pread(fd, data + done, size - done, offset + static_cast<off_t>(done))
                   : ::read(fd, data + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return -errno;
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return static_cast<ssize_t>(done);
}

int WriteFully(int fd, const std::byte* data, std::size_t size, off_t offset, bool positioned) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count =
        positioned ? ::pwrite(fd, data + done, size - done, offset + static_cast<off_t>(done))
                   : ::write(fd, data + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return -errno;
    done += static_cast<std::size_t>(count);
  }
  return 0;
}

class FileEndpoint final : public Endpoint {
 public:
  enum class Type : std::uint8_t { kRegular, kBlock, kStream };
  FileEndpoint(std::string name, UniqueFd fd, Type type, std::uint64_t its_size, bool to_write)
      : name_(std::move(name)),
        fd_(std::move(fd)),
        type_(type),
        size_(its_size),
        writes_(to_write) {}

  const std::string& name() const override { return name_; }
  std::optional<std::uint64_t> size() const override {
    if (type_ == Type::kStream || (writes_ && type_ == Type::kRegular)) return std::nullopt;
    return size_;
  }
  bool sequential() const override { return type_ == Type::kStream; }
  bool starts_zeroed() const override { return type_ == Type::kRegular; }  // It was truncated.
  absl::Status UseMemory(std::span<std::byte>) override { return absl::OkStatus(); }

  absl::StatusOr<Extent> NextExtent(std::uint64_t offset, std::uint64_t length_max) override {
    if (type_ != Type::kRegular) return Extent{length_max, false};
    const auto start = static_cast<off_t>(offset);
    const off_t data = ::lseek(fd_.get(), start, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return Extent{length_max, true};  // A hole up to the end.
    if (data < 0) return Extent{length_max, false};  // The file system cannot tell.
    if (data > start) {
      return Extent{std::min(length_max, static_cast<std::uint64_t>(data - start)), true};
    }
    const off_t hole = ::lseek(fd_.get(), start, SEEK_HOLE);
    if (hole <= start) return Extent{length_max, false};
    return Extent{std::min(length_max, static_cast<std::uint64_t>(hole - start)), false};
  }

  void Start(Operation& operation) override {
    const bool positioned = type_ != Type::kStream;
    const auto offset = static_cast<off_t>(operation.offset);
    switch (operation.kind) {
      case OperationKind::kRead: {
        const ssize_t count =
            ReadFully(fd_.get(), operation.data, operation.length, offset, positioned);
        if (count < 0) return operation.done(static_cast<int>(count));
        // A file that became shorter meanwhile is not what was asked for.
        const auto got = static_cast<std::uint64_t>(count);
        if (positioned && got != operation.length) return operation.done(-ENODATA);
        operation.length = got;
        return operation.done(0);
      }
      case OperationKind::kWrite:
        return operation.done(
            WriteFully(fd_.get(), operation.data, operation.length, offset, positioned));
      case OperationKind::kZero:
        return operation.done(Zero(operation.offset, operation.length));
    }
  }

  absl::Status Finish(std::uint64_t end) override {
    if (!writes_) return absl::OkStatus();
    if (type_ == Type::kRegular && ::ftruncate(fd_.get(), static_cast<off_t>(end)) != 0) {
      return ErrnoStatus(errno, absl::StrCat("set the size of ", name_));
    }
    if (::fsync(fd_.get()) == 0 || errno == EINVAL || errno == EROFS) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("fsync ", name_));
  }

  absl::Status ReadNow(std::uint64_t offset, std::span<std::byte> into) override {
    const ssize_t count =
        ReadFully(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset), true);
    if (count < 0) return ErrnoStatus(static_cast<int>(-count), absl::StrCat("read ", name_));
    if (static_cast<std::size_t>(count) == into.size()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("read ", name_, ": it became shorter meanwhile"));
  }

 private:
  int Zero(std::uint64_t offset, std::uint64_t length) {
    if (type_ != Type::kStream) {
      for (const int mode : {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE}) {
        if (::fallocate(fd_.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(length)) ==
            0) {
          return 0;
        }
      }
    }
    if (zeroes_.empty()) zeroes_.resize(std::size_t{1} << 20);
    for (std::uint64_t done = 0; done < length;) {
      const std::uint64_t size = std::min<std::uint64_t>(length - done, zeroes_.size());
      const int error = WriteFully(fd_.get(), zeroes_.data(), size,
                                   static_cast<off_t>(offset + done), type_ != Type::kStream);
      if (error != 0) return error;
      done += size;
    }
    return 0;
  }

  const std::string name_;
  UniqueFd fd_;
  const Type type_;
  const std::uint64_t size_;
  const bool writes_;
  std::vector<std::byte> zeroes_;
};

absl::StatusOr<std::uint64_t> BlockDeviceSize(int fd, const std::string& name) {
  std::uint64_t size = 0;
  if (::ioctl(fd, BLKGETSIZE64, &size) != 0) {
    return ErrnoStatus(errno, absl::StrCat("ask for the size of ", name));
  }
  return size;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Endpoint>> OpenFileEndpoint(const std::string& path, bool to_write) {
  const bool standard = path == "-";
  const std::string name = !standard ? path : to_write ? "standard output" : "standard input";
  UniqueFd fd(standard
                  ? ::dup(to_write ? STDOUT_FILENO : STDIN_FILENO)
                  : ::open(path.c_str(),
                           (to_write ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC | O_NOCTTY, 0666));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", name));
  struct stat status = {};
  if (::fstat(fd.get(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", name));
  auto type = FileEndpoint::Type::kStream;  // Standard input and output always: they have a place.
  std::uint64_t size = 0;
  if (S_ISDIR(status.st_mode)) return ErrnoStatus(EISDIR, absl::StrCat("open ", name));
  if (!standard && S_ISBLK(status.st_mode)) {
    type = FileEndpoint::Type::kBlock;
    ASSIGN_OR_RETURN(size, BlockDeviceSize(fd.get(), name));
  } else if (!standard && S_ISREG(status.st_mode)) {
    type = FileEndpoint::Type::kRegular;
    size = static_cast<std::uint64_t>(status.st_size);
    if (to_write && ::ftruncate(fd.get(), 0) != 0) {
      return ErrnoStatus(errno, absl::StrCat("truncate ", name));
    }
  }
  return std::make_unique<FileEndpoint>(name, std::move(fd), type, size, to_write);
}

bool IsSameFile(const std::string& path, const std::string& other) {
  struct stat ours = {};
  struct stat theirs = {};
  if (::stat(path.c_str(), &ours) != 0 || ::stat(other.c_str(), &theirs) != 0) return false;
  if (S_ISBLK(ours.st_mode)) return S_ISBLK(theirs.st_mode) && ours.st_rdev == theirs.st_rdev;
  return S_ISREG(ours.st_mode) && ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

absl::StatusOr<std::unique_ptr<Endpoint>> OpenEndpoint(const std::string& name, bool to_write,
                                                       const ConnectOptions& options) {
  if (name.find("://") != std::string::npos) return OpenVolumeEndpoint(name, to_write, options);
  return OpenFileEndpoint(name, to_write);
}

}  // namespace ibnbd::client
