// SPDX-License-Identifier: Apache-2.0
// `ibnbd-client doctor`: all checks, in the order in which people mend things.  Main thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "ibnbd-client/doctor/checks.h"

namespace ibnbd::client {

Findings Examine(DoctorHost& host, const std::optional<Uri>& uri, std::uint32_t timeout_ms);

std::size_t CountOf(const Findings& findings, Verdict verdict);

// The machine that the program runs on.
std::unique_ptr<DoctorHost> ThisDoctorHost();

// doctor_verbs.cc; in a build without RDMA, doctor_no_verbs.cc.
absl::StatusOr<std::vector<VerbsPort>> OpenVerbsDevice(const std::string& device);

}  // namespace ibnbd::client
