// SPDX-License-Identifier: Apache-2.0
// The permits of one connection: the right to use one chunk of the server for one request.  A
// session's chunks are dealt to its connections once, in contiguous ranges (DealPermits()), so that
// no connection ever waits for another.  The permit released last is taken first: its chunk is warm
// in the server's cache.  One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace ibnbd::rtrs {

struct PermitRange {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  friend bool operator==(const PermitRange&, const PermitRange&) = default;
};

class PermitPool {
 public:
  static constexpr std::uint32_t kNone = ~0u;

  PermitPool() = default;
  explicit PermitPool(PermitRange range) : range_(range), used_(range.count, false) {
    free_.reserve(range.count);
    for (std::uint32_t i = range.count; i-- > 0;) free_.push_back(range.first + i);
  }

  [[nodiscard]] const PermitRange& range() const { return range_; }
  [[nodiscard]] bool empty() const { return free_.empty(); }
  [[nodiscard]] std::uint32_t free_count() const {
    return static_cast<std::uint32_t>(free_.size());
  }
  [[nodiscard]] std::uint32_t used_count() const {
    return range_.count - static_cast<std::uint32_t>(free_.size());
  }
  // The id of a chunk, or kNone.
  [[nodiscard]] std::uint32_t TryAcquire() {
    if (free_.empty()) return kNone;
    const std::uint32_t chunk = free_.back();
    free_.pop_back();
    used_[chunk - range_.first] = true;
    return chunk;
  }
  void Release(std::uint32_t chunk) {
    CHECK(Owns(chunk) && used_[chunk - range_.first]);
    used_[chunk - range_.first] = false;
    free_.push_back(chunk);  // Reserved: does not allocate.
  }
  [[nodiscard]] bool Owns(std::uint32_t chunk) const {
    return chunk - range_.first < range_.count;  // Wraps to something large below `first`.
  }

 private:
  PermitRange range_;
  std::vector<std::uint32_t> free_;
  std::vector<bool> used_;
};

// The range of connection `cid` out of `lane_count` + 1: the control plane's first, the rest dealt
// evenly.  Requires queue_depth >= 1 + lane_count and cid <= lane_count.
[[nodiscard]] constexpr PermitRange DealPermits(std::uint32_t queue_depth, std::uint32_t lane_count,
                                                std::uint32_t cid) {
  // Two at least, if there are enough: a fence must not wait for a control message.
  std::uint32_t control = queue_depth / 16 < 2 ? 2 : queue_depth / 16;
  if (control > 8) control = 8;
  if (lane_count == 0) control = queue_depth;
  if (control > queue_depth - lane_count) control = queue_depth - lane_count;
  if (cid == 0) return {0, control};
  const std::uint32_t rest = queue_depth - control;
  const std::uint32_t share = rest / lane_count;
  const std::uint32_t extra = rest % lane_count;  // The first `extra` lanes have one more.
  const std::uint32_t lane = cid - 1;
  const std::uint32_t before = lane < extra ? lane : extra;
  return {control + lane * share + before, share + (lane < extra ? 1 : 0)};
}

}  // namespace ibnbd::rtrs
