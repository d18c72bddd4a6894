// SPDX-License-Identifier: Apache-2.0
#include "base/memory_provider.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

std::size_t RoundUp(std::size_t size, std::size_t unit) {
  return size > SIZE_MAX - unit ? SIZE_MAX / unit * unit : (size + unit - 1) / unit * unit;
}

std::size_t PageSize() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

// 0: this kernel has none.
std::size_t HugePageSize() {
  std::ifstream info("/proc/meminfo");
  for (std::string key, rest; info >> key && std::getline(info, rest);) {
    if (key == "Hugepagesize:") return std::strtoull(rest.c_str(), nullptr, 10) * 1024;
  }
  return 0;
}

absl::StatusOr<ProvidedMemory> MapPages(std::size_t size, int flags, int fd) {
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (base == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("map ", size, " bytes"));
  (void)madvise(base, size, MADV_DONTFORK);  // Best effort: only fork() would suffer.
  return ProvidedMemory{{static_cast<std::byte*>(base), size}, fd};
}

class OrdinaryPagesProvider final : public MemoryProvider {
 public:
  [[nodiscard]] const char* name() const override { return "pages"; }
  [[nodiscard]] absl::StatusOr<ProvidedMemory> Map(std::size_t byte_count) const override {
    return MapPages(RoundUp(byte_count, PageSize()), MAP_PRIVATE | MAP_ANONYMOUS, -1);
  }
};

class HugePagesProvider final : public MemoryProvider {
 public:
  [[nodiscard]] const char* name() const override { return "huge"; }
  [[nodiscard]] absl::StatusOr<ProvidedMemory> Map(std::size_t byte_count) const override {
    static const std::size_t kHugePageSize = HugePageSize();
    // Less than half of a page would waste the larger part of it.
    if (kHugePageSize != 0 && byte_count < kHugePageSize / 2)
      return OrdinaryPages().Map(byte_count);
    if (kHugePageSize != 0) {
      auto memory = MapPages(RoundUp(byte_count, kHugePageSize),
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
      if (memory.ok()) return memory;
    }
    LOG_WARN("no huge pages for ", byte_count, " bytes: ordinary ones (see vm.nr_hugepages)");
    return OrdinaryPages().Map(byte_count);
  }
};

class SharedPagesProvider final : public MemoryProvider {
 public:
  [[nodiscard]] const char* name() const override { return "memfd"; }
  [[nodiscard]] absl::StatusOr<ProvidedMemory> Map(std::size_t byte_count) const override {
    const std::size_t size = RoundUp(byte_count, PageSize());
    const int fd = memfd_create("ibnbd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return ErrnoStatus(errno, "memfd_create");
    // Whoever gets the file can write to it, but not take pages away under a NIC.
    if (ftruncate(fd, static_cast<off_t>(size)) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
      const absl::Status status = ErrnoStatus(errno, absl::StrCat("a memfd of ", size, " bytes"));
      close(fd);
      return status;
    }
    auto memory = MapPages(size, MAP_SHARED, fd);
    if (!memory.ok()) close(fd);
    return memory;
  }
};

}  // namespace

void MemoryProvider::Unmap(const ProvidedMemory& memory) const {
  munmap(memory.bytes.data(), memory.bytes.size());
  if (memory.fd >= 0) close(memory.fd);
}

const MemoryProvider& OrdinaryPages() {
  static const OrdinaryPagesProvider provider;
  return provider;
}

const MemoryProvider& HugePages() {
  static const HugePagesProvider provider;
  return provider;
}

const MemoryProvider& SharedPages() {
  static const SharedPagesProvider provider;
  return provider;
}

const MemoryProvider* FindMemoryProvider(absl::string_view name) {
  for (const MemoryProvider* provider : {&OrdinaryPages(), &HugePages(), &SharedPages()}) {
    if (name == provider->name()) return provider;
  }
  return nullptr;
}

}  // namespace ibnbd
