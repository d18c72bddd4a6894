// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/session_words.h"

#include <array>
#include <utility>

#include <ibnbd/ibnbd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ibnbd::bridge {
namespace {

constexpr std::int64_t kDeadAfterMsMin = 1000, kDeadAfterMsMax = 3'600'000;
constexpr std::array<std::pair<std::uint32_t, const char*>, 4> kPolicies{
    {{IBNBD_POLICY_ADAPTIVE, "adaptive"},
     {IBNBD_POLICY_ROUND_ROBIN, "round-robin"},
     {IBNBD_POLICY_MIN_INFLIGHT, "min-inflight"},
     {IBNBD_POLICY_MIN_LATENCY, "min-latency"}}};

}  // namespace

absl::StatusOr<std::int64_t> ParseTimeMs(absl::string_view text) {
  absl::string_view rest = text;
  std::int64_t unit_ms = 1000;
  if (absl::ConsumeSuffix(&rest, "ms")) {
    unit_ms = 1;
  } else if (absl::ConsumeSuffix(&rest, "m")) {
    unit_ms = 60'000;
  } else {
    (void)absl::ConsumeSuffix(&rest, "s");  // Seconds also without a unit.
  }
  std::int64_t value = 0;
  if (!absl::SimpleAtoi(rest, &value) || value < 0 || value > 1'000'000'000) {
    return absl::InvalidArgumentError(absl::StrCat(text, ": not a time, as 500ms, 30s or 2m"));
  }
  return value * unit_ms;
}

std::string TimeText(std::int64_t ms) {
  return ms % 1000 == 0 ? absl::StrCat(ms / 1000, "s") : absl::StrCat(ms, "ms");
}

absl::StatusOr<std::uint32_t> ParsePathPolicy(const std::string& name) {
  for (const auto& [policy, candidate] : kPolicies) {
    if (name == candidate) return policy;
  }
  return absl::InvalidArgumentError(absl::StrCat("path policy ", name, ": say ", kPathPolicyNames));
}

const char* PathPolicyName(std::uint32_t policy) {
  for (const auto& [candidate, name] : kPolicies) {
    if (policy == candidate) return name;
  }
  return "?";
}

absl::StatusOr<std::uint32_t> ParseDeadAfter(const std::string& text) {
  if (text == "default") return 0;
  const auto ms = ParseTimeMs(text);
  if (ms.ok() && *ms >= kDeadAfterMsMin && *ms <= kDeadAfterMsMax) {
    return static_cast<std::uint32_t>(*ms);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--dead-after ", text, ": say a time from 1s to 3600s, or default"));
}

}  // namespace ibnbd::bridge
