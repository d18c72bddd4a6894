// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_device_events.h"

#include <fcntl.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "fabric/verbs/verbs_domain.h"

namespace ibnbd::verbs {

absl::StatusOr<int> DeviceEventsFd(ibv_context* context) {
  const int fd = context->async_fd;
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rdma: events of ", DeviceName(context)));
  }
  return fd;
}

std::string DeviceEventText(const char* device, ibv_event_type type, int port_num) {
  switch (type) {
    case IBV_EVENT_PORT_ERR:
      return absl::StrCat(device, ": port ", port_num, " is down: IO through it waits");
    case IBV_EVENT_PORT_ACTIVE:
      return absl::StrCat(device, ": port ", port_num, " is up");
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_GID_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
      return absl::StrCat(device, ": port ", port_num, ": ", ibv_event_type_str(type));
    case IBV_EVENT_DEVICE_FATAL:
      return absl::StrCat(device, ": the device has failed");
    case IBV_EVENT_CQ_ERR:
      return absl::StrCat(device, ": a completion queue has failed");
    default:
      return "";  // Of queue pairs: their completions tell the same.
  }
}

void ReadDeviceEvents(ibv_context* context) {
  ibv_async_event event{};
  while (ibv_get_async_event(context, &event) == 0) {
    const std::string text =
        DeviceEventText(DeviceName(context).c_str(), event.event_type, event.element.port_num);
    const bool good = event.event_type == IBV_EVENT_PORT_ACTIVE;
    ibv_ack_async_event(&event);  // Destroying what it names waits for this.
    if (text.empty()) continue;
    if (good) {
      LOG_INFO("rdma: ", text);
    } else {
      LOG_WARN("rdma: ", text);
    }
  }
}

}  // namespace ibnbd::verbs
