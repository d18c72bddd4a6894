// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/size_text.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ibnbd {
namespace {
constexpr absl::string_view kSuffixes = "KMGTP";
}  // namespace

absl::StatusOr<std::uint64_t> ParseSize(absl::string_view text) {
  const auto refuse = [text](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("size \"", text, "\": ", why));
  };
  absl::string_view digits = text;
  unsigned shift = 0;
  if (!digits.empty() && !absl::ascii_isdigit(static_cast<unsigned char>(digits.back()))) {
    const char suffix = absl::ascii_toupper(static_cast<unsigned char>(digits.back()));
    const std::size_t index = kSuffixes.find(suffix);
    if (index == absl::string_view::npos) return refuse("expected a number and K, M, G, T or P");
    shift = 10 * (static_cast<unsigned>(index) + 1);
    digits.remove_suffix(1);
  }
  if (digits.empty()) return refuse("expected a number, such as 4096, 64K or 2G");
  for (const char c : digits) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) {
      return refuse("expected a whole number, such as 4096, 64K or 2G");
    }
  }
  std::uint64_t value = 0;
  constexpr std::uint64_t kMax = std::numeric_limits<std::int64_t>::max();
  if (!absl::SimpleAtoi(digits, &value) || value > (kMax >> shift)) return refuse("too large");
  return value << shift;
}

absl::StatusOr<std::uint64_t> ParseVolumeSize(absl::string_view text, std::uint32_t block_size) {
  absl::StatusOr<std::uint64_t> size = ParseSize(text);
  if (!size.ok()) return size;
  if (*size == 0) return absl::InvalidArgumentError("is empty");
  if (*size % block_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("is not a whole number of ", block_size, "-byte blocks"));
  }
  return size;
}

std::string SizeText(std::uint64_t byte_count) {
  if (byte_count < 1024) return absl::StrCat(byte_count, " B");
  double value = static_cast<double>(byte_count);
  std::size_t index = 0;
  for (value /= 1024; value >= 1024 && index + 1 < kSuffixes.size(); value /= 1024) ++index;
  std::string number = absl::StrFormat("%.1f", value);
  if (number.size() > 2 && number.substr(number.size() - 2) == ".0")
    number.resize(number.size() - 2);
  return absl::StrCat(number, " ", kSuffixes.substr(index, 1), "iB");
}

}  // namespace ibnbd
