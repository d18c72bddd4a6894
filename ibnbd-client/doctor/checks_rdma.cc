// SPDX-License-Identifier: Apache-2.0
// RDMA: modules, the files in /dev, limits, and each device with its driver, ports and addresses.
#include <linux/capability.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "ibnbd-client/doctor/checks.h"
#include "ibnbd-client/system/rdma_devices.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

constexpr std::uint64_t kMemlockWanted = std::uint64_t{64} << 20;
constexpr std::uint64_t kMemlockLeast = std::uint64_t{8} << 20;  // What kernels and systemd give.
// What RoCE v2 puts around a payload, at most: global route header, UDP, BTH and extensions, ICRC.
constexpr std::uint64_t kRoceHeaders = 96;

// Small kernels (cloud, virtual machines) leave RDMA out.
constexpr const char* kInstallKernel = "apt-get install linux-image-amd64";

Verdict Lacking(Need need) {
  return need == Need::kRequired ? Verdict::kProblem : Verdict::kWarning;
}

void CheckModule(const SystemTree& tree, const std::string& module, const std::string& what_for,
                 Findings& findings) {
  Finding finding{"module", module, Verdict::kOk, "loaded", ""};
  const ModuleState state = FindModule(tree, module);
  if (state != ModuleState::kLoaded) {
    finding.verdict = Verdict::kProblem;
    finding.text = absl::StrCat(
        state == ModuleState::kMissing ? "not in this kernel" : "not loaded", ": ", what_for);
    finding.fix =
        state == ModuleState::kMissing ? kInstallKernel : absl::StrCat("modprobe ", module);
  }
  findings.push_back(std::move(finding));
}

// `has_devices`: then nobody needs Soft-RoCE.
void CheckSoftRoce(const SystemTree& tree, bool has_devices, Need need, Findings& findings) {
  Finding finding{"module", "rdma_rxe", Verdict::kOk, "loaded", ""};
  switch (FindModule(tree, "rdma_rxe")) {
    case ModuleState::kLoaded:
      break;
    case ModuleState::kAvailable:
      finding.text = "not loaded; ibnbd-client softroce add does that";
      break;
    case ModuleState::kMissing:
      finding.verdict = has_devices ? Verdict::kNotNeeded : Lacking(need);
      finding.text = "not in this kernel: no Soft-RoCE";
      if (!has_devices) finding.fix = kInstallKernel;
      break;
  }
  findings.push_back(std::move(finding));
}

void CheckNode(DoctorHost& host, const std::string& check, const std::string& subject,
               const std::string& path, const std::string& fix, Findings& findings) {
  Finding finding{check, subject, Verdict::kOk, path, ""};
  if (!host.tree().Exists(path)) {
    finding.verdict = Verdict::kProblem;
    finding.text = absl::StrCat("there is no ", path);
    finding.fix = fix;
  } else if (!host.MayReadAndWrite(path)) {
    finding.verdict = Verdict::kProblem;
    finding.text = absl::StrCat("this user may not open ", path);
    finding.fix = "sudo chmod 0666 " + path;
  }
  findings.push_back(std::move(finding));
}

// "Max locked memory         8388608              8388608              bytes".
std::optional<std::uint64_t> MemlockLimit(const SystemTree& tree) {
  constexpr absl::string_view kTitle = "Max locked memory";
  for (absl::string_view line : absl::StrSplit(tree.Read("/proc/self/limits").value_or(""), '\n')) {
    if (!absl::StartsWith(line, kTitle)) continue;
    line.remove_prefix(kTitle.size());
    const std::vector<absl::string_view> field = absl::StrSplit(line, ' ', absl::SkipEmpty());
    std::uint64_t limit = 0;
    if (!field.empty() && absl::SimpleAtoi(field[0], &limit)) return limit;
  }
  return std::nullopt;  // "unlimited".
}

void CheckMemlock(const SystemTree& tree, Findings& findings) {
  Finding finding{"memlock", "", Verdict::kOk, "", ""};
  const std::optional<std::uint64_t> limit = MemlockLimit(tree);
  if (HasCapability(tree, CAP_IPC_LOCK)) {
    finding.text = "this user may lock any amount of memory";
  } else if (!limit.has_value()) {
    finding.text = "unlimited";
  } else if (*limit >= kMemlockWanted) {
    finding.text = absl::StrCat(SizeText(*limit), " may be locked");
  } else {
    finding.verdict = *limit < kMemlockLeast ? Verdict::kProblem : Verdict::kWarning;
    finding.text = absl::StrCat("only ", SizeText(*limit), " may be locked, and what an RDMA ",
                                "device reads and writes is locked: ",
                                *limit < kMemlockLeast ? "too little for a session"
                                                       : "enough for a session, not for a server");
    finding.fix = "ulimit -l unlimited (a service: LimitMEMLOCK=infinity)";
  }
  findings.push_back(std::move(finding));
}

void CheckUverbs(DoctorHost& host, const RdmaDevice& device, Findings& findings) {
  const SystemTree& tree = host.tree();
  for (const std::string& name : tree.List("/sys/class/infiniband_verbs")) {
    const auto owner = tree.ReadLine("/sys/class/infiniband_verbs/" + name + "/ibdev");
    if (owner != device.name) continue;
    CheckNode(host, "uverbs", device.name, "/dev/infiniband/" + name, "udevadm trigger", findings);
    return;
  }
  findings.push_back({"uverbs", device.name, Verdict::kProblem,
                      "user space has no access to the device", "modprobe ib_uverbs"});
}

std::string NetdevOf(const RdmaDevice& device, const RdmaPort& port) {
  for (const Gid& gid : port.gids) {
    if (!gid.netdev.empty()) return gid.netdev;
  }
  return device.soft_netdev;
}

struct PortLook {
  const RdmaDevice& device;
  const RdmaPort& port;
  Verdict if_bad;  // A port that is not used is no problem while there is another one.
  [[nodiscard]] std::string Name() const { return absl::StrCat(device.name, "/", port.number); }
  [[nodiscard]] std::string Netdev() const { return NetdevOf(device, port); }
};

bool HasAddress(const RdmaPort& port) {
  return std::any_of(port.gids.begin(), port.gids.end(), [&port](const Gid& gid) {
    return port.link_layer == "InfiniBand" || (gid.IsRoceV2() && !gid.IsLinkLocal());
  });
}
bool IsUsable(const RdmaPort& port) { return port.state == "ACTIVE" && HasAddress(port); }

void CheckState(const PortLook& look, Findings& findings) {
  Finding finding{"port", look.Name(), Verdict::kOk, look.port.state, ""};
  const std::string netdev = look.Netdev();
  if (!netdev.empty()) absl::StrAppend(&finding.text, ", on ", Printable(netdev));
  if (look.port.state != "ACTIVE") {
    finding.verdict = look.if_bad;
    if (look.port.link_layer == "InfiniBand") {
      finding.fix = "a cable, and a subnet manager on one machine: systemctl start opensm";
    } else {
      finding.fix = absl::StrCat("ip link set ", netdev.empty() ? "NETDEV" : netdev, " up");
    }
  }
  findings.push_back(std::move(finding));
}

void CheckAddresses(const PortLook& look, Findings& findings) {
  if (look.port.state != "ACTIVE" || look.port.link_layer == "InfiniBand") return;
  std::vector<std::string> addresses;
  bool any_v2 = false;
  for (const Gid& gid : look.port.gids) {
    any_v2 = any_v2 || gid.IsRoceV2();
    if (gid.IsRoceV2() && !gid.IsLinkLocal()) addresses.push_back(gid.Text());
  }
  Finding finding{"address", look.Name(), Verdict::kOk, absl::StrJoin(addresses, ", "), ""};
  if (addresses.empty()) {
    const std::string netdev = look.Netdev();
    finding.verdict = look.if_bad;
    finding.text = any_v2 || look.port.gids.empty()
                       ? "no IP address (GID) that a connection could use"
                       : "no RoCE v2, only RoCE v1, which routers and Soft-RoCE do not know";
    finding.fix =
        absl::StrCat("ip addr add ADDRESS/PREFIX dev ", netdev.empty() ? "NETDEV" : netdev);
  }
  findings.push_back(std::move(finding));
}

std::uint64_t LargestMtu(std::uint64_t netdev_mtu) {
  std::uint64_t mtu = 4096;
  while (mtu > 128 && mtu + kRoceHeaders > netdev_mtu) mtu /= 2;
  return mtu;
}

void CheckMtu(DoctorHost& host, const PortLook& look, std::uint32_t active, Findings& findings) {
  const std::string netdev_name = look.Netdev();
  const std::optional<Netdev> netdev = ReadNetdev(host.tree(), netdev_name);
  if (look.port.state != "ACTIVE" || active == 0) return;
  Finding finding{"mtu", look.Name(), Verdict::kOk, absl::StrCat(active), ""};
  if (look.port.link_layer == "Ethernet" && netdev.has_value()) {
    const std::uint64_t largest = LargestMtu(netdev->mtu);
    absl::StrAppend(&finding.text, "; ", netdev_name, " has ", netdev->mtu);
    if (active < largest) {
      finding.verdict = Verdict::kWarning;
      absl::StrAppend(&finding.text, ", which would carry ", largest);
      finding.fix =
          look.device.soft_netdev.empty()
              ? absl::StrCat("ip link set ", netdev_name, " down; ip link set ", netdev_name, " up")
              : absl::StrCat("ibnbd-client softroce remove ", look.device.name,
                             "; ibnbd-client softroce add ", netdev_name);
    } else if (active < 1024) {
      finding.verdict = Verdict::kWarning;
      absl::StrAppend(&finding.text, ": small packets, slow transfers");
      finding.fix = absl::StrCat("ip link set ", netdev_name, " mtu 1500");
    } else if (active < 4096) {
      absl::StrAppend(&finding.text, "; 4096 would take 4200, on both sides and between");
    }
  }
  findings.push_back(std::move(finding));
}

// Nothing is said where it is well, or not to be seen (older kernels, ordinary users).
void CheckConnecting(DoctorHost& host, const RdmaDevice& device, Findings& findings) {
  if (!host.CannotConnect(device.name).value_or(false)) return;
  Finding finding{"connecting", device.name, Verdict::kProblem,
                  "its queue pair for making connections is in error and stays so: every connect "
                  "times out (Soft-RoCE: the link went down at the wrong moment)",
                  "rdma link delete " + device.name};
  if (!device.soft_netdev.empty()) {
    finding.fix = absl::StrCat("ibnbd-client softroce remove ", device.name,
                               "; ibnbd-client softroce add ", device.soft_netdev);
  }
  findings.push_back(std::move(finding));
}

void CheckDevice(DoctorHost& host, const RdmaDevice& device, Verdict if_bad, Findings& findings) {
  CheckUverbs(host, device, findings);
  const auto opened = host.TryDevice(device.name);
  if (!opened.ok()) {
    Finding finding{"driver", device.name, Verdict::kProblem, "", ""};
    finding.text = std::string(opened.status().message());
    if (absl::IsNotFound(opened.status())) finding.fix = "apt-get install ibverbs-providers";
    if (absl::IsUnimplemented(opened.status())) finding.fix = "cmake -DIBNBD_WITH_VERBS=ON";
    if (finding.fix.empty()) finding.fix = "strace -f ibv_devinfo -d " + device.name;
    findings.push_back(std::move(finding));
  } else {
    findings.push_back({"driver", device.name, Verdict::kOk,
                        device.soft_netdev.empty() ? "opened" : "opened, Soft-RoCE", ""});
  }
  CheckConnecting(host, device, findings);
  for (const RdmaPort& port : device.ports) {
    const PortLook look{device, port, if_bad};
    CheckState(look, findings);
    CheckAddresses(look, findings);
    if (!opened.ok()) continue;
    for (const VerbsPort& verbs_port : *opened) {
      if (verbs_port.number == port.number) CheckMtu(host, look, verbs_port.active_mtu, findings);
    }
  }
}

}  // namespace

void CheckRdma(DoctorHost& host, Need need, Findings& findings) {
  const SystemTree& tree = host.tree();
  if (need == Need::kNone) {
    findings.push_back({"rdma", "", Verdict::kNotNeeded, "tcp:// does without", ""});
    return;
  }
  const std::vector<RdmaDevice> devices = ReadRdmaDevices(tree);
  CheckSoftRoce(tree, !devices.empty(), need, findings);
  if (devices.empty()) {
    const bool can_have_soft = FindModule(tree, "rdma_rxe") != ModuleState::kMissing;
    findings.push_back({"rdma", "", Lacking(need), "no RDMA device: tcp:// works, rdma:// does not",
                        can_have_soft ? "sudo ibnbd-client softroce add" : kInstallKernel});
    return;
  }
  findings.push_back({"rdma", "", Verdict::kOk, absl::StrCat(devices.size(), " device(s)"), ""});
  CheckModule(tree, "ib_uverbs", "no program can use RDMA devices", findings);
  CheckModule(tree, "rdma_ucm", "no program can connect over RDMA", findings);
  CheckNode(host, "rdma_cm", "", "/dev/infiniband/rdma_cm", "modprobe rdma_ucm", findings);
  CheckMemlock(tree, findings);
  const bool any_usable = std::any_of(devices.begin(), devices.end(), [](const RdmaDevice& device) {
    return std::any_of(device.ports.begin(), device.ports.end(), IsUsable);
  });
  for (const RdmaDevice& device : devices) {
    CheckDevice(host, device, any_usable ? Verdict::kWarning : Verdict::kProblem, findings);
  }
}

}  // namespace ibnbd::client
