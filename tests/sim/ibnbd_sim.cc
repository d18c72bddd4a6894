// SPDX-License-Identifier: Apache-2.0
// ibnbd-sim: runs the engine in simulated worlds, one per seed, and reports findings.
//
//   ibnbd-sim --seed=4711 [--verbose]     one run, replayed to the nanosecond
//   ibnbd-sim --seeds=20 [--first=1]      many; stops at the first finding unless --keep-going
//   ibnbd-sim --seed=1a2b3c4d             a commit hash is a valid seed
//   ibnbd-sim-canary --canary --seeds=100     succeeds only if a seed finds the planted bug
//   ibnbd-sim --seeds=5 --keys-per-io     the server gives a key per IO
//   ibnbd-sim --seeds=20 --marks          demands that every situation the storm is for was reached
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/log.h"
#include "fabric/sim/marks.h"
#include "tests/sim/scenario.h"

namespace {

using ibnbd::sim::DrawScenario;
using ibnbd::sim::Finding;
using ibnbd::sim::RunScenario;
using ibnbd::sim::ScenarioOptions;
using ibnbd::sim::ScenarioResult;

struct Options {
  std::string seed;
  std::uint64_t first = 1, seeds = 1;
  bool verbose = false, canary = false, keep_going = false, marks = false, keys_per_io = false;
};

// Marks of production code that storms must reach; the rest have tests of their own.
constexpr const char* kStormMarks[] = {
    "client: io lost",
    "client: loss policy ended the wait",
    "client: reconnected",
    "client: heartbeats ended",
    "client: fail-over",
    "client: path fenced",
    "client: request repeated on another path",
    "client: a silent path was given up",
    "server: fence broke the old path",
    "server: fenced path was gone already",
    "client: lost volatile data reported",
    "server: reconnect broke the old path",
    "server: reconnect waits for the fence",
    "server: fence lifted",
    "server: heartbeat timed out",
};

// How many of them stayed cold; prints all.
int CountColdMarks(const ibnbd::sim::Marks& marks) {
  int cold = 0;
  for (const char* text : kStormMarks) {
    const std::uint64_t count = marks.count(text);
    std::printf("mark %-45s %llu%s\n", text, static_cast<unsigned long long>(count),
                count == 0 ? "  COLD" : "");
    if (count == 0) ++cold;
  }
  return cold;
}

// Decimal, or the first 15 hex digits of a commit hash.
std::uint64_t ParseSeed(const std::string& text) {
  std::uint64_t seed = 0;
  if (absl::SimpleAtoi(text, &seed)) return seed;
  return std::strtoull(text.substr(0, 15).c_str(), nullptr, 16);
}

// True if the seed was clean.
bool RunSeed(std::uint64_t seed, const Options& options, ScenarioResult* totals) {
  ScenarioOptions scenario = DrawScenario(seed);
  scenario.keys_per_io = options.keys_per_io;
  if (options.verbose) {
    std::printf("%s\n", scenario.ToString().c_str());
    scenario.trace = [](const std::string& line) { std::printf("%s\n", line.c_str()); };
  }
  std::fflush(stdout);
  ScenarioResult result = RunScenario(scenario);
  if (options.seeds == 1) {  // O7: the same seed, the same world.
    scenario.trace = nullptr;
    if (RunScenario(scenario).trace_hash != result.trace_hash) {
      result.findings.push_back({"O7", "two runs of this seed differ"});
    }
  }
  totals->counts.completed += result.counts.completed;
  totals->counts.errors += result.counts.errors;
  totals->counts.timeouts += result.counts.timeouts;
  totals->crashes += result.crashes;
  totals->faults.cuts += result.faults.cuts;
  totals->faults.landed_late += result.faults.landed_late;
  totals->faults.partitions += result.faults.partitions;
  totals->virtual_ns += result.virtual_ns;
  for (const Finding& finding : result.findings) {
    std::printf("SEED=%llu oracle=%s t=%.3fms %s ; rerun: ibnbd-sim --seed=%llu%s --verbose\n",
                static_cast<unsigned long long>(seed), finding.oracle.c_str(),
                static_cast<double>(result.virtual_ns) / 1e6, finding.text.c_str(),
                static_cast<unsigned long long>(seed), options.keys_per_io ? " --keys-per-io" : "");
    if (&finding - result.findings.data() >= 4) {
      std::printf("... and %zu more findings\n", result.findings.size() - 5);
      break;
    }
  }
  return result.findings.empty();
}

bool ParseArgument(absl::string_view argument, Options* options) {
  const auto value = [&](absl::string_view name, std::string* out) {
    if (argument.substr(0, name.size()) != name) return false;
    *out = std::string(argument.substr(name.size()));
    return true;
  };
  std::string text;
  if (value("--seed=", &options->seed)) return true;
  if (value("--seeds=", &text)) return absl::SimpleAtoi(text, &options->seeds);
  if (value("--first=", &text)) {
    options->first = ParseSeed(text);
    return true;
  }
  if (argument == "--verbose") return options->verbose = true;
  if (argument == "--marks") return options->marks = true;
  if (argument == "--keys-per-io") return options->keys_per_io = true;
  if (argument == "--canary") return options->canary = true;
  if (argument == "--keep-going") return options->keep_going = true;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (ParseArgument(argv[i], &options)) continue;
    std::fprintf(stderr, "ibnbd-sim: %s: what is that?  See the top of tests/sim/ibnbd_sim.cc\n",
                 argv[i]);
    return 2;
  }
  // Peers misbehave by design here: only errors are worth a line.
  ibnbd::SetLogSink(
      [&options](ibnbd::LogLevel, const std::string& line) {
        if (options.verbose) std::printf("log: %s\n", line.c_str());
      },
      options.verbose ? ibnbd::LogLevel::kDebug : ibnbd::LogLevel::kError);
  if (!options.seed.empty()) options.first = ParseSeed(options.seed);
  const ibnbd::sim::Marks marks;
  ScenarioResult totals;
  std::uint64_t found = 0, run = 0;
  for (std::uint64_t seed = options.first; seed < options.first + options.seeds; ++seed) {
    ++run;
    if (!RunSeed(seed, options, &totals)) ++found;
    if (found > 0 && !options.keep_going) break;
  }
  std::printf(
      "%llu seeds, %llu with findings; %llu IOs, %llu errors, %llu timeouts, %llu crashes, %llu "
      "cuts, "
      "%llu writes landed late, %llu partitions; %.1f virtual seconds\n",
      static_cast<unsigned long long>(run), static_cast<unsigned long long>(found),
      static_cast<unsigned long long>(totals.counts.completed),
      static_cast<unsigned long long>(totals.counts.errors),
      static_cast<unsigned long long>(totals.counts.timeouts),
      static_cast<unsigned long long>(totals.crashes),
      static_cast<unsigned long long>(totals.faults.cuts),
      static_cast<unsigned long long>(totals.faults.landed_late),
      static_cast<unsigned long long>(totals.faults.partitions),
      static_cast<double>(totals.virtual_ns) / 1e9);
  if (options.canary) return found > 0 ? 0 : 1;
  if (options.marks && CountColdMarks(marks) > 0) return 1;
  return found > 0 ? 1 : 0;
}
