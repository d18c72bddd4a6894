// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/memory_backend.h"

#include <sys/mman.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

using rnbd::BackendIo;
using rnbd::BackendOp;

constexpr std::uint64_t kPageSize = 4096;
// Bounds what one request keeps a reactor busy with: some milliseconds.
constexpr std::uint32_t kDiscardBytesMax = 64u << 20;
constexpr std::uint32_t kWriteZeroesBytesMax = 16u << 20;

// A mapping that costs nothing until it is touched; shared by the queues of all reactors.
class Store {
 public:
  static absl::StatusOr<std::unique_ptr<Store>> Create(std::uint64_t size) {
    void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("map ", SizeText(size)));
    return std::unique_ptr<Store>(new Store(static_cast<std::byte*>(base), size));
  }
  ~Store() { munmap(base_, size_); }
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  [[nodiscard]] std::byte* at(std::uint64_t offset) { return base_ + offset; }
  [[nodiscard]] std::uint64_t size() const { return size_; }

  // Whole pages are given back, the rest is overwritten: all of the range reads as zeros.
  void Unmap(std::uint64_t offset, std::uint64_t length) {
    const std::uint64_t end = offset + length;
    const std::uint64_t first = std::min((offset + kPageSize - 1) & ~(kPageSize - 1), end);
    const std::uint64_t last = std::max(end & ~(kPageSize - 1), first);
    std::memset(at(offset), 0, first - offset);
    std::memset(at(last), 0, end - last);
    // Can fail only for memory that is locked; zeros it must be in any case.
    if (first < last && madvise(at(first), last - first, MADV_DONTNEED) != 0) {
      std::memset(at(first), 0, last - first);
    }
  }

 private:
  Store(std::byte* base, std::uint64_t size) : base_(base), size_(size) {}
  std::byte* const base_;
  const std::uint64_t size_;
};

class MemoryQueue final : public rnbd::BackendQueue {
 public:
  explicit MemoryQueue(Store& store) : store_(store) {}
  void Submit(BackendIo& io) override {
    DCHECK(io.offset + io.length <= store_.size());
    switch (io.op) {
      case BackendOp::kRead:
        std::memcpy(io.data.data(), store_.at(io.offset), io.length);
        break;
      case BackendOp::kWrite:
        std::memcpy(store_.at(io.offset), io.data.data(), io.length);
        break;
      case BackendOp::kFlush:
        break;
      case BackendOp::kDiscard:
        store_.Unmap(io.offset, io.length);
        break;
      case BackendOp::kWriteZeroes:
        if (io.no_unmap) {
          std::memset(store_.at(io.offset), 0, io.length);
        } else {
          store_.Unmap(io.offset, io.length);
        }
        break;
      case BackendOp::kSecureErase:
        return io.OnBackendDone(-EOPNOTSUPP);
    }
    io.OnBackendDone(0);
  }

 private:
  Store& store_;
};

class MemoryBackend final : public rnbd::Backend {
 public:
  MemoryBackend(std::unique_ptr<Store> store, std::uint32_t block_size, std::uint64_t volume_id)
      : store_(std::move(store)) {
    geometry_.size_bytes = store_->size();
    geometry_.logical_block_size = block_size;
    geometry_.physical_block_size = std::max<std::uint32_t>(block_size, kPageSize);
    geometry_.discard_bytes_max = kDiscardBytesMax;
    geometry_.discard_granularity = std::max<std::uint32_t>(block_size, kPageSize);
    geometry_.write_zeroes_bytes_max = kWriteZeroesBytesMax;
    geometry_.write_cache = false;  // A completed write is as stable as it will ever be.
    geometry_.fua = false;
    geometry_.volume_id = volume_id;
  }
  [[nodiscard]] const rnbd::Geometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::string Describe() const override {
    return absl::StrCat("memory, ", SizeText(geometry_.size_bytes), ", gone when the server ends");
  }
  absl::StatusOr<std::unique_ptr<rnbd::BackendQueue>> CreateQueue(Reactor&,
                                                                  std::uint32_t) override {
    return std::make_unique<MemoryQueue>(*store_);
  }

 private:
  const std::unique_ptr<Store> store_;
  rnbd::Geometry geometry_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<rnbd::Backend>> CreateMemoryBackend(absl::string_view size_text,
                                                                   std::uint32_t block_size) {
  const std::string where = absl::StrCat("mem:", size_text);
  if (block_size == 0) block_size = rnbd::kSectorSize;
  absl::StatusOr<std::uint64_t> size = ParseVolumeSize(size_text, block_size);
  if (!size.ok()) return Annotate(size.status(), where);
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Create(*size);
  if (!store.ok()) return Annotate(store.status(), where);
  std::uint64_t volume_id = 0;
  while (volume_id == 0) {
    if (getrandom(&volume_id, sizeof volume_id, 0) != sizeof volume_id && errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat(where, ": getrandom"));
    }
  }
  return std::make_unique<MemoryBackend>(*std::move(store), block_size, volume_id);
}

}  // namespace ibnbd
