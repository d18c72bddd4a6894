// SPDX-License-Identifier: Apache-2.0
// What every client needs of the kernel, and what devices (/dev/ublkbN, /dev/nbdN) need.
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "ibnbd-client/doctor/checks.h"

namespace ibnbd::client {
namespace {

// "Seccomp:\t2": a filter.
bool HasSeccompFilter(const SystemTree& tree) {
  const std::string status = tree.Read("/proc/self/status").value_or("");
  return status.find("\nSeccomp:\t2\n") != std::string::npos;
}

Finding IoUringForbidden(const SystemTree& tree) {
  const std::uint64_t disabled = tree.ReadNumber("/proc/sys/kernel/io_uring_disabled").value_or(0);
  if (disabled >= 2) {
    return {"io_uring", "", Verdict::kProblem, "forbidden on this machine, and everything needs it",
            "sysctl kernel.io_uring_disabled=0"};
  }
  if (disabled == 1) {
    const std::string group = tree.ReadLine("/proc/sys/kernel/io_uring_group").value_or("-1");
    return {"io_uring", "", Verdict::kProblem,
            absl::StrCat("forbidden for ordinary users",
                         group == "-1" ? "" : absl::StrCat(" outside of group ", group),
                         ", and everything needs it"),
            "sysctl kernel.io_uring_disabled=0"};
  }
  if (HasSeccompFilter(tree)) {
    return {"io_uring", "", Verdict::kProblem,
            "forbidden by a seccomp filter (a container's, a unit's), and everything needs it",
            "docker run --security-opt seccomp=PROFILE with a profile that allows io_uring_*"};
  }
  return {"io_uring", "", Verdict::kProblem, "forbidden by the kernel's security policy",
          "ausearch -m AVC -ts recent"};
}

void CheckIoUring(DoctorHost& host, Findings& findings) {
  switch (const int error = -host.TryIoUring()) {
    case 0:
      findings.push_back({"io_uring", "", Verdict::kOk, "permitted", ""});
      break;
    case EPERM:
    case EACCES:
      findings.push_back(IoUringForbidden(host.tree()));
      break;
    case ENOSYS:
      findings.push_back({"io_uring", "", Verdict::kProblem,
                          "this kernel has none, and everything needs it", "uname -r"});
      break;
    case ENOMEM:
      findings.push_back({"io_uring", "", Verdict::kProblem,
                          "no memory for it: too little may be locked, or there is none",
                          "ulimit -l unlimited"});
      break;
    default:
      findings.push_back({"io_uring", "", Verdict::kProblem,
                          absl::StrCat("cannot be set up: ", std::strerror(error)), "dmesg"});
      break;
  }
}

void CheckHugePages(const SystemTree& tree, Findings& findings) {
  std::uint64_t total = 0, free = 0;
  for (const absl::string_view line :
       absl::StrSplit(tree.Read("/proc/meminfo").value_or(""), '\n')) {
    const std::vector<absl::string_view> field = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (field.size() < 2) continue;
    std::uint64_t* number = field[0] == "HugePages_Total:"  ? &total
                            : field[0] == "HugePages_Free:" ? &free
                                                            : nullptr;
    if (number != nullptr && !absl::SimpleAtoi(field[1], number)) *number = 0;
  }
  if (total == 0) {
    findings.push_back(
        {"hugepages", "", Verdict::kNotNeeded, "none reserved; nothing depends on them", ""});
  } else {
    findings.push_back(
        {"hugepages", "", Verdict::kOk, absl::StrCat(total, " reserved, ", free, " free"), ""});
  }
}

// A driver of block devices: its module, and the file that says that it is there.
void CheckBlockDriver(const SystemTree& tree, const std::string& check, const std::string& module,
                      const std::string& node, const std::string& devices, Findings& findings) {
  Finding finding{check, "", Verdict::kOk, "", ""};
  switch (FindModule(tree, module)) {
    case ModuleState::kLoaded:
      if (tree.Exists(node)) {
        finding.text = absl::StrCat(module, " is loaded");
        break;
      }
      finding.verdict = Verdict::kWarning;
      finding.text = absl::StrCat(module, " is loaded, but there is no ", node, ": no ", devices,
                                  " (in a container?)");
      finding.fix = "udevadm trigger";
      break;
    case ModuleState::kAvailable:
      finding.verdict = Verdict::kWarning;
      finding.text = absl::StrCat(module, " is not loaded: no ", devices, " yet");
      finding.fix = "modprobe " + module;
      break;
    case ModuleState::kMissing:
      finding.verdict = Verdict::kWarning;
      finding.text = absl::StrCat("this kernel has no module ", module, ": no ", devices);
      finding.fix = "apt-get install linux-image-amd64";
      break;
  }
  findings.push_back(std::move(finding));
}

// "6.12.95+deb12-amd64": {6, 12}; {0, 0}: no such thing.
std::pair<int, int> KernelVersion(const SystemTree& tree) {
  const std::string release = tree.ReadLine("/proc/sys/kernel/osrelease").value_or("");
  const std::vector<absl::string_view> part = absl::StrSplit(release, absl::ByAnyChar(".-+"));
  std::pair<int, int> version;
  if (part.size() < 2 || !absl::SimpleAtoi(part[0], &version.first) ||
      !absl::SimpleAtoi(part[1], &version.second)) {
    return {0, 0};
  }
  return version;
}

// Decision 0009.  In these versions a request that arrives while the process that serves it is
// killed may corrupt the kernel's memory.
void CheckUblkKernel(const SystemTree& tree, Findings& findings) {
  const std::pair<int, int> version = KernelVersion(tree);
  if (FindModule(tree, "ublk_drv") != ModuleState::kLoaded) return;
  if (version < std::pair(6, 7) || version >= std::pair(6, 15)) return;
  findings.push_back({"ublk kernel", "", Verdict::kWarning,
                      absl::StrCat("Linux ", version.first, ".", version.second,
                                   " may crash when a process that serves /dev/ublkbN is killed "
                                   "under load (6.7 to 6.14)"),
                      "ibnbd-client map --as nbd, or Linux 6.15"});
}

}  // namespace

const char* VerdictText(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kProblem:
      return "problem";
    case Verdict::kNotNeeded:
      return "not needed";
  }
  return "unknown";
}

void CheckKernel(DoctorHost& host, Findings& findings) {
  CheckIoUring(host, findings);
  CheckBlockDriver(host.tree(), "ublk", "ublk_drv", "/dev/ublk-control", "/dev/ublkbN", findings);
  CheckUblkKernel(host.tree(), findings);
  CheckBlockDriver(host.tree(), "nbd", "nbd", "/dev/nbd0", "/dev/nbdN", findings);
  CheckHugePages(host.tree(), findings);
}

}  // namespace ibnbd::client
