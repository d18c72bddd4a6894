// SPDX-License-Identifier: Apache-2.0
// A network address as text and as what the kernel wants, and the URIs that users write:
//   tcp://host[:port]/export    rdma://host[:port]/export    sim://host:port/export
// IPv6 literals stand in brackets; the port defaults to RNBD's, 1234.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ibnbd {

inline constexpr std::uint16_t kDefaultPort = 1234;  // RTRS_PORT, wire.md section 0.

// A numeric address: sockaddr bytes, kept opaque so that this header needs no <sys/socket.h>.
// In the simulator `family` is 0 and `sim_host`/`port` say all: the host in the low 16 bits, and
// above them which of its addresses.
struct SocketAddress {
  std::uint16_t family = 0;  // AF_INET, AF_INET6, AF_UNIX, AF_IB; 0: simulated.
  std::uint16_t port = 0;    // Host byte order.
  std::uint32_t sim_host = 0;
  std::uint32_t length = 0;  // Bytes of `bytes` in use.
  std::array<std::byte, 128> bytes{};

  // "10.0.0.2:1234", "[fe80::1%eth0]:1234", "sim3:1", "sim3.2:1".
  [[nodiscard]] std::string ToString() const;
};

struct Uri {
  std::string scheme;  // "tcp", "rdma".
  std::string host;    // Name or literal, without brackets.
  std::uint16_t port = kDefaultPort;
  std::string export_name;  // Percent-decoded; empty when the URI names a server only.

  [[nodiscard]] std::string ToString() const;
};

// What stands for one end of a connection: "host", "host:port", "[v6]", "[v6]:port".
struct HostPort {
  std::string host;  // Without brackets, never empty.
  std::optional<std::uint16_t> port;
};
// Whether an IPv6 address may stand without brackets, and then without a port.
enum class BareIpv6 { kRefused, kTaken };
// The status says what is wrong, not with what: that is the caller's to add.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text, BareIpv6 bare = BareIpv6::kRefused);
absl::StatusOr<std::uint16_t> ParsePort(absl::string_view text);  // 0 to 65535, digits only.

// Refuses, by name, an unknown scheme, a missing host, a port outside 0..65535, queries and
// fragments.  `default_scheme` is used for "host:port/export"; empty means a scheme is required.
absl::StatusOr<Uri> ParseUri(absl::string_view text, absl::string_view default_scheme = "");

// What getsockname(2) and its like fill.  Nothing of the simulator's.
SocketAddress SocketAddressFrom(const void* sockaddr_bytes, std::uint32_t length);

// Looks the host up (blocking; control plane, set-up only).  Prefers what getaddrinfo lists first.
enum class Names { kLookedUp, kRefused };  // Refused: numbers only, which never blocks.
absl::StatusOr<SocketAddress> ResolveAddress(absl::string_view host, std::uint16_t port,
                                             Names names = Names::kLookedUp);

}  // namespace ibnbd
