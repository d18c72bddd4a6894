// SPDX-License-Identifier: Apache-2.0
// What `ibnbd-client doctor` looks at, group by group.  Each check reads the machine through
// DoctorHost, which tests replace, and adds its findings; none changes anything or fails.  Main
// thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "ibnbd-client/system/system_tree.h"

namespace ibnbd::client {

enum class Verdict {
  kOk,
  kWarning,    // Works, but something would not, or not well.
  kProblem,    // Does not work.
  kNotNeeded,  // For what was asked.
};
const char* VerdictText(Verdict verdict);  // "ok", "warning", "problem", "not needed".

struct Finding {
  std::string check;    // "port": stable, for programs.
  std::string subject;  // "rxe_eth0/1"; empty when there is one only.
  Verdict verdict = Verdict::kOk;
  std::string text;  // One line.
  std::string fix;   // A command, if there is something to mend.
};
using Findings = std::vector<Finding>;

// A port as libibverbs sees it.
struct VerbsPort {
  std::uint32_t number = 0;
  std::uint32_t active_mtu = 0;  // Bytes.
};

// From where packets to an address would go.
struct Route {
  std::string source;  // Numeric.
  std::string netdev;  // That has the source address; empty if none has.
};

class DoctorHost {
 public:
  virtual ~DoctorHost() = default;
  virtual const SystemTree& tree() = 0;
  virtual bool MayReadAndWrite(const std::string& path) = 0;
  // Sets an io_uring up and takes it down again: 0 or a negative errno.
  virtual int TryIoUring() = 0;
  // Opens a device with libibverbs.  kNotFound: it has no driver for it; kUnimplemented: this build
  // has no RDMA.
  virtual absl::StatusOr<std::vector<VerbsPort>> TryDevice(const std::string& device) = 0;
  // Whether the kernel says that no connection can be made over it (RdmaLinks::CannotConnect).
  virtual absl::StatusOr<bool> CannotConnect(const std::string& device) = 0;
  virtual absl::StatusOr<std::string> Resolve(const Uri& uri) = 0;  // A numeric address.
  virtual absl::StatusOr<Route> RouteTo(const std::string& address) = 0;
  // A session, a ping, and the export if the URI names one (read-only): says how it went.
  virtual absl::StatusOr<std::string> TrySession(const Uri& uri, std::uint32_t timeout_ms) = 0;
};

// How much is RDMA needed?  Not at all for tcp://, for rdma:// it is; when nobody said, what is
// there should work.
enum class Need { kNone, kOptional, kRequired };

void CheckKernel(DoctorHost& host, Findings& findings);  // io_uring, huge pages, ublk, nbd.
void CheckRdma(DoctorHost& host, Need need, Findings& findings);
void CheckUri(DoctorHost& host, const Uri& uri, std::uint32_t timeout_ms, Findings& findings);

}  // namespace ibnbd::client
