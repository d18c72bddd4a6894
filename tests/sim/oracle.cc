// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/oracle.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"

namespace ibnbd::sim {
namespace {

constexpr std::size_t kSectorSize = 512;

struct Stamp {  // 32 bytes, 16 times per sector: a torn sector shows.
  std::uint64_t magic;
  std::uint64_t id;
  std::uint64_t volume;
  std::uint64_t sector;
};
static_assert(kSectorSize % sizeof(Stamp) == 0);
constexpr std::uint64_t kMagic = 0x69626e6264736563u;  // "ibnbdsec"

}  // namespace

SectorHistory::SectorHistory() {
  // The first content: zeros, and stable.
  writes_.push_back({.id = 0, .zeroes = true, .end = 0, .effective = 0, .acked = 0, .stable = 0});
}

void SectorHistory::OnWriteStarted(WriteId id, bool zeroes, std::int64_t now) {
  writes_.push_back({.id = id, .zeroes = zeroes, .start = now});
}

void SectorHistory::OnWriteEnded(WriteId id, bool certain, bool stable, std::int64_t now) {
  for (Write& write : writes_) {
    if (write.id != id) continue;
    write.end = std::min(write.end, now);
    if (!certain) continue;
    write.acked = std::min(write.acked, now);
    // It was seen, a crash may have undone it, and it was done again.
    const bool again = write.effective < now && CrashedBetween(write.effective, now);
    write.effective = again ? now : std::min(write.effective, now);
    if (stable) Promise(&write);
  }
}

bool SectorHistory::CrashedBetween(std::int64_t begin, std::int64_t end) const {
  return std::any_of(crashes_.begin(), crashes_.end(),
                     [=](std::int64_t crash) { return crash >= begin && crash <= end; });
}

// From its acknowledgement on it is there for good: no crash, not even one before the promise, can
// be the excuse for its absence.
void SectorHistory::Promise(Write* write) { write->stable = std::min(write->stable, write->start); }

void SectorHistory::OnFlushed(std::int64_t started, std::int64_t now) {
  for (Write& write : writes_) {
    if (write.acked <= started && !write.lost) {
      Promise(&write);
    } else if (write.effective <= started && !MayBeUndone(write, started)) {
      // Only read, not acknowledged: in the volume, but the client could not count on it.
      write.stable = std::min(write.stable, now);
    }
  }
}

void SectorHistory::OnCrash(std::int64_t now) { crashes_.push_back(now); }

void SectorHistory::OnLossReported(std::int64_t now) {
  for (Write& write : writes_) {
    // An acknowledgement that was under way during the crash counts: it may be the old machine's.
    if (write.acked <= now && MayBeUndone(write, now)) write.lost = true;
  }
}

bool SectorHistory::MayBeUndone(const Write& write, std::int64_t until) const {
  // A crash after it took effect, before it was stable.
  return std::any_of(crashes_.begin(), crashes_.end(), [&](std::int64_t crash) {
    return crash >= write.start && crash <= until && crash < write.stable;
  });
}

bool SectorHistory::Superseded(const Write& candidate, std::int64_t started,
                               std::int64_t now) const {
  const bool crash_since = std::any_of(crashes_.begin(), crashes_.end(), [&](std::int64_t crash) {
    return crash >= candidate.gone && crash <= now;
  });
  if (candidate.gone <= started && !crash_since) return true;
  return std::any_of(writes_.begin(), writes_.end(), [&](const Write& write) {
    return write.start >= candidate.end && write.id != candidate.id && write.effective <= started &&
           !MayBeUndone(write, now);
  });
}

const char* SectorHistory::CheckRead(WriteId id, bool is_zero, std::int64_t started,
                                     std::int64_t now) {
  const char* reason = "a value that was never written here";
  Write* seen = nullptr;
  for (Write& write : writes_) {
    if (is_zero ? !write.zeroes : write.id != id || write.zeroes) continue;
    if (write.start > now) continue;
    if (Superseded(write, started, now)) {
      reason = "an old value: a newer write had taken effect before the read began";
      continue;
    }
    seen = &write;
    break;
  }
  if (seen == nullptr) return reason;
  for (Write& write : writes_) {
    const bool same = is_zero ? write.zeroes : &write == seen;
    if (!same && write.effective <= started && write.end <= started)
      write.gone = std::min(write.gone, now);
  }
  // Read once, it has happened; unless several zeroes qualify and we cannot know which it was.
  if (!is_zero) seen->effective = std::min(seen->effective, now);
  return nullptr;
}

void SectorHistory::Prune(std::int64_t oldest_started) {
  if (writes_.size() < 64) return;
  // What no read that began at `oldest_started` or later may return is not needed any more.
  const auto old = [&](const Write& write) {
    return write.end != kNever && Superseded(write, oldest_started, kNever) &&
           std::any_of(writes_.begin(), writes_.end(), [&](const Write& newer) {
             return newer.start >= write.end && newer.stable <= oldest_started;
           });
  };
  writes_.erase(std::remove_if(writes_.begin(), writes_.end(), old), writes_.end());
}

VolumeOracle::VolumeOracle(std::uint32_t volume, std::uint64_t sector_count)
    : volume_(volume), sectors_(sector_count) {}

void VolumeOracle::OnWriteStarted(WriteId id, bool zeroes, std::uint64_t sector,
                                  std::uint64_t count, std::int64_t now) {
  for (std::uint64_t i = sector; i < sector + count; ++i)
    sectors_[i].OnWriteStarted(id, zeroes, now);
}

void VolumeOracle::OnWriteEnded(WriteId id, bool certain, bool stable, std::uint64_t sector,
                                std::uint64_t count, std::int64_t now) {
  for (std::uint64_t i = sector; i < sector + count; ++i) {
    sectors_[i].OnWriteEnded(id, certain, stable, now);
  }
}

void VolumeOracle::OnFlushed(std::int64_t started, std::int64_t now) {
  const std::int64_t oldest =
      reads_started_.empty() ? started : std::min(started, *reads_started_.begin());
  for (SectorHistory& sector : sectors_) {
    sector.OnFlushed(started, now);
    sector.Prune(oldest);
  }
}

void VolumeOracle::OnLossReported(std::int64_t now) {
  for (SectorHistory& sector : sectors_) sector.OnLossReported(now);
}

void VolumeOracle::OnCrash(std::int64_t now) {
  ++crash_count_;
  for (SectorHistory& sector : sectors_) sector.OnCrash(now);
}

void VolumeOracle::OnRead(const std::byte* bytes, std::uint64_t sector, std::uint64_t count,
                          std::int64_t started, std::int64_t now) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::byte* content = bytes + i * kSectorSize;
    Stamp stamp;
    std::memcpy(&stamp, content, sizeof stamp);
    const bool is_zero = stamp.magic == 0;
    const char* reason = nullptr;
    if (std::memcmp(content, content + sizeof stamp, kSectorSize - sizeof stamp) != 0) {
      reason = "a torn sector";
    } else if (!is_zero && stamp.magic != kMagic) {
      reason = "garbage";
    } else if (!is_zero && stamp.volume != volume_) {
      reason = "another volume's data";
    } else if (!is_zero && stamp.sector != sector + i) {
      reason = "another sector's data";
    } else {
      reason = sectors_[sector + i].CheckRead(stamp.id, is_zero, started, now);
    }
    if (reason == nullptr) continue;
    Report("O1",
           absl::StrFormat("volume %d sector %d: a read of %d..%d ns returned write %d: %s",
                           volume_, sector + i, started, now, is_zero ? 0 : stamp.id, reason));
  }
}

void VolumeOracle::Fill(std::byte* bytes, std::uint32_t volume, WriteId id, std::uint64_t sector,
                        std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const Stamp stamp{kMagic, id, volume, sector + i};
    for (std::size_t at = 0; at < kSectorSize; at += sizeof stamp) {
      std::memcpy(bytes + i * kSectorSize + at, &stamp, sizeof stamp);
    }
  }
}

}  // namespace ibnbd::sim
