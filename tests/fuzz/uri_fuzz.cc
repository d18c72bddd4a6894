// SPDX-License-Identifier: Apache-2.0
// ParseUri(): the URIs that users, configuration files and scripts write.  What it accepts, it can
// write down and read again as the same.
#include "base/check.h"
#include "base/socket_address.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  for (const char* default_scheme : {"", "tcp"}) {
    const absl::StatusOr<ibnbd::Uri> uri = ibnbd::ParseUri(text, default_scheme);
    if (!uri.ok()) {
      CHECK(!uri.status().message().empty());
      continue;
    }
    const absl::StatusOr<ibnbd::Uri> again = ibnbd::ParseUri(uri->ToString());
    CHECK(again.ok());
    CHECK(again->scheme == uri->scheme && again->host == uri->host);
    CHECK(again->port == uri->port && again->export_name == uri->export_name);
  }
  return 0;
}
