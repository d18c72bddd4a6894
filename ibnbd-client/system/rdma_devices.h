// SPDX-License-Identifier: Apache-2.0
// The RDMA devices of the machine with their ports and addresses (GIDs), and the network devices
// beneath, as sysfs and procfs tell.  softroce and doctor read them, on the main thread.  Names and
// numbers that make no sense are left out.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ibnbd-client/system/system_tree.h"

namespace ibnbd::client {

struct Gid {
  std::uint32_t index = 0;
  std::array<std::uint8_t, 16> bytes{};
  std::string netdev;  // Empty on InfiniBand.
  std::string type;    // "RoCE v2", "IB/RoCE v1".

  [[nodiscard]] bool IsRoceV2() const { return type == "RoCE v2"; }
  [[nodiscard]] bool IsIpv4() const;  // ::ffff:a.b.c.d
  [[nodiscard]] bool IsLinkLocal() const;
  // "10.0.0.2", "fd77::1": the IP address that connections go to.
  [[nodiscard]] std::string Text() const;
};

struct RdmaPort {
  std::uint32_t number = 0;
  std::string state;       // "ACTIVE", "DOWN".
  std::string link_layer;  // "Ethernet", "InfiniBand".
  std::vector<Gid> gids;   // In the order of their indexes, without the empty ones.
};

struct RdmaDevice {
  std::string name;
  std::string soft_netdev;  // The network device that Soft-RoCE runs on; empty: real hardware.
  std::vector<RdmaPort> ports;
};

std::vector<RdmaDevice> ReadRdmaDevices(const SystemTree& tree);

// 32 hexadecimal digits in groups of four, as in .../gids/0.
std::optional<std::array<std::uint8_t, 16>> ParseGid(const std::string& text);
// The address bytes of an IPv4 address become ::ffff:a.b.c.d.
std::optional<std::array<std::uint8_t, 16>> GidOfAddress(const std::string& ip_address);

struct Netdev {
  std::string name;
  bool is_up = false, is_loopback = false, is_vlan = false;
  std::uint64_t mtu = 0;
};
// Absent when there is no such network device, or when the name is none.
std::optional<Netdev> ReadNetdev(const SystemTree& tree, const std::string& name);

// The network device that packets for anywhere leave by: IPv4's, else IPv6's.
std::optional<std::string> DefaultRouteNetdev(const SystemTree& tree);

}  // namespace ibnbd::client
