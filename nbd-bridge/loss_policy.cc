// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/loss_policy.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "nbd-bridge/session_words.h"

namespace ibnbd::bridge {

absl::StatusOr<std::int64_t> ParseLossPolicy(const std::string& text) {
  const auto error = [&]() -> absl::StatusOr<std::int64_t> {
    return absl::InvalidArgumentError(
        absl::StrCat("--on-loss ", text, ": say hold, or fail-after=TIME, as in fail-after=30s"));
  };
  if (text == "hold") return -1;
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, "fail-after=")) return error();
  const auto ms = ParseTimeMs(rest);
  return ms.ok() ? ms : error();
}

std::string LossPolicyText(std::int64_t fail_after_ms) {
  if (fail_after_ms < 0) return "hold";
  return absl::StrCat("fail-after=", TimeText(fail_after_ms));
}

}  // namespace ibnbd::bridge
