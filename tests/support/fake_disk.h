// SPDX-License-Identifier: Apache-2.0
// The medium of FakeBackend: two images of one volume, what a read returns and what a power loss
// leaves behind, block by block; and ranges that fail.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/prng.h"
#include "rnbd/block_backend.h"

namespace ibnbd::rnbd {

inline Geometry FakeGeometry(std::uint64_t size_bytes) {
  Geometry geometry;
  geometry.size_bytes = size_bytes;
  geometry.physical_block_size = 512;
  geometry.discard_bytes_max = 1 << 20;
  geometry.discard_granularity = 512;
  geometry.write_zeroes_bytes_max = 1 << 20;
  return geometry;
}

class FakeDisk {
 public:
  // Blocks with their contents at some moment.
  struct BlockImage {
    std::uint64_t block = 0;
    std::uint64_t version = 0;  // Of the write that left it so.
    std::vector<std::byte> data;
  };
  using Snapshot = std::vector<BlockImage>;

  explicit FakeDisk(const Geometry& geometry)
      : geometry_(geometry),
        current_(geometry.size_bytes),
        stable_(geometry.size_bytes),
        current_version_(geometry.size_bytes / kBlock),
        stable_version_(geometry.size_bytes / kBlock) {}

  [[nodiscard]] const Geometry& geometry() const { return geometry_; }
  void set_volume_id(std::uint64_t id) { geometry_.volume_id = id; }
  void GrowTo(std::uint64_t size_bytes) {
    CHECK(size_bytes >= geometry_.size_bytes);
    geometry_.size_bytes = size_bytes;
    current_.resize(size_bytes);
    stable_.resize(size_bytes);
    current_version_.resize(size_bytes / kBlock);
    stable_version_.resize(size_bytes / kBlock);
  }
  // What a read returns, and what would be left after a power loss that spares nothing.
  [[nodiscard]] std::span<std::byte> current() { return current_; }
  [[nodiscard]] std::span<const std::byte> stable() const { return stable_; }
  [[nodiscard]] std::size_t unflushed_block_count() const { return unflushed_.size(); }

  // IOs that touch [offset, offset + length) fail with `error`, `times` of them (negative: all).
  void FailRange(std::uint64_t offset, std::uint64_t length, int error, int times = -1) {
    failures_.push_back({offset, length, error, times});
  }
  void ClearFailures() { failures_.clear(); }

  int Execute(const BackendIo& io, const Snapshot& flushed) {
    const int error = TakeFailure(io);
    if (error != 0) return error;
    MakeStable(flushed);
    switch (io.op) {
      case BackendOp::kFlush:
        break;
      case BackendOp::kRead:
        CHECK_EQ(io.data.size(), io.length);
        std::memcpy(io.data.data(), &current_[io.offset], io.length);
        break;
      case BackendOp::kWrite:
        CHECK_EQ(io.data.size(), io.length);
        std::memcpy(&current_[io.offset], io.data.data(), io.length);
        MarkWritten(io);
        break;
      case BackendOp::kDiscard:
      case BackendOp::kWriteZeroes:
      case BackendOp::kSecureErase:
        std::memset(&current_[io.offset], 0, io.length);
        MarkWritten(io);
        break;
    }
    return 0;
  }

  [[nodiscard]] Snapshot SnapshotUnflushed() const {
    Snapshot snapshot;
    for (const std::uint64_t block : unflushed_) {
      const std::byte* data = &current_[block * kBlock];
      snapshot.push_back({block, current_version_[block], {data, data + kBlock}});
    }
    return snapshot;
  }
  // A power loss in the middle of a write: each of its blocks reached the medium or did not.
  void WriteSomeBlocks(const BackendIo& io, Prng& prng) {
    for (std::uint32_t at = 0; at < io.length; at += kBlock) {
      if (!prng.Chance(500'000)) continue;
      std::memcpy(&stable_[io.offset + at], io.data.data() + at, kBlock);
      std::memcpy(&current_[io.offset + at], io.data.data() + at, kBlock);
      const std::uint64_t block = (io.offset + at) / kBlock;
      stable_version_[block] = current_version_[block] = ++last_version_;
      unflushed_.erase(block);
    }
  }
  void LoseUnflushed(Prng& prng, std::uint32_t survive_ppm) {
    for (const std::uint64_t block : unflushed_) {
      if (prng.Chance(survive_ppm)) {
        std::memcpy(&stable_[block * kBlock], &current_[block * kBlock], kBlock);
        stable_version_[block] = current_version_[block];
      }
    }
    unflushed_.clear();
    current_ = stable_;
    current_version_ = stable_version_;
  }

 private:
  static constexpr std::uint32_t kBlock = 512;
  struct Failure {
    std::uint64_t offset = 0, length = 0;
    int error = 0;
    int times = 0;
  };

  int TakeFailure(const BackendIo& io) {
    for (Failure& failure : failures_) {
      const bool touches =
          io.op == BackendOp::kFlush ||
          (io.offset < failure.offset + failure.length && failure.offset < io.offset + io.length);
      if (failure.times == 0 || !touches) continue;
      if (failure.times > 0) --failure.times;
      return failure.error;
    }
    return 0;
  }
  void MarkWritten(const BackendIo& io) {
    const bool stable = io.fua || !geometry_.write_cache;
    ++last_version_;
    for (std::uint64_t at = io.offset; at < io.offset + io.length; at += kBlock) {
      const std::uint64_t block = at / kBlock;
      current_version_[block] = last_version_;
      if (stable) {
        std::memcpy(&stable_[at], &current_[at], kBlock);
        stable_version_[block] = last_version_;
        unflushed_.erase(block);
      } else {
        unflushed_.insert(block);
      }
    }
  }
  void MakeStable(const Snapshot& snapshot) {
    for (const BlockImage& image : snapshot) {
      // Written with FUA since: what is stable is newer than the snapshot.
      if (stable_version_[image.block] >= image.version) continue;
      std::memcpy(&stable_[image.block * kBlock], image.data.data(), kBlock);
      stable_version_[image.block] = image.version;
      if (current_version_[image.block] == image.version) unflushed_.erase(image.block);
    }
  }

  Geometry geometry_;
  std::vector<std::byte> current_;
  std::vector<std::byte> stable_;
  std::vector<std::uint64_t> current_version_;  // Per block.
  std::vector<std::uint64_t> stable_version_;
  std::uint64_t last_version_ = 0;
  std::set<std::uint64_t> unflushed_;
  std::vector<Failure> failures_;
};

}  // namespace ibnbd::rnbd
