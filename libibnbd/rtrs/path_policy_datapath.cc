// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "rtrs/path_policy.h"

namespace ibnbd::rtrs {
namespace {

constexpr std::uint64_t kFixedCost = 16;        // KiB that are as much work as a request itself.
constexpr std::int64_t kSlowSlackNs = 100'000;  // Differences below are nobody's business.
constexpr std::int64_t kStallUnknownNs = 20'000'000;
constexpr std::int64_t kStallFactor = 8;
constexpr std::int64_t kSlowPercent = 200;
constexpr std::int64_t kWellPercent = 150;
constexpr std::uint64_t kMinLatencyTry = 64;  // One pick in so many goes to another path.
// Slowness is in sixteenths.  Estimates that differ by less than this are the same.
constexpr std::uint64_t kNotSlow = 16;
constexpr std::uint64_t kSlownessMax = 64 * kNotSlow;
constexpr std::int64_t kEqualSlackNs = 5'000;
// A path that harmed one request for some time is left alone for several times that,
constexpr std::int64_t kProbationFactor = 5;
constexpr std::int64_t kProbePauseFactor = 100;  // and probed with a hundredth of the time.

// 64-bit divisions take several times as long, and every request pays for two.
std::uint32_t Narrow(std::uint64_t value) {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(value, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

std::size_t PathPolicy::ClassOf(const PathWork& work) {
  const std::uint32_t kib = work.byte_count >> 10;
  const std::size_t size = kib <= 4 ? 0 : kib <= 16 ? 1 : kib <= 64 ? 2 : 3;
  return 2 * size + (work.is_read ? 1 : 0);
}

std::uint64_t PathPolicy::CostOf(const PathWork& work) {
  return kFixedCost + (work.byte_count >> 10);
}

void PathPolicy::Add(std::uint32_t path) {
  if (!paths_[path].usable) ++usable_count_;
  const std::uint32_t weight = paths_[path].weight;
  paths_[path] = Path{};
  paths_[path].weight = weight;
  paths_[path].usable = true;
}

void PathPolicy::Remove(std::uint32_t path) {
  if (paths_[path].usable) --usable_count_;
  paths_[path].usable = false;
}

int PathPolicy::Pick(std::uint32_t candidates, const PathWork& work, std::int64_t now_ns) {
  if (candidates == 0) return -1;
  ++picks_;
  // Weight 0 is for emergencies.
  std::uint32_t mask = 0;
  for (std::uint32_t i = 0; i < kClientPathsMax; ++i) {
    if (Has(candidates, i) && paths_[i].weight > 0) mask |= 1u << i;
  }
  if (mask == 0) mask = candidates;
  switch (kind_) {
    case PathPolicyKind::kRoundRobin:
      return PickRoundRobin(mask);
    case PathPolicyKind::kMinInflight:
      return PickMinInflight(mask, CostOf(work));
    case PathPolicyKind::kMinLatency:
      return PickMinLatency(mask, ClassOf(work));
    case PathPolicyKind::kAdaptive:
      break;
  }
  return PickAdaptive(mask, work, now_ns);
}

// Smooth weighted round-robin: everybody earns its weight, the richest pays for all.
int PathPolicy::PickRoundRobin(std::uint32_t mask) {
  std::uint64_t total = 0;
  int best = -1;
  for (std::uint32_t i = 0; i < kClientPathsMax; ++i) {
    if (!Has(mask, i)) continue;
    const std::uint64_t weight = std::max<std::uint32_t>(paths_[i].weight, 1);
    paths_[i].wins += weight;
    total += weight;
    if (best < 0 || paths_[i].wins > paths_[static_cast<std::size_t>(best)].wins) {
      best = static_cast<int>(i);
    }
  }
  Path& winner = paths_[static_cast<std::size_t>(best)];
  winner.wins -= std::min(winner.wins, total);
  return best;
}

// Who has the least work for its weight; equals take turns.
template <class WorkOf>
int PathPolicy::PickLeast(std::uint32_t mask, const WorkOf& work_of) {
  int best = -1;
  std::uint64_t best_work = 0, best_weight = 1;
  for (std::uint32_t n = 1; n <= kClientPathsMax; ++n) {
    const std::uint32_t i = (turn_ + n) % kClientPathsMax;
    if (!Has(mask, i)) continue;
    const std::uint64_t work = work_of(paths_[i]);
    const std::uint64_t weight = std::max<std::uint32_t>(paths_[i].weight, 1);
    if (best < 0 || work * best_weight < best_work * weight) {
      best = static_cast<int>(i);
      best_work = work;
      best_weight = weight;
    }
  }
  turn_ = static_cast<std::uint32_t>(best);
  return best;
}

int PathPolicy::PickMinInflight(std::uint32_t mask, std::uint64_t cost) {
  return PickLeast(mask, [cost](const Path& path) { return path.inflight_cost + cost; });
}

int PathPolicy::PickMinLatency(std::uint32_t mask, std::size_t work_class) {
  const bool tries = picks_ % kMinLatencyTry == 0;
  if (tries) return PickRoundRobin(mask);
  int best = -1;
  for (std::uint32_t i = 0; i < kClientPathsMax; ++i) {
    if (!Has(mask, i)) continue;
    const std::int64_t ns = paths_[i].estimates[work_class].ns;  // 0, unknown: it is tried.
    if (best < 0 || ns < paths_[static_cast<std::size_t>(best)].estimates[work_class].ns) {
      best = static_cast<int>(i);
    }
  }
  return best;
}

// Who would be done first, as far as one knows.
int PathPolicy::PickSoonest(std::uint32_t mask, std::uint64_t cost, std::size_t work_class) {
  std::int64_t best_ns = 0;
  for (std::uint32_t i = 0; i < kClientPathsMax; ++i) {
    const Estimate& estimate = paths_[i].estimates[work_class];
    if (!Has(mask, i) || estimate.samples < kSamplesMin) continue;
    if (best_ns == 0 || estimate.unit_ns < best_ns) best_ns = estimate.unit_ns;
  }
  return PickLeast(mask, [this, cost, work_class, best_ns](const Path& path) {
    return (path.inflight_cost + cost) * Slowness(path, work_class, best_ns);
  });
}

std::uint64_t PathPolicy::Slowness(const Path& path, std::size_t work_class,
                                   std::int64_t best_ns) const {
  const Estimate& mine = path.estimates[work_class];
  if (mine.samples < kSamplesMin || mine.unit_ns <= best_ns + best_ns / 8 + kEqualSlackNs) {
    return kNotSlow;
  }
  return std::min(
      kNotSlow * static_cast<std::uint64_t>(mine.unit_ns) / static_cast<std::uint64_t>(best_ns),
      kSlownessMax);
}

int PathPolicy::PickAdaptive(std::uint32_t mask, const PathWork& work, std::int64_t now_ns) {
  const std::size_t work_class = ClassOf(work);
  std::uint32_t good = 0;
  int picked = -1;
  for (std::uint32_t i = 0; i < kClientPathsMax; ++i) {
    if (!Has(mask, i)) continue;
    Path& path = paths_[i];
    if (!path.drained && IsStalled(path, now_ns)) Drain(path, now_ns - path.sign_ns, now_ns);
    if (path.drained && now_ns >= path.until_ns) TryReturn(path, now_ns);
    if (!path.drained) good |= 1u << i;
    if (picked < 0 && WantsProbe(path, work_class, now_ns)) picked = static_cast<int>(i);
  }
  if (good == 0) {
    picked = PickMinInflight(mask, CostOf(work));  // All are ill alike.
  } else if (picked < 0) {
    picked = PickSoonest(good, CostOf(work), work_class);
  } else {
    Path& path = paths_[static_cast<std::size_t>(picked)];
    path.next_probe_ns = now_ns + (path.drained ? path.probe_pause_ns : kProbePauseNsMin);
    path.next_probe_pick = picks_ + kPicksPerProbe;
  }
  paths_[static_cast<std::size_t>(picked)].estimates[work_class].picked = picks_;
  return picked;
}

// One that is drained, or whose estimate of such work is old because it is used for other work, or
// none.
bool PathPolicy::WantsProbe(const Path& path, std::size_t work_class, std::int64_t now_ns) const {
  if (now_ns < path.next_probe_ns || picks_ < path.next_probe_pick) return false;
  if (path.drained) return path.inflight == 0;
  const Estimate& estimate = path.estimates[work_class];
  return estimate.samples >= kSamplesMin && picks_ >= estimate.picked + kPicksPerProbe;
}

bool PathPolicy::IsStalled(const Path& path, std::int64_t now_ns) const {
  if (path.inflight == 0) return false;
  const std::int64_t silent_ns = now_ns - path.sign_ns;
  if (silent_ns <= kStallNsMin) return false;
  std::int64_t slowest_ns = 0;
  for (const Estimate& estimate : path.estimates) slowest_ns = std::max(slowest_ns, estimate.ns);
  const std::int64_t patience_ns =
      slowest_ns == 0 ? kStallUnknownNs : std::max(kStallNsMin, kStallFactor * slowest_ns);
  return silent_ns > patience_ns;
}

// Against the best of the other paths that are fit to be compared with.
bool PathPolicy::IsSlow(const Path& path, std::size_t work_class, std::int64_t percent) const {
  const Estimate& mine = path.estimates[work_class];
  if (mine.samples < kSamplesMin) return false;
  for (const Path& other : paths_) {
    if (&other == &path || !other.usable || other.drained) continue;
    if (other.weight == 0 && path.weight > 0) continue;  // What is known of it may be very old.
    const Estimate& theirs = other.estimates[work_class];
    if (theirs.samples < kSamplesMin) continue;
    // A loaded path takes longer than one that is idle; one that is probed has nobody to share
    // its delay with.
    if (mine.ns > theirs.ns * percent / 100 + kSlowSlackNs &&
        mine.unit_ns > theirs.unit_ns * percent / 100 + kSlowSlackNs) {
      return true;
    }
  }
  return false;
}

// By what its probes have shown in the last 10 to 20 s: nobody may ever again ask for the other
// work that it was slow with.  As long as there are none, by all that is known.
bool PathPolicy::IsWell(const Path& path) const {
  const std::uint32_t sampled = path.sampled | path.sampled_before;
  for (std::size_t c = 0; c < kClasses; ++c) {
    if (sampled != 0 && (sampled >> c & 1) == 0) continue;
    if (IsSlow(path, c, kWellPercent)) return false;
  }
  return true;
}

// `harm_ns`: what it cost the request that showed it.
void PathPolicy::Drain(Path& path, std::int64_t harm_ns, std::int64_t now_ns) {
  // Who was well for long enough begins again with the shortest time.
  const bool relapse =
      path.probation_ns > 0 &&
      now_ns - path.returned_ns < std::max(10 * path.probation_ns, kProbationNsMin);
  path.probation_ns =
      relapse ? std::min(2 * path.probation_ns, kProbationNsMax)
              : std::clamp(kProbationFactor * harm_ns, kProbationNsMin, kProbationNsMax);
  path.probe_pause_ns = std::clamp(kProbePauseFactor * harm_ns, kProbePauseNsMin, kProbePauseNsMax);
  path.drained = true;
  path.sampled = path.sampled_before = 0;
  path.sampled_until_ns = now_ns + kProbationNsMax;
  path.until_ns = now_ns + path.probation_ns;
  path.next_probe_ns = now_ns + path.probe_pause_ns;
  path.next_probe_pick = picks_ + kPicksPerProbe;
}

// Its probes say whether it is well.  Without any, it gets its chance.
void PathPolicy::TryReturn(Path& path, std::int64_t now_ns) {
  if (IsStalled(path, now_ns) || !IsWell(path)) return;
  path.drained = false;
  path.returned_ns = now_ns;
}

std::uint32_t PathPolicy::OnPosted(std::uint32_t index, const PathWork& work, std::int64_t now_ns) {
  Path& path = paths_[index];
  if (path.inflight++ == 0) path.sign_ns = now_ns;
  const std::uint64_t cost = CostOf(work);
  path.inflight_cost += cost;
  if (path.inflight == 1) return 1;
  return Narrow(path.inflight_cost) / Narrow(cost);
}

void PathPolicy::Learn(Estimate& estimate, std::int64_t ns, std::int64_t unit_ns) {
  if (estimate.samples == 0) {
    estimate.ns = ns;
    estimate.unit_ns = unit_ns;
    estimate.samples = 1;
    return;
  }
  // One outlier moves little; a few in a row move all the more.
  const auto learn = [](std::int64_t& average, std::int64_t sample) {
    average += (std::min(sample, 4 * average + 2 * kSlowSlackNs) - average) / 8;
  };
  learn(estimate.ns, ns);
  learn(estimate.unit_ns, unit_ns);
  if (estimate.samples < kSamplesMin) ++estimate.samples;
}

std::int64_t PathPolicy::OnAnswered(std::uint32_t index, const PathWork& work, std::uint32_t load,
                                    std::int64_t posted_ns, std::int64_t now_ns) {
  OnLost(index, work);
  Path& path = paths_[index];
  path.sign_ns = now_ns;
  const std::size_t work_class = ClassOf(work);
  Estimate& estimate = path.estimates[work_class];
  const std::int64_t ns = std::max<std::int64_t>(now_ns - posted_ns, 1);
  const std::int64_t unit_ns = load > 1 ? Narrow(static_cast<std::uint64_t>(ns)) / load : ns;
  Learn(estimate, ns, std::max<std::int64_t>(unit_ns, 1));
  if (path.drained) {
    if (now_ns >= path.sampled_until_ns) {
      path.sampled_before = std::exchange(path.sampled, 0);
      path.sampled_until_ns = now_ns + kProbationNsMax;
    }
    path.sampled |= 1u << work_class;
    path.probe_pause_ns = std::clamp(std::max(path.probe_pause_ns / 2, kProbePauseFactor * ns),
                                     kProbePauseNsMin, kProbePauseNsMax);
    path.next_probe_ns = now_ns + path.probe_pause_ns;
  } else if (usable_count_ > 1 && kind_ == PathPolicyKind::kAdaptive &&
             IsSlow(path, work_class, kSlowPercent)) {
    Drain(path, ns, now_ns);
  }
  return estimate.ns;
}

void PathPolicy::OnLost(std::uint32_t index, const PathWork& work) {
  Path& path = paths_[index];
  DCHECK_GT(path.inflight, 0u);
  --path.inflight;
  path.inflight_cost -= CostOf(work);
}

std::int64_t PathPolicy::estimate_ns(std::uint32_t path) const {
  for (const Estimate& estimate : paths_[path].estimates) {
    if (estimate.samples > 0) return estimate.ns;
  }
  return 0;
}

}  // namespace ibnbd::rtrs
