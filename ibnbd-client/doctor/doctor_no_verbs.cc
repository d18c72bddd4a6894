// SPDX-License-Identifier: Apache-2.0
// In place of doctor_verbs.cc, in a build without RDMA.
#include "ibnbd-client/doctor/doctor.h"

namespace ibnbd::client {

absl::StatusOr<std::vector<VerbsPort>> OpenVerbsDevice(const std::string&) {
  return absl::UnimplementedError("this program was built without RDMA (libibverbs, librdmacm)");
}

}  // namespace ibnbd::client
