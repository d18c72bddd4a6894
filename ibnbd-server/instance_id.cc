// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/instance_id.h"

#include <sys/random.h>

#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/log.h"

namespace ibnbd {

std::optional<InstanceId> ParseUuid(absl::string_view text) {
  const std::string digits = absl::StrReplaceAll(absl::StripAsciiWhitespace(text), {{"-", ""}});
  InstanceId id{};
  if (digits.size() != 2 * id.size()) return std::nullopt;
  for (const char digit : digits) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(digit))) return std::nullopt;
  }
  const std::string bytes = absl::HexStringToBytes(digits);
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::uint8_t>(bytes[i]);
  if (id == InstanceId{}) return std::nullopt;  // On the wire: not known.
  return id;
}

InstanceId ReadInstanceId(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  if (const auto id = ParseUuid(line)) return *id;
  LOG_WARN(path,
           " does not say which boot this is: clients will take a restart of this process "
           "for a power loss");
  InstanceId id{};
  (void)!::getrandom(id.data(), id.size(), 0);
  id[0] |= 1;  // Never all zero.
  return id;
}

}  // namespace ibnbd
