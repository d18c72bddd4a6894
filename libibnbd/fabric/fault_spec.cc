// SPDX-License-Identifier: Apache-2.0
// The text form of faulty_fabric's faults.
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "fabric/faulty_fabric.h"

namespace ibnbd::fabric {
namespace {

absl::Status Bad(absl::string_view item, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("fault spec: \"", item, "\": ", why));
}

bool ParseDuration(absl::string_view text, std::int64_t& ns) {
  struct Unit {
    absl::string_view suffix;
    std::int64_t ns;
  };
  // "ms" before "s": the longer suffix first.
  for (const Unit& unit :
       {Unit{"ns", 1}, Unit{"us", kNsPerUs}, Unit{"ms", kNsPerMs}, Unit{"s", kNsPerSecond}}) {
    absl::string_view number = text;
    if (!absl::ConsumeSuffix(&number, unit.suffix)) continue;
    std::int64_t count = 0;
    if (!absl::SimpleAtoi(number, &count) || count < 0) return false;
    if (count > 3600 * kNsPerSecond / unit.ns) return false;  // An hour is longer than any test.
    ns = count * unit.ns;
    return true;
  }
  return false;
}

bool ParseProbability(absl::string_view text, std::uint32_t& ppm) {
  double factor = 0;
  if (absl::ConsumeSuffix(&text, "%")) {
    factor = 10'000;
  } else if (absl::ConsumeSuffix(&text, "ppm")) {
    factor = 1;
  } else {
    return false;
  }
  double value = 0;
  if (!absl::SimpleAtod(text, &value) || !(value >= 0) || value * factor > 1'000'000) return false;
  ppm = static_cast<std::uint32_t>(value * factor + 0.5);
  return true;
}

absl::Status ParseItem(absl::string_view item, FaultSpec& spec) {
  const std::vector<absl::string_view> parts = absl::StrSplit(item, absl::MaxSplits('=', 1));
  if (parts.size() != 2) return Bad(item, "expected name=value");
  const absl::string_view name = parts[0], value = parts[1];
  constexpr char kDurationHint[] = "expected a time such as 500ms, at most 1 hour";
  constexpr char kProbabilityHint[] = "expected a probability such as 10% or 100ppm";
  if (name == "cut-every") {
    if (!ParseDuration(value, spec.cut_every_ns) || spec.cut_every_ns == 0) {
      return Bad(item, kDurationHint);
    }
  } else if (name == "cut-post") {
    if (!ParseProbability(value, spec.cut_post_ppm)) return Bad(item, kProbabilityHint);
  } else if (name == "refuse") {
    if (!ParseProbability(value, spec.refuse_ppm)) return Bad(item, kProbabilityHint);
  } else if (name == "delay") {
    const std::vector<absl::string_view> ends = absl::StrSplit(value, "..");
    if (ends.size() > 2 || !ParseDuration(ends.front(), spec.delay_ns_min) ||
        !ParseDuration(ends.back(), spec.delay_ns_max)) {
      return Bad(item, "expected a time or a range such as 1ms..5ms");
    }
    if (spec.delay_ns_min > spec.delay_ns_max) return Bad(item, "the range is backwards");
  } else if (name == "seed") {
    if (!absl::SimpleAtoi(value, &spec.seed)) return Bad(item, "expected a number");
  } else {
    return Bad(item, "unknown fault; there are cut-every, cut-post, refuse, delay, seed");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FaultSpec> ParseFaultSpec(absl::string_view text) {
  FaultSpec spec;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    const absl::Status status = ParseItem(item, spec);
    if (!status.ok()) return status;
  }
  return spec;
}

std::string FaultSpec::ToString() const {
  std::string text = absl::StrCat("seed=", seed);
  if (cut_every_ns != 0) absl::StrAppend(&text, ",cut-every=", cut_every_ns, "ns");
  if (cut_post_ppm != 0) absl::StrAppend(&text, ",cut-post=", cut_post_ppm, "ppm");
  if (refuse_ppm != 0) absl::StrAppend(&text, ",refuse=", refuse_ppm, "ppm");
  if (delay_ns_max != 0) {
    absl::StrAppend(&text, ",delay=", delay_ns_min, "ns..", delay_ns_max, "ns");
  }
  return text;
}

}  // namespace ibnbd::fabric
