// SPDX-License-Identifier: Apache-2.0
// copy: opens both sides, shows progress on a terminal, sums up.
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "ibnbd-client/commands.h"
#include "ibnbd-client/copy.h"
#include "ibnbd-client/endpoint.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

// One line on the terminal, rewritten a few times per second.
class ProgressMeter {
 public:
  explicit ProgressMeter(const char* what) : what_(what), start_ns_(clock_.NowNs()) {}
  ~ProgressMeter() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
  }
  void Update(std::uint64_t done, std::optional<std::uint64_t> total) {
    constexpr std::int64_t kPeriodNs = 200 * kNsPerMs;
    const std::int64_t now_ns = clock_.NowNs();
    if (now_ns < next_ns_) return;
    next_ns_ = now_ns + kPeriodNs;
    std::fprintf(stderr, "\r%s %s\033[K", what_,
                 ProgressLine(done, total, now_ns - start_ns_).c_str());
    shown_ = true;
  }

 private:
  const char* const what_;
  MonotonicClock clock_;
  const std::int64_t start_ns_;
  std::int64_t next_ns_ = 0;
  bool shown_ = false;
};

void PrintSummary(const CopyCommandOptions& copy, const CommonOptions& options,
                  const CopyStats& stats, std::int64_t elapsed_ns) {
  // The data itself may go to standard output.
  std::FILE* out = copy.target == "-" ? stderr : stdout;
  const double seconds = static_cast<double>(elapsed_ns) / 1e9;
  if (options.json) {
    const nlohmann::ordered_json json = {{"source", copy.source}, {"destination", copy.target},
                                         {"bytes", stats.bytes},  {"zero_bytes", stats.zero_bytes},
                                         {"seconds", seconds},    {"verified", copy.verify}};
    std::fprintf(
        out, "%s\n",
        json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return;
  }
  const auto rate = elapsed_ns <= 0 ? 0 : static_cast<double>(stats.bytes) / seconds;
  std::fprintf(out, "copied %s (%s of zeroes) in %s, %s/s%s\n", SizeText(stats.bytes).c_str(),
               SizeText(stats.zero_bytes).c_str(), DurationText(elapsed_ns).c_str(),
               SizeText(static_cast<std::uint64_t>(rate)).c_str(), copy.verify ? ", verified" : "");
}

}  // namespace

absl::Status RunCopy(const CopyCommandOptions& copy, const CommonOptions& options) {
  if (copy.verify && (copy.source == "-" || copy.target == "-")) {
    return absl::InvalidArgumentError("verify: a pipe cannot be read again");
  }
  if (IsSameFile(copy.source, copy.target)) {
    return absl::InvalidArgumentError(
        absl::StrCat("copy ", copy.source, " to ", copy.target, ": they are the same file"));
  }
  ConnectOptions connect;
  connect.timeout_ms = options.timeout_s * 1000;
  connect.session_name = options.session_name;
  connect.fail_after_ms =
      copy.fail_after_s < 0 ? -1 : static_cast<std::int64_t>(copy.fail_after_s * 1000);
  connect.depth = copy.depth * 16;  // A piece may be written in several runs.
  ASSIGN_OR_RETURN(const auto source, OpenEndpoint(copy.source, false, connect));
  ASSIGN_OR_RETURN(const auto target, OpenEndpoint(copy.target, true, connect));
  CopyOptions copy_options;
  copy_options.pieces_in_flight = copy.depth;
  copy_options.sparse = copy.sparse;
  copy_options.destination_is_zero = copy.destination_is_zero;
  CopyStats stats;
  const MonotonicClock clock;
  const std::int64_t start_ns = clock.NowNs();
  const bool meter_wanted = copy.progress && !options.json && ::isatty(STDERR_FILENO) != 0;
  {
    ProgressMeter meter("copy");
    if (meter_wanted) {
      copy_options.on_progress = [&meter](auto done, auto total) { meter.Update(done, total); };
    }
    RETURN_IF_ERROR(Copy(*source, *target, copy_options, stats));
  }
  const std::int64_t elapsed_ns = clock.NowNs() - start_ns;
  if (copy.verify) {
    ProgressMeter meter("verify");
    if (meter_wanted) {
      copy_options.on_progress = [&meter](auto done, auto total) { meter.Update(done, total); };
    }
    RETURN_IF_ERROR(Compare(*source, *target, stats.bytes, copy_options));
  }
  PrintSummary(copy, options, stats, elapsed_ns);
  return absl::OkStatus();
}

}  // namespace ibnbd::client
