// SPDX-License-Identifier: Apache-2.0
// One server: its name, the way to it, and whether it answers.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ibnbd-client/doctor/checks.h"
#include "ibnbd-client/system/rdma_devices.h"

namespace ibnbd::client {
namespace {

// The ports whose addresses connections can use.
std::vector<std::string> RdmaAddresses(const std::vector<RdmaDevice>& devices) {
  std::vector<std::string> addresses;
  for (const RdmaDevice& device : devices) {
    for (const RdmaPort& port : device.ports) {
      for (const Gid& gid : port.gids) {
        if (port.state == "ACTIVE" && !gid.IsLinkLocal()) addresses.push_back(gid.Text());
      }
    }
  }
  return addresses;
}

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || address == "::1";
}

// The device and port that has the address.  On InfiniBand addresses belong to IPoIB devices, and
// say nothing of GIDs: any active port will do.
std::optional<std::string> PortOf(const std::vector<RdmaDevice>& devices,
                                  const std::string& address) {
  // Link-local addresses come with their network device: "fe80::1%eth0".
  const auto bytes = GidOfAddress(address.substr(0, address.find('%')));
  for (const RdmaDevice& device : devices) {
    for (const RdmaPort& port : device.ports) {
      const bool has_it = std::any_of(port.gids.begin(), port.gids.end(), [&](const Gid& gid) {
        return bytes.has_value() && gid.bytes == *bytes;
      });
      if (has_it || (port.link_layer == "InfiniBand" && port.state == "ACTIVE")) {
        return absl::StrCat(device.name, "/", port.number);
      }
    }
  }
  return std::nullopt;
}

// False: no use in trying.
bool CheckRoute(DoctorHost& host, const std::string& address, Findings& findings) {
  Finding finding{"route", address, Verdict::kProblem, "", ""};
  const std::vector<RdmaDevice> devices = ReadRdmaDevices(host.tree());
  const std::vector<std::string> usable = RdmaAddresses(devices);
  const auto route = host.RouteTo(address);
  if (!route.ok()) {
    finding.text = std::string(route.status().message());
    finding.fix = "ip route get " + address;
  } else if (IsLoopback(route->source)) {
    finding.text = "a loopback address, where RDMA's connection manager does not work";
    finding.fix = usable.empty() ? "sudo ibnbd-client softroce add"
                                 : "use an address of an RDMA device: " + usable.front();
  } else if (const auto port = PortOf(devices, route->source)) {
    finding.verdict = Verdict::kOk;
    finding.text = absl::StrCat("from ", route->source, ", by ", *port);
  } else {
    finding.text = absl::StrCat(
        "leads from ", route->source, ", which is no address of an RDMA device",
        usable.empty() ? "" : absl::StrCat(" (those: ", absl::StrJoin(usable, ", "), ")"));
    finding.fix = route->netdev.empty() ? absl::StrCat("ip route get ", address)
                                        : "sudo ibnbd-client softroce add " + route->netdev;
  }
  const bool ok = finding.verdict == Verdict::kOk;
  findings.push_back(std::move(finding));
  return ok;
}

std::string SessionFix(const Uri& uri, const std::string& address, const absl::Status& status) {
  const std::string text(status.message());
  if (absl::StrContains(text, "xport") || absl::IsNotFound(status)) {
    return absl::StrCat("ibnbd-client list ", uri.scheme, "://", uri.host, ":", uri.port);
  }
  if (absl::StrContains(text, "refused") || absl::StrContains(text, "rejected")) {
    return absl::StrCat("on the server: ibnbd-server --listen ", uri.scheme, "://", address, ":",
                        uri.port, " --export NAME=FILE");
  }
  if (absl::StrContains(text, "reset by peer")) {
    return "on the server, whose log says why (locked memory, for one): ibnbd-client doctor";
  }
  return absl::StrCat(
      "ping ", address, "; and see that firewalls let ",
      uri.scheme == "rdma" ? "UDP port 4791 (RoCE)" : absl::StrCat("TCP port ", uri.port),
      " through");
}

}  // namespace

void CheckUri(DoctorHost& host, const Uri& uri, std::uint32_t timeout_ms, Findings& findings) {
  const auto address = host.Resolve(uri);
  if (!address.ok()) {
    findings.push_back({"name", uri.host, Verdict::kProblem,
                        std::string(address.status().message()), "getent ahosts " + uri.host});
    return;
  }
  findings.push_back({"name", uri.host, Verdict::kOk, *address, ""});
  if (uri.scheme == "rdma" && !CheckRoute(host, *address, findings)) return;
  const auto session = host.TrySession(uri, timeout_ms);
  if (session.ok()) {
    findings.push_back({"session", uri.ToString(), Verdict::kOk, *session, ""});
    return;
  }
  const bool is_v6 = absl::StrContains(*address, ":");
  findings.push_back(
      {"session", uri.ToString(), Verdict::kProblem, std::string(session.status().message()),
       SessionFix(uri, is_v6 ? absl::StrCat("[", *address, "]") : *address, session.status())});
}

}  // namespace ibnbd::client
