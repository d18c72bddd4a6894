// SPDX-License-Identifier: Apache-2.0
// ibnbd-sim: runs the engine in simulated worlds, one per seed, and reports findings.
//
//   ibnbd-sim --seed=4711 [--verbose]     one run, and again: it must be the same to the nanosecond
//   ibnbd-sim --seed=1a2b3c4d             a commit hash is a valid seed
//   ibnbd-sim --seeds=20 [--first=1]      many; stops at the first finding unless --keep-going
//   ibnbd-sim --seeds=20 --marks          demands that every situation the storm is for was reached
//   ibnbd-sim --seeds=0 --for=60          as many as fit into a minute; 0: no other limit
//   ibnbd-sim --seeds=20 --report         for ci/soak: a line before each seed, totals as JSON
//   ibnbd-sim --twice-every=10            runs every tenth seed twice and compares (O7)
//
// The canary build, an engine with known bugs (base/canary.h), has one more:
//   ibnbd-sim-canary --canary=3 --seeds=100   plants bug 3; succeeds only if oracle O3 finds it
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/canary.h"
#include "base/log.h"
#include "fabric/sim/marks.h"
#include "tests/sim/report.h"
#include "tests/sim/scenario.h"
#include "tests/sim/swarm.h"

namespace {

using ibnbd::sim::DrawScenario;
using ibnbd::sim::Finding;
using ibnbd::sim::RunScenario;
using ibnbd::sim::ScenarioCounts;
using ibnbd::sim::ScenarioOptions;
using ibnbd::sim::ScenarioResult;

constexpr std::size_t kFindingLinesMax = 4;
constexpr int kExitCaught = 3;
// An engine with a bug often does not recover: no need to wait for long.
constexpr std::int64_t kCanaryHealNs = 30 * ibnbd::kNsPerSecond;

unsigned long long AsUll(std::uint64_t number) { return number; }  // For printf.

// That of its number.  But the tenth, the thirteenth and the fourteenth are O1's, too: writes that
// go over another path before the fence; what a killed client has left, which lands after what its
// next life wrote; what a client held, which lands after another one has taken the volume over. The
// eleventh is O3's: a flush whose client was restarted and does not know what it
// promises; the twelfth O10's.
std::string CanaryOracle(std::uint64_t canary) {
  if (canary == 10 || canary == 13 || canary == 14) return "O1";
  if (canary == 11) return "O3";
  if (canary == 12) return "O10";
  return absl::StrCat("O", canary);
}

struct Options {
  std::uint64_t first = 1, seeds = 1, twice_every = 0, for_seconds = 0;
  std::uint64_t canary = 0;
  bool verbose = false, keep_going = false, marks = false, report = false;
};

class Run {
 public:
  explicit Run(const Options& options) : options_(options) {}
  int Main();

 private:
  bool RunSeed(std::uint64_t seed);
  bool RunCanarySeed(std::uint64_t seed);
  void PrintFindings(std::uint64_t seed, const ScenarioResult& result);
  void Report();
  [[nodiscard]] bool TimeIsUp() const {
    return options_.for_seconds > 0 && Seconds() >= static_cast<double>(options_.for_seconds);
  }
  [[nodiscard]] double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  const Options options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const ibnbd::sim::Marks marks_;
  ScenarioCounts totals_;
  std::uint64_t run_ = 0, found_ = 0;
  double reported_ = 0;
  bool caught_ = false;  // The canary, by its oracle.
};

void Run::PrintFindings(std::uint64_t seed, const ScenarioResult& result) {
  for (std::size_t i = 0; i < result.findings.size(); ++i) {
    if (i >= kFindingLinesMax) {
      std::printf("... and %zu more findings\n", result.findings.size() - i);
      break;
    }
    std::printf("%s\n", ibnbd::sim::FindingLine(seed, result.findings[i]).c_str());
  }
}

bool Run::RunSeed(std::uint64_t seed) {
  ScenarioOptions scenario = DrawScenario(seed);
  if (options_.canary > 0) scenario.heal_ns = kCanaryHealNs;
  if (options_.verbose) {
    std::printf("%s\n", scenario.ToString().c_str());
    scenario.trace = [](const std::string& line) { std::printf("%s\n", line.c_str()); };
  }
  if (options_.report) std::printf("seed %llu\n", AsUll(seed));
  std::fflush(stdout);
  ScenarioResult result = RunScenario(scenario);
  const bool twice = options_.seeds == 1 || options_.canary == 7 ||
                     (options_.twice_every > 0 && seed % options_.twice_every == 0);
  if (twice) {  // O7: the same seed, the same world.
    scenario.trace = nullptr;
    if (RunScenario(scenario).trace_hash != result.trace_hash) {
      result.findings.push_back({"O7", "two runs of this seed differ"});
    }
  }
  totals_.Add(result.counts);
  PrintFindings(seed, result);
  const std::string canary_oracle = CanaryOracle(options_.canary);
  for (const Finding& finding : result.findings) caught_ |= finding.oracle == canary_oracle;
  return result.findings.empty();
}

// In a process of its own: an engine with a bug may well stumble over it.
bool Run::RunCanarySeed(std::uint64_t seed) {
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child < 0) return RunSeed(seed);
  if (child == 0) {
    (void)RunSeed(seed);
    std::fflush(stdout);
    ::_exit(caught_ ? kExitCaught : 0);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  caught_ = WIFEXITED(status) && WEXITSTATUS(status) == kExitCaught;
  if (!WIFEXITED(status)) std::printf("seed %llu ended with a crash\n", AsUll(seed));
  return !caught_;
}

void Run::Report() {
  std::printf("total %s\n", ibnbd::sim::ReportJson(run_, found_, totals_, marks_).c_str());
  std::fflush(stdout);
  reported_ = Seconds();
}

int Run::Main() {
  for (std::uint64_t seed = options_.first;
       options_.seeds == 0 || seed < options_.first + options_.seeds; ++seed) {
    if (TimeIsUp()) break;
    ++run_;
    const bool alone = options_.canary > 0 && options_.seeds != 1;
    if (!(alone ? RunCanarySeed(seed) : RunSeed(seed))) ++found_;
    if (options_.report && Seconds() > reported_ + 1) Report();
    if (found_ > 0 && !options_.keep_going && (options_.canary == 0 || caught_)) break;
  }
  if (options_.report) {
    Report();
  } else {
    std::printf("%s\n", ibnbd::sim::ReportText(run_, found_, totals_).c_str());
  }
  if (options_.canary > 0) {
    if (!caught_) std::printf("canary %d was not caught by its oracle\n", ibnbd::canary_number);
    return caught_ ? 0 : 1;
  }
  if (options_.marks) {
    std::printf("%s", ibnbd::sim::MarksText(marks_).c_str());
    if (ibnbd::sim::CountColdMarks(marks_) > 0) return 1;
  }
  return found_ > 0 ? 1 : 0;
}

bool ParseNumber(absl::string_view argument, absl::string_view name, std::uint64_t* out) {
  if (argument.substr(0, name.size()) != name) return false;
  return absl::SimpleAtoi(argument.substr(name.size()), out);
}

bool ParseSeedOption(absl::string_view argument, absl::string_view name, std::uint64_t* out) {
  if (argument.substr(0, name.size()) != name) return false;
  return ibnbd::sim::ParseSeed(std::string(argument.substr(name.size())), out);
}

bool ParseArgument(absl::string_view argument, Options* options) {
  if (argument == "--verbose") return options->verbose = true;
  if (argument == "--marks") return options->marks = true;
  if (argument == "--keep-going") return options->keep_going = true;
  if (argument == "--report") return options->report = true;
#ifdef IBNBD_CANARIES
  if (ParseNumber(argument, "--canary=", &options->canary)) return true;
#endif
  return ParseSeedOption(argument, "--seed=", &options->first) ||
         ParseSeedOption(argument, "--first=", &options->first) ||
         ParseNumber(argument, "--seeds=", &options->seeds) ||
         ParseNumber(argument, "--for=", &options->for_seconds) ||
         ParseNumber(argument, "--twice-every=", &options->twice_every);
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
  ibnbd::canary_number = static_cast<int>(options.canary);
  // Peers misbehave by design here: only errors are worth a line.
  ibnbd::SetLogSink(
      [verbose = options.verbose](ibnbd::LogLevel, const std::string& line) {
        if (verbose) std::printf("log: %s\n", line.c_str());
      },
      options.verbose ? ibnbd::LogLevel::kDebug : ibnbd::LogLevel::kError);
  return Run(options).Main();
}
