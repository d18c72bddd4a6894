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

void SectorHistory::OnWriteStarted(WriteId id, bool zeroes, std::int64_t now, ClientId client) {
  writes_.push_back({.id = id, .client = client, .zeroes = zeroes, .start = now});
}

void SectorHistory::OnWriteEnded(WriteId id, bool certain, bool stable, std::int64_t now) {
  const auto found = std::find_if(writes_.rbegin(), writes_.rend(),
                                  [id](const Write& write) { return write.id == id; });
  if (found == writes_.rend()) return;
  Write& write = *found;
  write.end = std::min(write.end, now);
  if (!certain) return;
  write.acked = std::min(write.acked, now);
  // It was seen, a crash may have undone it, and it was done again.
  const bool again = write.effective < now && CrashedBetween(write.effective, now);
  write.effective = again ? now : std::min(write.effective, now);
  if (stable) Promise(&write);
}

bool SectorHistory::CrashedBetween(std::int64_t begin, std::int64_t end) const {
  return std::any_of(crashes_.begin(), crashes_.end(),
                     [=](std::int64_t crash) { return crash >= begin && crash <= end; });
}

// From its acknowledgement on it is there for good: no crash, not even one before the promise, can
// be the excuse for its absence.
void SectorHistory::Promise(Write* write) { write->stable = std::min(write->stable, write->start); }

void SectorHistory::OnFlushed(std::int64_t started, std::int64_t now, ClientId client) {
  for (Write& write : writes_) {
    if (write.acked <= started && !write.lost && write.client == client) {
      Promise(&write);
    } else if (write.effective <= started && !MayBeUndone(write, started)) {
      // Only read, not acknowledged, or another's: in the volume, but this client could not count
      // on it.
      write.stable = std::min(write.stable, now);
    }
  }
}

void SectorHistory::OnCrash(std::int64_t now) { crashes_.push_back(now); }

void SectorHistory::OnLossReported(std::int64_t now, ClientId client) {
  for (Write& write : writes_) {
    // An acknowledgement that was under way during the crash counts: it may be the old machine's.
    if (write.client == client && write.acked <= now && MayBeUndone(write, now)) write.lost = true;
  }
}

void SectorHistory::OnClientGone(std::int64_t now, ClientId client) {
  for (Write& write : writes_) {
    if (write.client == client && write.acked <= now && write.stable == kNever) write.lost = true;
  }
}

void SectorHistory::OnTakenOver(std::int64_t asked, std::int64_t now, ClientId client) {
  for (Write& write : writes_) {
    if (write.client != client && write.start < asked) write.end = std::min(write.end, now);
  }
}

bool SectorHistory::MayBeUndone(const Write& write, std::int64_t until, Promises promises) const {
  // A crash after it took effect, before it was stable.
  return std::any_of(crashes_.begin(), crashes_.end(), [&](std::int64_t crash) {
    return crash >= write.start && crash <= until &&
           (crash < write.stable || promises == Promises::kForgotten);
  });
}

bool SectorHistory::Superseded(const Write& candidate, std::int64_t started, std::int64_t now,
                               Promises promises) const {
  const bool crash_since = std::any_of(crashes_.begin(), crashes_.end(), [&](std::int64_t crash) {
    return crash >= candidate.gone_seen && crash <= now;
  });
  if (candidate.gone <= started && !crash_since) return true;
  return std::any_of(writes_.begin(), writes_.end(), [&](const Write& write) {
    return write.start >= candidate.end && write.id != candidate.id && write.effective <= started &&
           !MayBeUndone(write, now, promises);
  });
}

SectorHistory::Verdict SectorHistory::CheckRead(WriteId id, bool is_zero, std::int64_t started,
                                                std::int64_t now) {
  Verdict refusal{"a value that was never written here"};
  Write* seen = nullptr;
  for (auto entry = writes_.rbegin(); entry != writes_.rend(); ++entry) {  // The newest first.
    Write& write = *entry;
    if (is_zero ? !write.zeroes : write.id != id || write.zeroes) continue;
    if (write.start > now) continue;
    if (Superseded(write, started, now)) {
      const bool undone = !Superseded(write, started, now, Promises::kForgotten);
      refusal.broken_promise |= undone;
      refusal.reason = refusal.broken_promise
                           ? "an old value: a crash undid what a flush or FUA had acknowledged"
                           : "an old value: a newer write had taken effect before the read began";
      continue;
    }
    seen = &write;
    break;
  }
  if (seen == nullptr && started < forgotten_ns_) return {};  // It may be one that was forgotten.
  if (seen == nullptr) return refusal;
  for (Write& write : writes_) {
    const bool same = is_zero ? write.zeroes : &write == seen;
    if (same || write.effective > started || write.end > started) continue;
    // The answer may have been under way when the server crashed: what counts is what it saw.
    if (write.gone != kNever && !CrashedBetween(write.gone_seen, now)) continue;
    write.gone = now;
    write.gone_seen = started;
  }
  // Read once, it has happened; unless several zeroes qualify and we cannot know which it was.
  if (!is_zero) seen->effective = std::min(seen->effective, now);
  return {};
}

void SectorHistory::Prune(std::int64_t oldest_started, std::int64_t now) {
  if (writes_.size() < prune_at_) return;
  ForgetBefore(oldest_started);
  if (writes_.size() > kPruneSizeMax) {  // A read is held for very long, and others write.
    ForgetBefore(now);
    forgotten_ns_ = now;
  }
  prune_at_ = std::max(kPruneSizeMin, 2 * writes_.size());
}

void SectorHistory::ForgetBefore(std::int64_t oldest_started) {
  // The newest beginning of a write that has taken effect for good: what ended before it is over.
  std::int64_t newest = -1;
  for (const Write& write : writes_) {
    if (write.effective > oldest_started || write.stable > oldest_started) continue;
    if (!MayBeUndone(write, kNever)) newest = std::max(newest, write.start);
  }
  std::erase_if(writes_, [newest](const Write& write) {
    return write.end <= newest && write.start < newest;
  });
}

VolumeOracle::VolumeOracle(std::uint32_t volume, std::uint64_t sector_count)
    : volume_(volume), sectors_(sector_count) {}

void VolumeOracle::OnWriteStarted(WriteId id, bool zeroes, std::uint64_t sector,
                                  std::uint64_t count, std::int64_t now, ClientId client) {
  for (std::uint64_t i = sector; i < sector + count; ++i) {
    sectors_[i].OnWriteStarted(id, zeroes, now, client);
  }
}

void VolumeOracle::OnWriteEnded(WriteId id, bool certain, bool stable, std::uint64_t sector,
                                std::uint64_t count, std::int64_t now) {
  for (std::uint64_t i = sector; i < sector + count; ++i) {
    sectors_[i].OnWriteEnded(id, certain, stable, now);
  }
}

void VolumeOracle::OnFlushed(std::int64_t started, std::int64_t now, ClientId client) {
  const std::int64_t oldest =
      reads_started_.empty() ? started : std::min(started, *reads_started_.begin());
  for (SectorHistory& sector : sectors_) {
    sector.OnFlushed(started, now, client);
    sector.Prune(oldest, now);
  }
}

void VolumeOracle::OnLossReported(std::int64_t now, ClientId client) {
  for (SectorHistory& sector : sectors_) sector.OnLossReported(now, client);
}

void VolumeOracle::OnClientGone(std::int64_t now, ClientId client) {
  for (SectorHistory& sector : sectors_) sector.OnClientGone(now, client);
}

void VolumeOracle::OnTakenOver(std::int64_t asked, std::int64_t now, ClientId client) {
  for (SectorHistory& sector : sectors_) sector.OnTakenOver(asked, now, client);
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
    bool broken_promise = false;
    if (std::memcmp(content, content + sizeof stamp, kSectorSize - sizeof stamp) != 0) {
      reason = "a torn sector";
    } else if (!is_zero && stamp.magic != kMagic) {
      reason = "garbage";
    } else if (!is_zero && stamp.volume != volume_) {
      reason = "another volume's data";
    } else if (!is_zero && stamp.sector != sector + i) {
      reason = "another sector's data";
    } else {
      const SectorHistory::Verdict verdict =
          sectors_[sector + i].CheckRead(stamp.id, is_zero, started, now);
      reason = verdict.reason;
      broken_promise = verdict.broken_promise;
    }
    if (reason == nullptr) continue;
    Report(broken_promise ? "O3" : "O1",
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
