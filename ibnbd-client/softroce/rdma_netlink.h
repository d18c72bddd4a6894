// SPDX-License-Identifier: Apache-2.0
// RDMA links over RDMA netlink: what `rdma link` of iproute2 does, for Soft-RoCE.  softroce calls
// it, on the main thread; an answer of the kernel is waited for at most kAnswerSeconds.  What comes
// in is checked before it is used, though only the kernel can send it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ibnbd::client {

// One port of an RDMA device.
struct RdmaLink {
  std::uint32_t device_index = 0;
  std::string device;
  std::uint32_t port = 0;
  std::uint8_t state = 0;  // As in IB_PORT_...: 1 down, 4 active.
  std::string netdev;      // Empty on InfiniBand.
};

// The programs that have an RDMA device open.
struct RdmaUsers {
  std::uint64_t count = 0;
  std::vector<std::uint32_t> pids;  // Of the threads that opened it; none of other PID namespaces.
};

const char* LinkStateText(std::uint8_t state);

// What softroce needs of the kernel; tests have their own.
class RdmaLinks {
 public:
  virtual ~RdmaLinks() = default;
  // None without the module ib_core.
  virtual absl::StatusOr<std::vector<RdmaLink>> List() = 0;
  // The errno of a refusal is in the Status (ErrnoFromStatus).
  virtual absl::Status AddSoftRoce(const std::string& device, const std::string& netdev) = 0;
  // Requires: nobody has it open.  The kernel waits for those who have, for ever and deaf to
  // signals.
  virtual absl::Status Remove(std::uint32_t device_index) = 0;
  virtual absl::StatusOr<RdmaUsers> Users(std::uint32_t device_index) = 0;
  // Whether the device's own queue pair, over which connections are made, is in error, which ends
  // only with the device.  Soft-RoCE comes to it when its link goes down at the wrong moment.
  virtual absl::StatusOr<bool> CannotConnect(std::uint32_t device_index) = 0;
};

inline constexpr int kAnswerSeconds = 20;
std::unique_ptr<RdmaLinks> KernelRdmaLinks();

// One netlink message, header included, aligned to 4 bytes, as RDMA_NLDEV_CMD_GET and
// RDMA_NLDEV_CMD_PORT_GET answer.  Refuses what is cut short, too long, of another kind, lacks a
// device's index and name, or holds a name that is none.
absl::StatusOr<RdmaLink> ParseDevice(std::span<const std::byte> message);
absl::StatusOr<RdmaLink> ParsePort(std::span<const std::byte> message);
// RDMA_NLDEV_CMD_RES_GET: how many contexts of user space there are; 0 if it does not say.
absl::StatusOr<std::uint64_t> ParseContextCount(std::span<const std::byte> message);
// RDMA_NLDEV_CMD_RES_CTX_GET: whose they are.
absl::StatusOr<std::vector<std::uint32_t>> ParseContextPids(std::span<const std::byte> message);
// RDMA_NLDEV_CMD_RES_QP_GET: whether that for general services (GSI) is among them, and in error.
absl::StatusOr<bool> ParseServicesFailed(std::span<const std::byte> message);

// 1 to 63 letters, digits, and - _ . : inside; what every kernel takes and every file system shows.
bool IsDeviceName(const std::string& name);

}  // namespace ibnbd::client
