// SPDX-License-Identifier: Apache-2.0
// The public header as C++11, pedantically; and that an empty process can use what needs no server.
#include <ibnbd/ibnbd.h>

#include <cstdio>
#include <cstring>
#include <type_traits>

static_assert(std::is_standard_layout<ibnbd_io>::value, "an IO is a C struct");
static_assert(std::is_trivially_copyable<ibnbd_device_info>::value, "so is an info");

int main() {
  ibnbd_session_options session_options = IBNBD_SESSION_OPTIONS_INIT;
  ibnbd_device_options device_options = IBNBD_DEVICE_OPTIONS_INIT;
  ibnbd_device_info info{};
  info.struct_size = sizeof info;
  if (session_options.struct_size != sizeof session_options) return 1;
  if (device_options.struct_size != sizeof device_options) return 2;
  if (ibnbd_device_get_info(nullptr, &info) >= 0) return 3;
  if (std::strstr(ibnbd_error_message(), "ibnbd_device_get_info: ") != ibnbd_error_message())
    return 4;
  ibnbd_buffer_free(nullptr);
  if (ibnbd_device_close(nullptr, 0) != 0 || ibnbd_session_close(nullptr, 0) != 0) return 5;
  std::printf("libibnbd %s\n", ibnbd_version());
  return 0;
}
