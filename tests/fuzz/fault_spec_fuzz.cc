// SPDX-License-Identifier: Apache-2.0
// ParseFaultSpec(): the argument of --fault.  What it accepts, it can write down and read again.
#include "base/check.h"
#include "fabric/faulty_fabric.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using ibnbd::fabric::ParseFaultSpec;
  const auto spec = ParseFaultSpec({reinterpret_cast<const char*>(data), size});
  if (!spec.ok()) {
    CHECK(!spec.status().message().empty());
    return 0;
  }
  CHECK_LE(spec->delay_ns_min, spec->delay_ns_max);
  CHECK_LE(spec->refuse_ppm, 1'000'000u);
  CHECK_LE(spec->cut_post_ppm, 1'000'000u);
  const auto again = ParseFaultSpec(spec->ToString());
  CHECK(again.ok());
  CHECK(again->ToString() == spec->ToString());
  return 0;
}
