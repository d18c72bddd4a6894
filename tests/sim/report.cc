// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/report.h"

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/canary.h"

namespace ibnbd::sim {
namespace {

constexpr const char* kStormMarks[] = {
    "client: a path joins again",
    "client: a silent path was given up",
    "client: close ran out of time",
    "client: fail-over",
    "client: fence tried again",
    "client: first open tried again",
    "client: heartbeats ended",
    "client: io lost",
    "client: loss policy ended the wait",
    "client: lost volatile data reported",
    "client: offer refused",
    "client: path fenced",
    "client: reconnected",
    "client: request repeated on another path",
    "client: resumed a device",
    "client: resumed a device after a loss of power",
    "client: resumed a device whose time was over",
    "client: resumed a device without a server",
    "client: server closed the device",
    "server: a repeated request waited for the old one",
    "server: a restarted client ended its old session",
    "server: device revoked",
    "server: fence broke the old path",
    "server: fence lifted",
    "server: fenced path was gone already",
    "server: heartbeat timed out",
    "server: reconnect broke the old path",
    "server: reconnect waits for the fence",
    "server: revoked device forgotten",
    "server: stop broke off what did not drain",
    "server: a writer came back after another one",
    "server: a writer came back beside one that migrates",
    "server: waited for a name",
    "server: waited for the session before",
};

struct Number {
  const char* name;
  std::uint64_t value;
};

std::vector<Number> NumbersOf(std::uint64_t seeds, std::uint64_t with_findings,
                              const ScenarioCounts& totals) {
  return {
      {"seeds", seeds},
      {"seeds with findings", with_findings},
      {"IOs", totals.io.completed},
      {"IO errors", totals.io.errors},
      {"timeouts", totals.io.timeouts},
      {"cuts", totals.faults.cuts},
      {"late landings", totals.faults.landed_late},
      {"partitions", totals.faults.partitions},
      {"reconnects", totals.reconnects},
      {"fail-overs", totals.failovers},
      {"path changes", totals.path_changes},
      {"rail faults", totals.rail_faults},
      {"power losses", totals.power_losses},
      {"server kills", totals.server_kills},
      {"server stops", totals.server_stops},
      {"client crashes", totals.client_crashes},
      {"resumed devices", totals.io.resumes},
      {"impostors", totals.impostors},
      {"clock jumps", totals.faults.clock_jumps},
      {"freezes", totals.freezes},
      {"disk hangs", totals.disk_hangs},
      {"reopens", totals.reopens},
      {"hostile moves", totals.hostile_moves},
      {"virtual seconds", static_cast<std::uint64_t>(totals.virtual_ns / kNsPerSecond)},
  };
}

}  // namespace

bool ParseSeed(const std::string& text, std::uint64_t* seed) {
  if (absl::SimpleAtoi(text, seed)) return true;
  if (text.empty()) return false;
  for (const char c : text) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return false;
  }
  *seed = std::strtoull(text.substr(0, 15).c_str(), nullptr, 16);
  return true;
}

std::string FindingLine(std::uint64_t seed, const Finding& finding) {
  const std::string program =
      canary_number == 0 ? "ibnbd-sim" : absl::StrCat("ibnbd-sim-canary --canary=", canary_number);
  return absl::StrCat("SEED=", seed, " oracle=", finding.oracle, " ", finding.text,
                      " ; rerun: build/dev/bin/", program, " --seed=", seed, " --verbose");
}

std::string ReportText(std::uint64_t seeds, std::uint64_t with_findings,
                       const ScenarioCounts& totals) {
  std::string text;
  for (const Number& number : NumbersOf(seeds, with_findings, totals)) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", number.value, " ", number.name);
  }
  return text;
}

std::string ReportJson(std::uint64_t seeds, std::uint64_t with_findings,
                       const ScenarioCounts& totals, const Marks& marks) {
  std::string text = "{";
  for (const Number& number : NumbersOf(seeds, with_findings, totals)) {
    absl::StrAppend(&text, text.size() == 1 ? "" : ", ", "\"", number.name, "\": ", number.value);
  }
  absl::StrAppend(&text, ", \"marks\": {");
  bool first = true;
  for (const char* mark : kStormMarks) {
    absl::StrAppend(&text, first ? "" : ", ", "\"", mark, "\": ", marks.count(mark));
    first = false;
  }
  return text + "}}";
}

std::string MarksText(const Marks& marks) {
  std::string text;
  for (const char* mark : kStormMarks) {
    const std::uint64_t count = marks.count(mark);
    absl::StrAppendFormat(&text, "mark %-45s %d%s\n", mark, count, count == 0 ? "  COLD" : "");
  }
  return text;
}

int CountColdMarks(const Marks& marks) {
  int cold = 0;
  for (const char* mark : kStormMarks) cold += marks.count(mark) == 0 ? 1 : 0;
  return cold;
}

}  // namespace ibnbd::sim
