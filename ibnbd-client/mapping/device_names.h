// SPDX-License-Identifier: Apache-2.0
// Names that stay: /dev/ibnbd/SERVER/EXPORT, made by udev.  For each device there is a small file
// that our udev rule imports (60-ibnbd.rules); writing it is followed by a "change" event of the
// device.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/socket_address.h"

namespace ibnbd::client {

// Below /dev: "ibnbd/10.0.0.2/vol0", with ":PORT" behind the server if it is not the default.  What
// udev does not take in names is "\x20", as udev does it; '/' in an export stays.
std::string LinkNameOf(const Uri& uri);

class DeviceNames {
 public:
  // `directory`: "/run/ibnbd/devices".  Made when it is needed.
  explicit DeviceNames(std::string directory) : directory_(std::move(directory)) {}
  absl::Status Add(const std::string& node, const Uri& uri) const;
  void Remove(const std::string& node) const;     // Before the device goes.
  static void Announce(const std::string& node);  // udev looks at the device again.

 private:
  [[nodiscard]] std::string FileOf(const std::string& node) const;
  const std::string directory_;
};

}  // namespace ibnbd::client
