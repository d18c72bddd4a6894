// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/text.h"

#include <cstdio>
#include <limits>

namespace ibnbd::client {
namespace {

std::string Format(const char* format, double value, const char* unit) {
  char text[64];
  std::snprintf(text, sizeof text, format, value, unit);
  return text;
}

double PerSecond(std::uint64_t amount, std::int64_t elapsed_ns) {
  return elapsed_ns <= 0 ? 0 : static_cast<double>(amount) * 1e9 / static_cast<double>(elapsed_ns);
}

}  // namespace

std::string SizeText(std::uint64_t byte_count) {
  if (byte_count < 1024) return std::to_string(byte_count) + " B";
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(byte_count) / 1024;
  std::size_t unit = 0;
  // What would be printed as 1024.0 is the next unit's 1.0.
  while (value >= 1023.95 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return Format("%.1f %s", value, kUnits[unit]);
}

std::string DurationText(std::int64_t duration_ns) {
  const auto value = static_cast<double>(duration_ns);
  if (duration_ns < 1'000) return Format("%.0f %s", value, "ns");
  if (duration_ns < 1'000'000) return Format("%.1f %s", value / 1e3, "us");
  if (duration_ns < 1'000'000'000) return Format("%.1f %s", value / 1e6, "ms");
  return Format("%.1f %s", value / 1e9, "s");
}

std::string ClockText(std::int64_t duration_ns) {
  const std::int64_t seconds = duration_ns / 1'000'000'000;
  const auto hours = static_cast<long long>(seconds / 3600);
  const int minutes = static_cast<int>(seconds / 60 % 60);
  const int rest = static_cast<int>(seconds % 60);
  char text[64];
  if (hours > 0) {
    std::snprintf(text, sizeof text, "%lld:%02d:%02d", hours, minutes, rest);
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", minutes, rest);
  }
  return text;
}

std::string VolumeIdText(std::uint64_t volume_id) {
  char text[32];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(volume_id));
  return text;
}

std::string Printable(const std::string& text) {
  std::string result = text;
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return result;
}

std::string ProgressLine(std::uint64_t done, std::optional<std::uint64_t> total,
                         std::int64_t elapsed_ns) {
  const double rate = PerSecond(done, elapsed_ns);
  const std::string rate_text = SizeText(static_cast<std::uint64_t>(rate)) + "/s";
  if (!total.has_value()) return SizeText(done) + "  " + rate_text;
  const double percent =
      *total == 0 ? 100 : static_cast<double>(done) * 100 / static_cast<double>(*total);
  std::string line = Format("%.1f %s  ", percent, "%") + SizeText(done) + " of " +
                     SizeText(*total) + "  " + rate_text;
  const double left_s = rate > 0 ? static_cast<double>(*total - done) / rate : -1;
  // Beyond a hundred days it is not an estimate any more.
  if (left_s < 0 || left_s > 100.0 * 86400) return line + "  ETA ?";
  return line + "  ETA " + ClockText(static_cast<std::int64_t>(left_s * 1e9));
}

}  // namespace ibnbd::client
