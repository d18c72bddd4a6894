// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/system/rdma_devices.h"

#include <arpa/inet.h>
#include <net/if.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ibnbd::client {
namespace {

constexpr std::array<std::uint8_t, 12> kMappedPrefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

std::vector<std::uint32_t> Numbers(const std::vector<std::string>& names) {
  std::vector<std::uint32_t> numbers;
  for (const std::string& name : names) {
    std::uint32_t number = 0;
    if (absl::SimpleAtoi(name, &number)) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

std::vector<Gid> ReadGids(const SystemTree& tree, const std::string& port) {
  std::vector<Gid> gids;
  for (const std::uint32_t index : Numbers(tree.List(port + "/gids"))) {
    const auto bytes =
        ParseGid(tree.ReadLine(absl::StrCat(port, "/gids/", index)).value_or(std::string()));
    if (!bytes.has_value() || *bytes == std::array<std::uint8_t, 16>{}) continue;
    Gid gid;
    gid.index = index;
    gid.bytes = *bytes;
    gid.netdev = tree.ReadLine(absl::StrCat(port, "/gid_attrs/ndevs/", index)).value_or("");
    gid.type = tree.ReadLine(absl::StrCat(port, "/gid_attrs/types/", index)).value_or("");
    gids.push_back(std::move(gid));
  }
  return gids;
}

RdmaPort ReadPort(const SystemTree& tree, const std::string& device, std::uint32_t number) {
  const std::string path = absl::StrCat("/sys/class/infiniband/", device, "/ports/", number);
  RdmaPort port;
  port.number = number;
  port.link_layer = tree.ReadLine(path + "/link_layer").value_or("");
  // "4: ACTIVE".
  const std::string state = tree.ReadLine(path + "/state").value_or("");
  const std::size_t colon = state.find(": ");
  port.state = colon == std::string::npos ? "unknown" : state.substr(colon + 2);
  port.gids = ReadGids(tree, path);
  return port;
}

// IPv4: "eth0 00000000 0100A8C0 0003 0 0 100 00000000 ..." under a line of titles.
std::optional<std::string> DefaultRouteIpv4(const std::string& table) {
  std::optional<std::string> best;
  std::uint64_t best_metric = std::numeric_limits<std::uint64_t>::max();
  for (const absl::string_view line : absl::StrSplit(table, '\n')) {
    const std::vector<std::string> field =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    std::uint32_t flags = 0;
    std::uint64_t metric = 0;
    if (field.size() < 8 || field[1] != "00000000" || field[7] != "00000000") continue;
    if (!absl::SimpleHexAtoi(field[3], &flags) || !absl::SimpleAtoi(field[6], &metric)) continue;
    constexpr std::uint32_t kUp = 1, kReject = 0x200;
    if ((flags & kUp) == 0 || (flags & kReject) != 0 || metric >= best_metric) continue;
    best = field[0];
    best_metric = metric;
  }
  return best;
}

// IPv6: destination, its prefix length, source, its prefix length, gateway, metric, references,
// uses, flags, device; all numbers are hexadecimal.
std::optional<std::string> DefaultRouteIpv6(const std::string& table) {
  std::optional<std::string> best;
  std::uint64_t best_metric = std::numeric_limits<std::uint64_t>::max();
  for (const absl::string_view line : absl::StrSplit(table, '\n')) {
    const std::vector<std::string> field = absl::StrSplit(line, ' ', absl::SkipEmpty());
    std::uint32_t flags = 0;
    std::uint64_t metric = 0;
    if (field.size() < 10 || field[0] != std::string(32, '0') || field[1] != "00") continue;
    if (!absl::SimpleHexAtoi(field[5], &metric) || !absl::SimpleHexAtoi(field[8], &flags)) continue;
    constexpr std::uint32_t kUp = 1, kReject = 0x200;
    if ((flags & kUp) == 0 || (flags & kReject) != 0 || metric >= best_metric) continue;
    best = field[9];
    best_metric = metric;
  }
  return best;
}

}  // namespace

bool Gid::IsIpv4() const {
  return std::equal(kMappedPrefix.begin(), kMappedPrefix.end(), bytes.begin());
}

bool Gid::IsLinkLocal() const { return bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80; }

std::string Gid::Text() const {
  char text[INET6_ADDRSTRLEN] = "";
  if (IsIpv4()) {
    inet_ntop(AF_INET, bytes.data() + kMappedPrefix.size(), text, sizeof text);
  } else {
    inet_ntop(AF_INET6, bytes.data(), text, sizeof text);
  }
  return text;
}

std::vector<RdmaDevice> ReadRdmaDevices(const SystemTree& tree) {
  std::vector<RdmaDevice> devices;
  for (const std::string& name : tree.List("/sys/class/infiniband")) {
    const std::string path = "/sys/class/infiniband/" + name;
    RdmaDevice device;
    device.name = name;
    // Only Soft-RoCE says what it runs on.
    device.soft_netdev = tree.ReadLine(path + "/parent").value_or("");
    for (const std::uint32_t number : Numbers(tree.List(path + "/ports"))) {
      device.ports.push_back(ReadPort(tree, name, number));
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

std::optional<std::array<std::uint8_t, 16>> ParseGid(const std::string& text) {
  const std::vector<std::string> groups = absl::StrSplit(text, ':');
  std::array<std::uint8_t, 16> bytes{};
  if (groups.size() != 8) return std::nullopt;
  for (std::size_t i = 0; i < 8; ++i) {
    std::uint32_t group = 0;
    const bool is_hex = groups[i].find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
    if (groups[i].size() != 4 || !is_hex || !absl::SimpleHexAtoi(groups[i], &group)) {
      return std::nullopt;
    }
    bytes[2 * i] = static_cast<std::uint8_t>(group >> 8);
    bytes[2 * i + 1] = static_cast<std::uint8_t>(group & 0xff);
  }
  return bytes;
}

std::optional<std::array<std::uint8_t, 16>> GidOfAddress(const std::string& ip_address) {
  std::array<std::uint8_t, 16> bytes{};
  if (inet_pton(AF_INET6, ip_address.c_str(), bytes.data()) == 1) return bytes;
  std::copy(kMappedPrefix.begin(), kMappedPrefix.end(), bytes.begin());
  if (inet_pton(AF_INET, ip_address.c_str(), bytes.data() + kMappedPrefix.size()) != 1) {
    return std::nullopt;
  }
  return bytes;
}

std::optional<Netdev> ReadNetdev(const SystemTree& tree, const std::string& name) {
  if (name.empty() || name.size() >= IFNAMSIZ || name == "." || name == ".." ||
      name.find('/') != std::string::npos) {
    return std::nullopt;
  }
  const std::string path = "/sys/class/net/" + name;
  const std::optional<std::uint64_t> flags = tree.ReadNumber(path + "/flags");
  if (!flags.has_value()) return std::nullopt;
  Netdev netdev;
  netdev.name = name;
  netdev.is_up = (*flags & IFF_UP) != 0;
  netdev.is_loopback = (*flags & IFF_LOOPBACK) != 0;
  netdev.mtu = tree.ReadNumber(path + "/mtu").value_or(0);
  const std::string uevent = tree.Read(path + "/uevent").value_or("");
  netdev.is_vlan = uevent.find("DEVTYPE=vlan\n") != std::string::npos;
  return netdev;
}

std::optional<std::string> DefaultRouteNetdev(const SystemTree& tree) {
  if (auto netdev = DefaultRouteIpv4(tree.Read("/proc/net/route").value_or(""))) return netdev;
  return DefaultRouteIpv6(tree.Read("/proc/net/ipv6_route").value_or(""));
}

}  // namespace ibnbd::client
