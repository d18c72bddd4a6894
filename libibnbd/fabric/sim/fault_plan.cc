// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/fault_plan.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace ibnbd::sim {
namespace {

// Every fault once: its name in the printed plan, where its rate is, and the wildest rate drawn.
struct FaultField {
  const char* name;
  std::uint32_t FaultPlan::*rate_ppm;
  std::uint32_t rate_ppm_max;
  NsRange FaultPlan::*duration;  // Null: it has none.
};

constexpr std::array<FaultField, 13> kFaults{{
    {"connect-refused", &FaultPlan::connect_refused_ppm, 300'000, nullptr},
    {"connect-rejected", &FaultPlan::connect_rejected_ppm, 300'000, &FaultPlan::connect_late_ns},
    {"connect-silent", &FaultPlan::connect_silent_ppm, 200'000, nullptr},
    {"accept-lost", &FaultPlan::accept_lost_ppm, 200'000, nullptr},
    {"cut", &FaultPlan::cut_ppm, 10'000, nullptr},
    {"late-landing", &FaultPlan::late_landing_ppm, 900'000, &FaultPlan::late_landing_ns},
    {"one-sided", &FaultPlan::one_sided_ppm, 600'000, &FaultPlan::one_sided_ns},
    {"no-receive-break", &FaultPlan::no_receive_break_ppm, 1'000'000, nullptr},
    {"partition", &FaultPlan::partition_ppm, 1'000, &FaultPlan::partition_ns},
    {"slow-message", &FaultPlan::slow_message_ppm, 50'000, &FaultPlan::slow_message_ns},
    {"slow-completion", &FaultPlan::slow_completion_ppm, 200'000, &FaultPlan::slow_completion_ns},
    {"clog", &FaultPlan::clog_ppm, 2'000, &FaultPlan::clog_ns},
    {"stall", &FaultPlan::stall_ppm, 2'000, &FaultPlan::stall_ns},
}};

std::string NsText(std::int64_t ns) {
  if (ns != 0 && ns % kNsPerSecond == 0) return absl::StrCat(ns / kNsPerSecond, "s");
  if (ns != 0 && ns % kNsPerMs == 0) return absl::StrCat(ns / kNsPerMs, "ms");
  if (ns != 0 && ns % kNsPerUs == 0) return absl::StrCat(ns / kNsPerUs, "us");
  return absl::StrCat(ns, "ns");
}

std::string RangeText(const NsRange& range) {
  return absl::StrCat(NsText(range.low), "..", NsText(range.high));
}

// Log-uniform: every order of magnitude below `max` is equally likely.
std::uint32_t DrawRate(Prng& prng, std::uint32_t max) {
  std::uint32_t rate = max;
  for (std::uint64_t halvings = prng.Below(8); halvings > 0; --halvings) rate /= 2;
  return std::max<std::uint32_t>(rate, 1);
}

}  // namespace

FaultPlan FaultPlan::WithoutFaults() const {
  FaultPlan plan = *this;
  for (const FaultField& fault : kFaults) plan.*fault.rate_ppm = 0;
  return plan;
}

std::string FaultPlan::ToString() const {
  std::string text = absl::StrCat("link=", RangeText(link_delay_ns), " cm=", RangeText(cm_delay_ns),
                                  " notice=", RangeText(notice_ns), " drain=", RangeText(drain_ns),
                                  " retry=", RangeText(retry_timeout_ns));
  bool any = false;
  for (const FaultField& fault : kFaults) {
    if (this->*fault.rate_ppm == 0) continue;
    any = true;
    absl::StrAppend(&text, " ", fault.name, "=", this->*fault.rate_ppm, "ppm");
    if (fault.duration != nullptr)
      absl::StrAppend(&text, "[", RangeText(this->*fault.duration), "]");
  }
  if (one_sided_passive) absl::StrAppend(&text, " (one-sided: the listener's end)");
  if (!any) absl::StrAppend(&text, " no faults");
  return text;
}

FaultPlan DrawSwarmPlan(Prng& prng) {
  FaultPlan plan;
  plan.pad_private_data = prng.Chance(500'000);
  // One link in four is a slow one.
  if (prng.Chance(250'000)) plan.link_delay_ns = {20 * kNsPerUs, 2 * kNsPerMs};
  for (const FaultField& fault : kFaults) {
    if (!prng.Chance(400'000)) continue;
    plan.*fault.rate_ppm = DrawRate(prng, fault.rate_ppm_max);
    if (fault.duration == nullptr) continue;
    NsRange& range = plan.*fault.duration;
    for (std::uint64_t halvings = prng.Below(6); halvings > 0; --halvings) {
      range.high = std::max(range.low, range.high / 2);
    }
  }
  return plan;
}

}  // namespace ibnbd::sim
