// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/softroce/softroce.h"

#include <linux/capability.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <optional>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

bool MayAdminister(const SystemTree& tree) { return HasCapability(tree, CAP_NET_ADMIN); }

absl::Status NotPermitted(const std::string& what) {
  return absl::PermissionDeniedError(
      absl::StrCat(what, ": only root may (CAP_NET_ADMIN): sudo ibnbd-client softroce ..."));
}

absl::Status CheckNetdev(const Netdev& netdev, const std::string& what) {
  if (netdev.is_loopback) {
    return absl::FailedPreconditionError(absl::StrCat(
        what, ": ", netdev.name, " is the loopback device, where RDMA's connection manager does ",
        "not work; without a network card: ip link add rdma0 type dummy && ip addr add ",
        "10.77.0.1/24 dev rdma0 && ip link set rdma0 up"));
  }
  if (!netdev.is_up) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": ", netdev.name, " is down: ip link set ", netdev.name, " up"));
  }
  return absl::OkStatus();
}

absl::Status LoadOne(SoftRoceHost& host, const std::string& module, const std::string& what) {
  switch (FindModule(host.tree(), module)) {
    case ModuleState::kLoaded:
      return absl::OkStatus();
    case ModuleState::kAvailable:
      if (!HasCapability(host.tree(), CAP_SYS_MODULE)) {
        return absl::PermissionDeniedError(
            absl::StrCat(what, ": module ", module, " is not loaded, and only root may load it ",
                         "(CAP_SYS_MODULE): sudo modprobe ", module));
      }
      break;
    case ModuleState::kMissing:
      // modprobe says the rest: it knows other places than the one we looked at.
      break;
  }
  const absl::Status status = host.LoadModule(module);
  if (status.ok()) return status;
  if (FindModule(host.tree(), module) != ModuleState::kMissing) return Annotate(status, what);
  const std::string release = host.tree().ReadLine("/proc/sys/kernel/osrelease").value_or("?");
  return absl::NotFoundError(absl::StrCat(
      what, ": kernel ", release, " has no module ", module, " (", status.message(),
      "); distributions have it in the full kernel (Debian: linux-image-amd64, no cloud kernel; ",
      "Ubuntu: linux-modules-extra-", release, ")"));
}

absl::Status LoadModules(SoftRoceHost& host, const std::string& what) {
  for (const char* module : {"ib_uverbs", "rdma_ucm", "rdma_rxe"}) {
    RETURN_IF_ERROR(LoadOne(host, module, what));
  }
  // Soft-RoCE asks the crypto layer for "crc32", which nothing makes modprobe load in time. Kernels
  // that have it in a library need no module: whether it was needed shows when the device is added.
  const std::string ciphers = host.tree().Read("/proc/crypto").value_or("");
  if (ciphers.find(": crc32\n") == std::string::npos) {
    host.LoadModule("crc32_generic").IgnoreError();
  }
  return absl::OkStatus();
}

absl::Status ExplainAdd(SoftRoceHost& host, const absl::Status& status, const Netdev& netdev,
                        const std::string& what) {
  switch (-ErrnoFromStatus(status)) {
    case EPERM:
      if (!netdev.is_vlan) return NotPermitted(what);
      return absl::FailedPreconditionError(absl::StrCat(
          what, ": ", netdev.name, " is a VLAN; Soft-RoCE goes on the device beneath, and then ",
          "has the VLAN's addresses, too"));
    case ENOENT:
      if (host.tree().Read("/proc/crypto").value_or("").find(": crc32\n") != std::string::npos) {
        break;
      }
      return absl::FailedPreconditionError(
          absl::StrCat(what, ": the kernel has no crc32: modprobe crc32_generic"));
    case ENODEV:
      return absl::NotFoundError(absl::StrCat(what, ": no such network device"));
    case EEXIST:
      return absl::AlreadyExistsError(
          absl::StrCat(what, ": there is such a device already: ibnbd-client softroce show"));
    default:
      break;
  }
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message(),
                                                  "; the kernel's log may say more: dmesg"));
}

// Sysfs says which devices are soft, and has the addresses; netlink has the rest.
std::vector<ShownLink> Shown(const std::vector<RdmaLink>& links,
                             const std::vector<RdmaDevice>& devices) {
  std::vector<ShownLink> shown;
  for (const RdmaLink& link : links) {
    ShownLink row;
    row.device = link.device;
    row.port = link.port;
    row.netdev = link.netdev;
    row.state = LinkStateText(link.state);
    for (const RdmaDevice& device : devices) {
      if (device.name != link.device) continue;
      row.is_soft = !device.soft_netdev.empty();
      if (row.netdev.empty()) row.netdev = device.soft_netdev;
      for (const RdmaPort& port : device.ports) {
        if (port.number == link.port) row.gids = port.gids;
      }
    }
    shown.push_back(std::move(row));
  }
  return shown;
}

absl::StatusOr<std::vector<ShownLink>> AllLinks(SoftRoceHost& host) {
  ASSIGN_OR_RETURN(const std::vector<RdmaLink> links, host.links().List());
  return Shown(links, ReadRdmaDevices(host.tree()));
}

// The soft device on a network device, whatever it is called: udev may have renamed it.
absl::StatusOr<std::optional<ShownLink>> FindSoftOn(SoftRoceHost& host, const std::string& netdev) {
  ASSIGN_OR_RETURN(const std::vector<ShownLink> links, AllLinks(host));
  for (const ShownLink& link : links) {
    if (link.is_soft && link.netdev == netdev) return std::optional<ShownLink>(link);
  }
  return std::optional<ShownLink>();
}

bool HasGidOf(const ShownLink& link, const std::string& address) {
  const auto bytes = GidOfAddress(address);
  return std::any_of(link.gids.begin(), link.gids.end(),
                     [&bytes](const Gid& gid) { return bytes.has_value() && gid.bytes == *bytes; });
}

// Its IPv4 addresses, or else one of IPv6; without any, what the device makes up itself.
bool IsReady(const ShownLink& link, const std::vector<std::string>& addresses) {
  bool any_ipv4 = false, any_found = false;
  for (const std::string& address : addresses) {
    const bool is_ipv4 = address.find(':') == std::string::npos;
    const bool found = HasGidOf(link, address);
    if (is_ipv4 && !found) return false;
    any_ipv4 = any_ipv4 || is_ipv4;
    any_found = any_found || found;
  }
  return addresses.empty() ? !link.gids.empty() : any_ipv4 || any_found;
}

absl::StatusOr<ShownLink> AwaitAddresses(SoftRoceHost& host, const std::string& netdev,
                                         int timeout_s, const std::string& what) {
  std::optional<ShownLink> link;
  for (int i = 0; i <= timeout_s * kPausesPerSecond; ++i) {
    if (i != 0) host.Pause();
    ASSIGN_OR_RETURN(link, FindSoftOn(host, netdev));
    if (link.has_value() && IsReady(*link, host.Addresses(netdev))) return *link;
  }
  if (!link.has_value()) {
    return absl::DeadlineExceededError(
        absl::StrCat(what, ": the device was not there after ", timeout_s, " seconds"));
  }
  return absl::DeadlineExceededError(
      absl::StrCat(what, ": ", link->device, " is there, but has not taken the addresses of ",
                   netdev, " (", absl::StrJoin(host.Addresses(netdev), ", "), ") in ", timeout_s,
                   " seconds; to see it: ibnbd-client softroce show ", link->device));
}

// The process of a thread: the kernel tells which thread opened the device.
std::uint32_t ProcessOf(const SystemTree& tree, std::uint32_t thread) {
  const std::string status = tree.Read(absl::StrCat("/proc/", thread, "/status")).value_or("");
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    std::uint32_t pid = 0;
    if (absl::ConsumePrefix(&line, "Tgid:") && absl::SimpleAtoi(line, &pid)) return pid;
  }
  return thread;
}

// The kernel would wait for them, and nobody could end the wait.
absl::Status CheckUnused(SoftRoceHost& host, std::uint32_t device_index, const std::string& device,
                         const std::string& what) {
  ASSIGN_OR_RETURN(const RdmaUsers users, host.links().Users(device_index));
  if (users.count == 0) return absl::OkStatus();
  std::set<std::uint32_t> processes;
  for (const std::uint32_t pid : users.pids) processes.insert(ProcessOf(host.tree(), pid));
  std::vector<std::string> names;
  for (const std::uint32_t pid : processes) {
    const std::string name =
        host.tree().ReadLine(absl::StrCat("/proc/", pid, "/comm")).value_or("a program");
    names.push_back(absl::StrCat(Printable(name), " (pid ", pid, ")"));
  }
  if (names.empty()) names.push_back(absl::StrCat(users.count, " programs"));
  return absl::FailedPreconditionError(absl::StrCat(
      what, ": ", device, " is in use by ", absl::StrJoin(names, ", "), ", which must end first"));
}

absl::Status CheckFree(const std::vector<ShownLink>& links, const SoftRoceAdd& add,
                       const std::string& what) {
  for (const ShownLink& link : links) {
    if (link.is_soft && link.netdev == add.netdev) {
      return absl::AlreadyExistsError(
          absl::StrCat(what, ": ", add.netdev, " has one already: ", link.device,
                       "; to remove it: ibnbd-client softroce remove ", link.device));
    }
    if (link.device == add.name) {
      return absl::AlreadyExistsError(
          absl::StrCat(what, ": an RDMA device of that name exists",
                       link.netdev.empty() ? "" : absl::StrCat(", on ", link.netdev),
                       "; --name chooses another one"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Added> AddSoftRoce(SoftRoceHost& host, const SoftRoceAdd& add) {
  Added added;
  SoftRoceAdd wanted = add;
  if (wanted.netdev.empty()) {
    const std::optional<std::string> netdev = DefaultRouteNetdev(host.tree());
    if (!netdev.has_value()) {
      return absl::NotFoundError(
          "softroce add: there is no default route to take a network device from; name one: "
          "ibnbd-client softroce add NETDEV");
    }
    wanted.netdev = *netdev;
    added.by_default_route = true;
  }
  const std::optional<Netdev> netdev = ReadNetdev(host.tree(), wanted.netdev);
  if (!netdev.has_value()) {
    return absl::NotFoundError(
        absl::StrCat("softroce add: ", wanted.netdev, ": no such network device"));
  }
  if (wanted.name.empty()) wanted.name = "rxe_" + wanted.netdev;
  if (!IsDeviceName(wanted.name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("softroce add: --name ", wanted.name,
                     ": a name has 1 to 63 letters, digits and - _ . :, and no . in front"));
  }
  const std::string what = absl::StrCat("softroce add: ", wanted.name, " on ", wanted.netdev);
  RETURN_IF_ERROR(CheckNetdev(*netdev, what));
  ASSIGN_OR_RETURN(const std::vector<ShownLink> links, AllLinks(host));
  RETURN_IF_ERROR(CheckFree(links, wanted, what));
  if (!MayAdminister(host.tree())) return NotPermitted(what);
  RETURN_IF_ERROR(LoadModules(host, what));
  if (const absl::Status status = host.links().AddSoftRoce(wanted.name, wanted.netdev);
      !status.ok()) {
    return ExplainAdd(host, status, *netdev, what);
  }
  ASSIGN_OR_RETURN(added.link, AwaitAddresses(host, wanted.netdev, wanted.timeout_s, what));
  added.has_address = !host.Addresses(wanted.netdev).empty();
  return added;
}

absl::StatusOr<std::string> RemoveSoftRoce(SoftRoceHost& host, const std::string& name,
                                           int timeout_s) {
  const std::string what = absl::StrCat("softroce remove: ", name);
  ASSIGN_OR_RETURN(const std::vector<RdmaLink> links, host.links().List());
  const std::vector<ShownLink> shown = Shown(links, ReadRdmaDevices(host.tree()));
  std::size_t found = links.size();
  for (std::size_t i = 0; i < shown.size(); ++i) {
    if (shown[i].device == name) {
      found = i;  // A device's own name goes first.
      break;
    }
    if (shown[i].is_soft && shown[i].netdev == name) found = i;
  }
  if (found == links.size()) {
    return absl::NotFoundError(absl::StrCat(
        what, ": no Soft-RoCE device, and no network device with one: ibnbd-client softroce show"));
  }
  const ShownLink& victim = shown[found];
  if (!victim.is_soft) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": not a Soft-RoCE device: nothing that can be removed"));
  }
  if (!MayAdminister(host.tree())) return NotPermitted(what);
  RETURN_IF_ERROR(CheckUnused(host, links[found].device_index, victim.device, what));
  if (const absl::Status status = host.links().Remove(links[found].device_index); !status.ok()) {
    if (ErrnoFromStatus(status) == -EPERM) return NotPermitted(what);
    return Annotate(status, what);
  }
  for (int i = 0; i <= timeout_s * kPausesPerSecond; ++i) {
    if (i != 0) host.Pause();
    ASSIGN_OR_RETURN(const std::vector<RdmaLink> rest, host.links().List());
    const bool gone = std::none_of(rest.begin(), rest.end(), [&](const RdmaLink& link) {
      return link.device_index == links[found].device_index;
    });
    if (gone) return absl::StrCat(victim.device, " on ", victim.netdev);
  }
  return absl::DeadlineExceededError(
      absl::StrCat(what, ": the device is still there after ", timeout_s, " seconds"));
}

absl::StatusOr<std::vector<ShownLink>> ShowLinks(SoftRoceHost& host, const std::string& name) {
  ASSIGN_OR_RETURN(std::vector<ShownLink> links, AllLinks(host));
  if (name.empty()) return links;
  std::erase_if(
      links, [&name](const ShownLink& link) { return link.device != name && link.netdev != name; });
  if (links.empty()) {
    return absl::NotFoundError(
        absl::StrCat("softroce show: ", name, ": no RDMA device, and no network device with one"));
  }
  return links;
}

}  // namespace ibnbd::client
