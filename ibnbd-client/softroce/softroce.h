// SPDX-License-Identifier: Apache-2.0
// `ibnbd-client softroce`: adds, removes and shows Soft-RoCE devices.  The command calls it, on the
// main thread.  What it does to the machine goes through SoftRoceHost, so that tests can be the
// machine; a failed `add` leaves no device behind that it made, except one whose address did not
// come.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ibnbd-client/softroce/rdma_netlink.h"
#include "ibnbd-client/system/rdma_devices.h"
#include "ibnbd-client/system/system_tree.h"

namespace ibnbd::client {

class SoftRoceHost {
 public:
  virtual ~SoftRoceHost() = default;
  virtual const SystemTree& tree() = 0;
  virtual RdmaLinks& links() = 0;
  virtual absl::Status LoadModule(const std::string& name) = 0;
  // The IP addresses of a network device, without those of the link.
  virtual std::vector<std::string> Addresses(const std::string& netdev) = 0;
  // A while, before the next look at whether something has happened.
  virtual void Pause() = 0;
};
inline constexpr int kPausesPerSecond = 20;
std::unique_ptr<SoftRoceHost> ThisHost();

struct SoftRoceAdd {
  std::string netdev;  // Empty: that of the default route.
  std::string name;    // Empty: "rxe_" and the network device's.
  int timeout_s = 10;
};

// A port of an RDMA device, as `show` prints it.
struct ShownLink {
  std::string device;
  std::uint32_t port = 0;
  bool is_soft = false;
  std::string netdev;
  std::string state;
  std::vector<Gid> gids;
};

struct Added {
  ShownLink link;
  bool by_default_route = false;  // The user named no network device.
  bool has_address = false;       // Connections need one.
};

// Returns when the device has the addresses of its network device.
absl::StatusOr<Added> AddSoftRoce(SoftRoceHost& host, const SoftRoceAdd& add);
// By the name of the device or of its network device; says what was removed: "rxe_eth0 on eth0".
absl::StatusOr<std::string> RemoveSoftRoce(SoftRoceHost& host, const std::string& name,
                                           int timeout_s);
// All RDMA devices; with a name, that one, or those on that network device.
absl::StatusOr<std::vector<ShownLink>> ShowLinks(SoftRoceHost& host, const std::string& name);

}  // namespace ibnbd::client
