// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/null_backend.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

class NullQueue final : public rnbd::BackendQueue {
 public:
  void Submit(rnbd::BackendIo& io) override {
    if (io.op == rnbd::BackendOp::kSecureErase) return io.OnBackendDone(-EOPNOTSUPP);
    if (io.op == rnbd::BackendOp::kRead) std::memset(io.data.data(), 0, io.length);
    io.OnBackendDone(0);
  }
};

class NullBackend final : public rnbd::Backend {
 public:
  NullBackend(std::uint64_t size, std::uint32_t block_size) {
    geometry_.size_bytes = size;
    geometry_.logical_block_size = block_size;
    geometry_.physical_block_size = std::max<std::uint32_t>(block_size, 4096);
    geometry_.discard_bytes_max = 1u << 30;
    geometry_.discard_granularity = geometry_.physical_block_size;
    geometry_.write_zeroes_bytes_max = 1u << 30;
    geometry_.write_cache = false;
    geometry_.fua = false;
    geometry_.volume_id = size;  // One is like the other; nothing can be lost over a restart.
  }
  [[nodiscard]] const rnbd::Geometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::string Describe() const override {
    return absl::StrCat("null, ", SizeText(geometry_.size_bytes), ", keeps nothing");
  }
  absl::StatusOr<std::unique_ptr<rnbd::BackendQueue>> CreateQueue(Reactor&,
                                                                  std::uint32_t) override {
    return std::make_unique<NullQueue>();
  }

 private:
  rnbd::Geometry geometry_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<rnbd::Backend>> CreateNullBackend(absl::string_view size_text,
                                                                 std::uint32_t block_size) {
  const std::string where = absl::StrCat("null:", size_text);
  if (block_size == 0) block_size = rnbd::kSectorSize;
  absl::StatusOr<std::uint64_t> size = ParseVolumeSize(size_text, block_size);
  if (!size.ok()) return Annotate(size.status(), where);
  return std::make_unique<NullBackend>(*size, block_size);
}

}  // namespace ibnbd
