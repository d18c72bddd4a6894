// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/loss_policy.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ibnbd::bridge {

absl::StatusOr<std::int64_t> ParseLossPolicy(const std::string& text) {
  const auto error = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("--on-loss ", text, ": say hold, or fail-after=TIME, as in fail-after=30s"));
  };
  if (text == "hold") return -1;
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, "fail-after=")) return error();
  std::int64_t unit_ms = 1000;
  if (absl::ConsumeSuffix(&rest, "ms")) {
    unit_ms = 1;
  } else if (absl::ConsumeSuffix(&rest, "m")) {
    unit_ms = 60'000;
  } else {
    (void)absl::ConsumeSuffix(&rest, "s");  // Seconds also without a unit.
  }
  std::int64_t value = 0;
  if (!absl::SimpleAtoi(rest, &value) || value < 0 || value > 1'000'000'000) return error();
  return value * unit_ms;
}

std::string LossPolicyText(std::int64_t fail_after_ms) {
  if (fail_after_ms < 0) return "hold";
  if (fail_after_ms % 1000 == 0) return absl::StrCat("fail-after=", fail_after_ms / 1000, "s");
  return absl::StrCat("fail-after=", fail_after_ms, "ms");
}

}  // namespace ibnbd::bridge
