// SPDX-License-Identifier: Apache-2.0
// What a device knows of its acknowledged writes that no flush has covered yet, over all its lanes.
// A lane writes its own cell only; a lane that flushes, and control, read them all.  No lock, no
// read-modify-write: one relaxed store per write.
//
// A flush covers what completed before it on every lane.  Counts only grow, so the sum of all of
// them, taken before the flush is sent, says which writes these were: if the sum has not grown
// since, none is missing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace ibnbd::rnbd {

class WriteLedger {
 public:
  explicit WriteLedger(std::size_t lane_count) : cells_(lane_count) {}

  // On the thread of `lane`.
  void OnVolatileWrite(std::size_t lane) {  // Acknowledged, and lost with the server's power.
    std::atomic<std::uint64_t>& written = cells_[lane].written;
    written.store(written.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  // A flush for which `covered` was the sum when it was sent has been acknowledged.
  void OnFlushed(std::size_t lane, std::uint64_t covered) {
    std::atomic<std::uint64_t>& flushed = cells_[lane].flushed;
    if (flushed.load(std::memory_order_relaxed) < covered) {
      flushed.store(covered, std::memory_order_relaxed);
    }
  }
  // A flush has failed for the loss of that number.
  void OnLossReported(std::size_t lane, std::uint32_t loss) {
    cells_[lane].reported.store(loss, std::memory_order_relaxed);
  }
  // Any thread.
  [[nodiscard]] bool LossReported(std::uint32_t loss) const {
    return std::any_of(cells_.begin(), cells_.end(), [loss](const Cell& cell) {
      return cell.reported.load(std::memory_order_relaxed) >= loss;
    });
  }
  [[nodiscard]] std::uint64_t WrittenSum() const {
    std::uint64_t sum = 0;
    for (const Cell& cell : cells_) sum += cell.written.load(std::memory_order_relaxed);
    return sum;
  }

  // Control, while no part is out: how many writes are lost if the server's machine has restarted.
  // They count once.
  std::uint64_t TakeUnflushed() {
    const std::uint64_t written = WrittenSum();
    std::uint64_t covered = taken_;
    for (const Cell& cell : cells_) {
      covered = std::max(covered, cell.flushed.load(std::memory_order_relaxed));
    }
    taken_ = written;
    return written - covered;
  }

 private:
  struct alignas(64) Cell {
    std::atomic<std::uint64_t> written{0};
    std::atomic<std::uint64_t> flushed{0};  // The largest sum that a flush on this lane covered.
    std::atomic<std::uint32_t> reported{0};
  };
  std::vector<Cell> cells_;
  std::uint64_t taken_ = 0;
};

}  // namespace ibnbd::rnbd
