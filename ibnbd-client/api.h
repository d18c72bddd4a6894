// SPDX-License-Identifier: Apache-2.0
// The C API with owners and with Status.  Whatever fails says what the library said.
#pragma once

#include <ibnbd/ibnbd.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace ibnbd::client {

// The library's text, without the name of the C function that it begins with.
absl::Status ApiStatus(int error);

struct SessionCloser {
  // Long enough for the server to answer, short enough for people.
  void operator()(ibnbd_session* session) const { ibnbd_session_close(session, 5000); }
};
using Session = std::unique_ptr<ibnbd_session, SessionCloser>;
struct DeviceCloser {
  void operator()(ibnbd_device* device) const { ibnbd_device_close(device, 5000); }
};
using Device = std::unique_ptr<ibnbd_device, DeviceCloser>;

// An empty name: the library makes one up.
absl::StatusOr<Session> OpenSession(const std::string& uri, const std::string& session_name,
                                    std::uint32_t timeout_ms, std::uint32_t depth = 64);
absl::StatusOr<std::string> ExportOfUri(const std::string& uri);
absl::StatusOr<Device> OpenDevice(ibnbd_session* session, const std::string& name, bool to_write,
                                  std::uint32_t timeout_ms, std::int64_t fail_after_ms);
absl::StatusOr<ibnbd_device_info> DescribeDevice(ibnbd_device* device);
absl::StatusOr<struct ibnbd_session_info> DescribeSession(ibnbd_session* session);

}  // namespace ibnbd::client
