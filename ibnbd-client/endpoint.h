// SPDX-License-Identifier: Apache-2.0
// One side of a copy: a volume, a file or block device, or a pipe.  The copy engine starts
// operations and is told when they are done; a volume does many at once, the others do each
// within Start().  One thread.
#pragma once

#include <ibnbd/ibnbd.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace ibnbd::client {

enum class OperationKind : std::uint8_t { kRead, kWrite, kZero };

// The caller's storage from Start() until `done` has been called, exactly once, with 0 or a
// negative errno.  `done` may be called from inside Start().
struct Operation {
  OperationKind kind = OperationKind::kRead;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // Reads of a pipe: what was read; less than asked for at its end only.
  std::byte* data = nullptr;  // Inside the memory given to UseMemory().  Not for kZero.
  std::function<void(int error)> done;
  ibnbd_io io = {};  // The volume's.
};

// What the source has from an offset on.
struct Extent {
  std::uint64_t length = 0;
  bool zero = false;
};

class Endpoint {
 public:
  virtual ~Endpoint() = default;
  [[nodiscard]] virtual const std::string& name() const = 0;
  // Bytes to read, or room to write; nothing: a pipe, or a file that grows.
  [[nodiscard]] virtual std::optional<std::uint64_t> size() const = 0;
  // Operations must come in the order of their offsets.
  [[nodiscard]] virtual bool sequential() const { return false; }
  // What was never written reads as zero: zeroes at the destination may be left out.
  [[nodiscard]] virtual bool starts_zeroed() const { return false; }
  // All data will be in here; called once, before Start().
  virtual absl::Status UseMemory(std::span<std::byte> memory) = 0;
  virtual absl::StatusOr<Extent> NextExtent(std::uint64_t offset, std::uint64_t length_max) {
    (void)offset;
    return Extent{length_max, false};
  }
  virtual void Start(Operation& operation) = 0;
  // Makes what was written durable.  `end` is where the copy ended.
  virtual absl::Status Finish(std::uint64_t end) = 0;
  // To compare afterwards; not for pipes.
  virtual absl::Status ReadNow(std::uint64_t offset, std::span<std::byte> into) = 0;
  // Where progress of started operations is made; null if Start() does it all.
  [[nodiscard]] virtual ibnbd_queue* queue() const { return nullptr; }
};

struct ConnectOptions {
  std::uint32_t timeout_ms = 30'000;
  std::int64_t fail_after_ms = -1;
  std::uint32_t depth = 64;  // Operations at once.
  std::string session_name;  // Empty: made up.
};
// "-" is standard input or output, "scheme://..." a volume, all else a path.
absl::StatusOr<std::unique_ptr<Endpoint>> OpenEndpoint(const std::string& name, bool to_write,
                                                       const ConnectOptions& options);
absl::StatusOr<std::unique_ptr<Endpoint>> OpenVolumeEndpoint(const std::string& uri, bool to_write,
                                                             const ConnectOptions& options);
// Two paths of one file or device, which opening it as a destination would truncate.
bool IsSameFile(const std::string& path, const std::string& other);
absl::StatusOr<std::unique_ptr<Endpoint>> OpenFileEndpoint(const std::string& path, bool to_write);

}  // namespace ibnbd::client
