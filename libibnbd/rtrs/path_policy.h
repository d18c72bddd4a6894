// SPDX-License-Identifier: Apache-2.0
// Which of a session's paths the next request takes.  One per lane, fed with that lane's requests
// alone: no lock, no allocation, no clock of its own.  It knows paths by number and nothing of
// connections.
//
// Round-robin, min-inflight and min-latency are what their names say (min-latency now and then
// tries the others, or it would never learn that they have become faster).  Adaptive, the default:
//
//   - An estimate of each path's service time, from every answer: an exponential average per size
//     class and direction, so that a path is compared on equal work.  Single outliers are clipped.
//   - Among the good paths the one where the request is done first: the least work in flight, by
//     weight, times how much slower the path works than the best.  So a path that is a little
//     slower has a little less to do, and a request that is alone goes the fastest way.
//   - A path whose estimate is far above the best one, or that has work in flight and no sign of
//     life for several times its estimate, is drained: it gets no more than a trickle of probes,
//     which tell when it is well again.  They may cost no more than a hundredth of the time.  Each
//     relapse doubles the time that it has to prove itself.
//   - What is known of a path that is not used grows old: now and then it is tried.
//   - Weight 0: used only if nothing else is there.
#pragma once

#include <array>
#include <cstdint>

namespace ibnbd::rtrs {

enum class PathPolicyKind : std::uint8_t { kAdaptive, kRoundRobin, kMinInflight, kMinLatency };

inline constexpr std::uint32_t kClientPathsMax = 8;  // Of one session.
inline constexpr std::uint32_t kPathWeightDefault = 100;
inline constexpr std::uint32_t kPathWeightMax = 1000;

// What a request costs a path, as far as the policy knows.
struct PathWork {
  std::uint32_t byte_count = 0;
  bool is_read = false;
};

class PathPolicy {
 public:
  void SetKind(PathPolicyKind kind) { kind_ = kind; }
  void SetWeight(std::uint32_t path, std::uint32_t weight) { paths_[path].weight = weight; }
  // The path may be picked from now on; what was known of it is forgotten, but not its weight.
  void Add(std::uint32_t path);
  void Remove(std::uint32_t path);

  // One of `candidates` (a bit each), or -1 if there is none.
  [[nodiscard]] int Pick(std::uint32_t candidates, const PathWork& work, std::int64_t now_ns);
  // How many times this work is in flight on the path now: for OnAnswered().
  std::uint32_t OnPosted(std::uint32_t path, const PathWork& work, std::int64_t now_ns);
  // The estimate of such work on this path.
  std::int64_t OnAnswered(std::uint32_t path, const PathWork& work, std::uint32_t load,
                          std::int64_t posted_ns, std::int64_t now_ns);
  void OnLost(std::uint32_t path, const PathWork& work);  // It ended without an answer.

  [[nodiscard]] bool drained(std::uint32_t path) const { return paths_[path].drained; }
  // Of the class it knows best; 0: nothing is known.
  [[nodiscard]] std::int64_t estimate_ns(std::uint32_t path) const;

  // --- For tests: what it promises. ---
  static constexpr std::int64_t kStallNsMin = 5'000'000;
  static constexpr std::int64_t kProbePauseNsMin = 10'000'000;
  static constexpr std::int64_t kProbePauseNsMax = 2'000'000'000;
  static constexpr std::uint32_t kPicksPerProbe = 256;
  static constexpr std::int64_t kProbationNsMin = 100'000'000;
  static constexpr std::int64_t kProbationNsMax = 10'000'000'000;

 private:
  static constexpr std::size_t kSizeClasses = 4;  // Up to 4 KiB, 16 KiB, 64 KiB, above.
  static constexpr std::size_t kClasses = 2 * kSizeClasses;
  static constexpr std::uint32_t kSamplesMin = 4;  // Before an estimate is compared.

  struct Estimate {
    std::int64_t ns = 0;       // From post to answer.
    std::int64_t unit_ns = 0;  // The same by what was in flight: a path is not slow that is busy.
    std::uint32_t samples = 0;
    std::uint64_t picked = 0;  // At which of all picks it was last given such work.
  };
  struct Path {
    std::uint32_t weight = kPathWeightDefault;
    bool usable = false;
    bool drained = false;
    // Classes that were answered since it was drained, a bit each: lately, and the time before.
    std::uint32_t sampled = 0, sampled_before = 0;
    std::int64_t sampled_until_ns = 0;
    std::uint32_t inflight = 0;
    std::uint64_t inflight_cost = 0;
    std::int64_t sign_ns = 0;   // Of the last answer, or when it last began to have work.
    std::int64_t until_ns = 0;  // Drained: it may not return before.
    std::int64_t returned_ns = 0;
    std::int64_t probation_ns = 0;  // Of the last time; 0: it was never drained.
    std::int64_t probe_pause_ns = 0;
    std::int64_t next_probe_ns = 0;
    std::uint64_t next_probe_pick = 0;
    std::uint64_t wins = 0;  // Round-robin: turns that are owed to it.
    std::array<Estimate, kClasses> estimates;
  };

  static void Learn(Estimate& estimate, std::int64_t ns, std::int64_t unit_ns);
  static std::size_t ClassOf(const PathWork& work);
  static std::uint64_t CostOf(const PathWork& work);
  [[nodiscard]] static bool Has(std::uint32_t mask, std::uint32_t path) {
    return (mask >> path & 1) != 0;
  }
  [[nodiscard]] int PickRoundRobin(std::uint32_t mask);
  template <class WorkOf>
  [[nodiscard]] int PickLeast(std::uint32_t mask, const WorkOf& work_of);
  [[nodiscard]] int PickMinInflight(std::uint32_t mask, std::uint64_t cost);
  [[nodiscard]] int PickSoonest(std::uint32_t mask, std::uint64_t cost, std::size_t work_class);
  [[nodiscard]] int PickMinLatency(std::uint32_t mask, std::size_t work_class);
  [[nodiscard]] int PickAdaptive(std::uint32_t mask, const PathWork& work, std::int64_t now_ns);
  [[nodiscard]] std::uint64_t Slowness(const Path& path, std::size_t work_class,
                                       std::int64_t best_ns) const;
  [[nodiscard]] bool WantsProbe(const Path& path, std::size_t work_class,
                                std::int64_t now_ns) const;
  [[nodiscard]] bool IsStalled(const Path& path, std::int64_t now_ns) const;
  [[nodiscard]] bool IsSlow(const Path& path, std::size_t work_class, std::int64_t percent) const;
  [[nodiscard]] bool IsWell(const Path& path) const;
  void Drain(Path& path, std::int64_t harm_ns, std::int64_t now_ns);
  void TryReturn(Path& path, std::int64_t now_ns);

  PathPolicyKind kind_ = PathPolicyKind::kAdaptive;
  std::uint32_t usable_count_ = 0;
  std::uint64_t picks_ = 0;
  std::uint32_t turn_ =
      0;  // Picked last: the next one is looked at first, so that equals take turns.
  std::array<Path, kClientPathsMax> paths_;
};

}  // namespace ibnbd::rtrs
