// SPDX-License-Identifier: Apache-2.0
// Names that stay: /dev/ibnbd/SERVER/EXPORT, made by udev.  For each device there is a small file
// that our udev rule imports (60-ibnbd.rules), written before anybody can use the device and taken
// away before the device goes: one that stays behind would lead to whatever gets its number next.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "base/unique_fd.h"

namespace ibnbd::client {

// Below /dev: "ibnbd/10.0.0.2/vol0", with ":PORT" behind the server if it is not the default.  What
// udev does not take in names is "\x20", as udev does it; '/' in an export stays.
std::string LinkNameOf(const Uri& uri);

class DeviceNames {
 public:
  // `directory`: "/run/ibnbd/devices".  Made when it is needed.
  explicit DeviceNames(std::string directory) : directory_(std::move(directory)) {}
  // Instead of any that is there; the old file or the new one is read, never a part.
  absl::Status Write(const std::string& node, const Uri& uri) const;
  // Of a process whose devices end with it: RemoveStale() leaves the file alone until the
  // descriptor is closed.
  absl::StatusOr<UniqueFd> WriteHeld(const std::string& node, const Uri& uri) const;
  void Remove(const std::string& node) const;  // It may not be there.
  // Takes away what processes left that were killed, and announces it: files that were held and are
  // not any more; with `known`, the nodes there are, also those of others that are not held.
  void RemoveStale(const std::vector<std::string>* known) const;
  static void Announce(const std::string& node);  // udev looks at the device again.

 private:
  [[nodiscard]] std::string FileOf(const std::string& node) const;
  absl::StatusOr<UniqueFd> Replace(const std::string& node, const Uri& uri, bool hold) const;
  const std::string directory_;
};

}  // namespace ibnbd::client
