// SPDX-License-Identifier: Apache-2.0
// The words that operators of the kernel's RNBD write to map_device:
//   sessname=NAME path=[ip:SOURCE@]ip:ADDRESS [path=...] device_path=PATH [dest_port=N]
//   [access_mode=ro|rw|migration]
// Called once per command, on any thread.  What they can say and we cannot do is refused by name,
// never left out.
#pragma once

#include <ibnbd/ibnbd.h>

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "ibnbd-client/mapping/session_settings.h"

namespace ibnbd::client {

struct RnbdMapping {
  Uri uri;    // With an export; of the first path.
  Ways ways;  // Where that comes from, and the other paths.
  std::string session_name;
  ibnbd_access access = IBNBD_READ_WRITE;
};

// Whether it is one of them: "key=value", and no URI.
bool IsRnbdWord(const std::string& word);
absl::StatusOr<RnbdMapping> ParseRnbdWords(std::span<const std::string> words);

}  // namespace ibnbd::client
