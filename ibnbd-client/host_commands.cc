// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/host_commands.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "ibnbd-client/doctor/doctor.h"
#include "ibnbd-client/softroce/softroce.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

using Json = nlohmann::ordered_json;

void Print(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

std::string AddressesText(const ShownLink& link) {
  const std::string text = absl::StrJoin(
      link.gids, ", ", [](std::string* out, const Gid& gid) { out->append(gid.Text()); });
  return text.empty() ? "no address" : text;
}

Json ToJson(const ShownLink& link) {
  Json gids = Json::array();
  for (const Gid& gid : link.gids) {
    gids.push_back({{"index", gid.index},
                    {"address", gid.Text()},
                    {"type", gid.type},
                    {"netdev", gid.netdev}});
  }
  return {{"device", link.device}, {"port", link.port},   {"soft", link.is_soft},
          {"netdev", link.netdev}, {"state", link.state}, {"gids", std::move(gids)}};
}

void PrintLinks(const std::vector<ShownLink>& links) {
  std::size_t device_width = 6, netdev_width = 6;
  for (const ShownLink& link : links) {
    device_width = std::max(device_width, link.device.size());
    netdev_width = std::max(netdev_width, link.netdev.size());
  }
  const auto row = [&](const std::string& device, const std::string& port, const std::string& kind,
                       const std::string& netdev, const std::string& state,
                       const std::string& addresses) {
    std::printf("%-*s  %4s  %-9s  %-*s  %-6s  %s\n", static_cast<int>(device_width), device.c_str(),
                port.c_str(), kind.c_str(), static_cast<int>(netdev_width), netdev.c_str(),
                state.c_str(), addresses.c_str());
  };
  row("DEVICE", "PORT", "KIND", "NETDEV", "STATE", "ADDRESSES");
  for (const ShownLink& link : links) {
    row(link.device, std::to_string(link.port), link.is_soft ? "Soft-RoCE" : "hardware",
        link.netdev.empty() ? "-" : Printable(link.netdev), link.state, AddressesText(link));
  }
}

absl::Status RunAdd(const SoftRoceAdd& add) {
  const std::unique_ptr<SoftRoceHost> host = ThisHost();
  ASSIGN_OR_RETURN(const Added added, AddSoftRoce(*host, add));
  const ShownLink& link = added.link;
  std::printf("%s on %s%s: %s, %s\n", link.device.c_str(), Printable(link.netdev).c_str(),
              added.by_default_route ? " (the default route's)" : "", link.state.c_str(),
              AddressesText(link).c_str());
  if (!added.has_address) {
    std::printf("%s has no IP address, which connections need: ip addr add ADDRESS/PREFIX dev %s\n",
                link.netdev.c_str(), link.netdev.c_str());
  }
  return absl::OkStatus();
}

absl::Status RunRemove(const std::string& name, int timeout_s) {
  const std::unique_ptr<SoftRoceHost> host = ThisHost();
  ASSIGN_OR_RETURN(const std::string removed, RemoveSoftRoce(*host, name, timeout_s));
  std::printf("%s: removed\n", removed.c_str());
  return absl::OkStatus();
}

absl::Status RunShowLinks(const std::string& name, bool json) {
  const std::unique_ptr<SoftRoceHost> host = ThisHost();
  ASSIGN_OR_RETURN(const std::vector<ShownLink> links, ShowLinks(*host, name));
  if (json) {
    Json answer = {{"links", Json::array()}};
    for (const ShownLink& link : links) answer["links"].push_back(ToJson(link));
    Print(answer);
  } else if (links.empty()) {
    std::printf("no RDMA device; to add a soft one: ibnbd-client softroce add\n");
  } else {
    PrintLinks(links);
  }
  return absl::OkStatus();
}

Json ToJson(const Findings& findings) {
  Json checks = Json::array();
  for (const Finding& finding : findings) {
    checks.push_back({{"check", finding.check},
                      {"subject", finding.subject.empty() ? Json(nullptr) : Json(finding.subject)},
                      {"result", VerdictText(finding.verdict)},
                      {"text", finding.text},
                      {"fix", finding.fix.empty() ? Json(nullptr) : Json(finding.fix)}});
  }
  const std::size_t problems = CountOf(findings, Verdict::kProblem);
  return {{"ok", problems == 0},
          {"problems", problems},
          {"warnings", CountOf(findings, Verdict::kWarning)},
          {"checks", std::move(checks)}};
}

void PrintFindings(const Findings& findings) {
  const auto name = [](const Finding& finding) {
    return Printable(finding.subject.empty() ? finding.check
                                             : absl::StrCat(finding.check, " ", finding.subject));
  };
  std::size_t width = 5;
  for (const Finding& finding : findings) width = std::max(width, name(finding).size());
  const int column = static_cast<int>(width);
  std::printf("%-10s  %-*s  %s\n", "RESULT", column, "CHECK", "WHAT WAS FOUND");
  for (const Finding& finding : findings) {
    std::printf("%-10s  %-*s  %s\n", VerdictText(finding.verdict), column, name(finding).c_str(),
                Printable(finding.text).c_str());
    if (finding.fix.empty()) continue;
    std::printf("%-10s  %-*s  fix: %s\n", "", column, "", Printable(finding.fix).c_str());
  }
}

// A problem is an error of the command, too: scripts look at its exit status.
absl::Status RunDoctor(const std::string& uri_text, std::uint32_t timeout_s, bool json) {
  std::optional<Uri> uri;
  if (!uri_text.empty()) {
    ASSIGN_OR_RETURN(uri, ParseUri(uri_text));
  }
  const std::unique_ptr<DoctorHost> host = ThisDoctorHost();
  const Findings findings = Examine(*host, uri, timeout_s * 1000);
  if (json) {
    Print(ToJson(findings));
  } else {
    PrintFindings(findings);
  }
  const std::size_t problems = CountOf(findings, Verdict::kProblem);
  if (problems == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("doctor: ", problems, problems == 1 ? " problem" : " problems"));
}

// A URI that is none is a mistake of the command line.
std::string CheckUriText(const std::string& text) {
  const auto uri = ParseUri(text);
  if (!uri.ok()) return std::string(uri.status().message());
  if (uri->scheme != "tcp" && uri->scheme != "rdma") return text + ": not tcp:// and not rdma://";
  return "";
}

}  // namespace

struct HostCommands::Options {
  CLI::App* add_command = nullptr;
  CLI::App* remove_command = nullptr;
  CLI::App* show_command = nullptr;
  CLI::App* doctor_command = nullptr;
  SoftRoceAdd add;
  std::string doctor_uri;
  std::uint32_t doctor_timeout_s = 5;
  std::string remove_name, show_name;
  bool json = false;
};

HostCommands::HostCommands(CLI::App& app) : options_(std::make_unique<Options>()) {
  Options& o = *options_;
  const auto add_timeout = [&o](CLI::App& command) {
    command.add_option("--timeout", o.add.timeout_s, "Seconds to wait until it is done")
        ->check(CLI::Range(1, 3600))
        ->capture_default_str();
  };
  CLI::App* softroce = app.add_subcommand("softroce", "RDMA in software, on any network device");
  softroce->require_subcommand(1);
  o.add_command = softroce->add_subcommand("add", "Add a device, and load what it needs");
  o.add_command->add_option("netdev", o.add.netdev,
                            "Network device (default: that of the default route)");
  o.add_command->add_option("--name", o.add.name, "Name of the device (default: rxe_NETDEV)");
  add_timeout(*o.add_command);
  o.remove_command = softroce->add_subcommand("remove", "Remove a device");
  o.remove_command->add_option("name", o.remove_name, "The device, or its network device")
      ->required();
  add_timeout(*o.remove_command);
  o.show_command = softroce->add_subcommand("show", "Show the RDMA devices");
  o.show_command->add_option("name", o.show_name, "One device, or its network device");
  o.show_command->add_flag("--json", o.json, "Print JSON");
  o.doctor_command =
      app.add_subcommand("doctor", "Look for what is missing on this machine, and how to mend it");
  o.doctor_command
      ->add_option("uri", o.doctor_uri, "A server that should be reached: tcp://, rdma://")
      ->check(CLI::Validator(CheckUriText, "URI"));
  o.doctor_command->add_flag("--json", o.json, "Print JSON");
  o.doctor_command->add_option("--timeout", o.doctor_timeout_s, "Seconds to wait for the server")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
}

HostCommands::~HostCommands() = default;

absl::Status HostCommands::Run() {
  const Options& o = *options_;
  if (o.add_command->parsed()) return RunAdd(o.add);
  if (o.remove_command->parsed()) return RunRemove(o.remove_name, o.add.timeout_s);
  if (o.show_command->parsed()) return RunShowLinks(o.show_name, o.json);
  if (o.doctor_command->parsed()) {
    return RunDoctor(o.doctor_uri, o.doctor_timeout_s, o.json);
  }
  return absl::OkStatus();
}

}  // namespace ibnbd::client
