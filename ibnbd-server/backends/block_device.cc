// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/block_device.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

std::string ReadLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return std::string(absl::StripAsciiWhitespace(line));
}

std::uint64_t ReadNumber(const std::string& path) {
  std::uint64_t value = 0;
  return absl::SimpleAtoi(ReadLine(path), &value) ? value : 0;
}

// The directory of the device in sysfs with links resolved, or an empty string.
std::string SysfsDirectory(dev_t device) {
  const std::string link = absl::StrCat("/sys/dev/block/", major(device), ":", minor(device));
  char* resolved = realpath(link.c_str(), nullptr);
  if (resolved == nullptr) return "";
  std::string result = resolved;
  std::free(resolved);
  return result;
}

std::string Identity(const std::string& disk, const std::string& partition, dev_t device) {
  for (const char* name : {"dm/uuid", "wwid", "device/wwid", "serial", "device/serial",
                           "loop/backing_file", "md/uuid"}) {
    const std::string value = ReadLine(absl::StrCat(disk, "/", name));
    if (!value.empty()) return absl::StrCat(name, " ", value, " partition ", partition);
  }
  return absl::StrCat("device ", major(device), ":", minor(device));
}

}  // namespace

absl::StatusOr<std::uint64_t> BlockDeviceSize(int fd) {
  std::uint64_t size = 0;
  if (ioctl(fd, BLKGETSIZE64, &size) != 0) return ErrnoStatus(errno, "BLKGETSIZE64");
  return size;
}

absl::StatusOr<BlockDeviceFacts> ExamineBlockDevice(int fd, dev_t device) {
  BlockDeviceFacts facts;
  ASSIGN_OR_RETURN(facts.size_bytes, BlockDeviceSize(fd));
  int logical = 0;
  if (ioctl(fd, BLKSSZGET, &logical) != 0) return ErrnoStatus(errno, "BLKSSZGET");
  unsigned physical = 0;
  if (ioctl(fd, BLKPBSZGET, &physical) != 0) physical = static_cast<unsigned>(logical);
  int read_only = 0;
  if (ioctl(fd, BLKROGET, &read_only) != 0) return ErrnoStatus(errno, "BLKROGET");
  facts.logical_block_size = static_cast<std::uint32_t>(logical);
  facts.physical_block_size = physical;
  facts.read_only = read_only != 0;

  std::string disk = SysfsDirectory(device);
  const std::string partition = ReadLine(disk + "/partition");
  if (!partition.empty()) disk.resize(disk.rfind('/'));  // The queue is the whole disk's.
  facts.discard_bytes_max = ReadNumber(disk + "/queue/discard_max_bytes");
  facts.discard_granularity =
      static_cast<std::uint32_t>(ReadNumber(disk + "/queue/discard_granularity"));
  facts.discard_alignment =
      static_cast<std::uint32_t>(ReadNumber(SysfsDirectory(device) + "/discard_alignment"));
  facts.identity = Identity(disk, partition, device);
  return facts;
}

}  // namespace ibnbd
