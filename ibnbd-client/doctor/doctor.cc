// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/doctor/doctor.h"

#include <algorithm>

namespace ibnbd::client {

Findings Examine(DoctorHost& host, const std::optional<Uri>& uri, std::uint32_t timeout_ms) {
  Findings findings;
  CheckKernel(host, findings);
  const Need need = !uri.has_value()        ? Need::kOptional
                    : uri->scheme == "rdma" ? Need::kRequired
                                            : Need::kNone;
  CheckRdma(host, need, findings);
  if (uri.has_value()) CheckUri(host, *uri, timeout_ms, findings);
  return findings;
}

std::size_t CountOf(const Findings& findings, Verdict verdict) {
  return static_cast<std::size_t>(
      std::count_if(findings.begin(), findings.end(),
                    [verdict](const Finding& finding) { return finding.verdict == verdict; }));
}

}  // namespace ibnbd::client
