// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/api.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "base/status_macros.h"

namespace ibnbd::client {

absl::Status ApiStatus(int error) {
  std::string text = ibnbd_error_message();
  const std::size_t colon = text.find(": ");
  if (absl::StartsWith(text, "ibnbd_") && colon != std::string::npos) text.erase(0, colon + 2);
  if (text.empty()) text = std::strerror(-error);
  return absl::Status(absl::ErrnoToStatusCode(-error), text);
}

absl::StatusOr<Session> OpenSession(const std::string& uri, const std::string& session_name,
                                    std::uint32_t timeout_ms, std::uint32_t depth) {
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  if (!session_name.empty()) options.name = session_name.c_str();
  options.connect_timeout_ms = timeout_ms;
  options.flags = IBNBD_SESSION_ONE_THREAD;
  options.io_depth_max = depth;
  ibnbd_session* session = nullptr;
  if (const int error = ibnbd_session_open(uri.c_str(), &options, &session)) {
    return ApiStatus(error);
  }
  return Session(session);
}

absl::StatusOr<std::string> ExportOfUri(const std::string& uri) {
  char name[256];
  if (const int error = ibnbd_uri_export(uri.c_str(), name, sizeof name)) return ApiStatus(error);
  return std::string(name);
}

absl::StatusOr<Device> OpenDevice(ibnbd_session* session, const std::string& name, bool to_write,
                                  std::uint32_t timeout_ms, std::int64_t fail_after_ms) {
  ibnbd_device_options options = IBNBD_DEVICE_OPTIONS_INIT;
  options.access = to_write ? IBNBD_READ_WRITE : IBNBD_READ_ONLY;
  options.open_timeout_ms = timeout_ms;
  options.fail_after_ms = fail_after_ms;
  ibnbd_device* device = nullptr;
  if (const int error = ibnbd_device_open(session, name.c_str(), &options, &device)) {
    return ApiStatus(error);
  }
  return Device(device);
}

absl::StatusOr<ibnbd_device_info> DescribeDevice(ibnbd_device* device) {
  ibnbd_device_info info = {};
  info.struct_size = sizeof info;
  if (const int error = ibnbd_device_get_info(device, &info)) return ApiStatus(error);
  return info;
}

absl::StatusOr<struct ibnbd_session_info> DescribeSession(ibnbd_session* session) {
  struct ibnbd_session_info info = {};
  info.struct_size = sizeof info;
  if (const int error = ibnbd_session_get_info(session, &info)) return ApiStatus(error);
  return info;
}

}  // namespace ibnbd::client
