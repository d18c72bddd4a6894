// SPDX-License-Identifier: Apache-2.0
// Whether libibverbs can open a device that the kernel has, and the MTU of its ports, which the
// kernel tells in no other way.  The client's only use of libibverbs: the library's own errors come
// too late for a diagnosis.
#include <infiniband/verbs.h>

#include <cerrno>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-client/doctor/doctor.h"

namespace ibnbd::client {
namespace {

struct ListDeleter {
  void operator()(ibv_device** list) const { ibv_free_device_list(list); }
};
struct ContextCloser {
  void operator()(ibv_context* context) const { ibv_close_device(context); }
};

std::uint32_t MtuBytes(ibv_mtu mtu) {
  return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

}  // namespace

absl::StatusOr<std::vector<VerbsPort>> OpenVerbsDevice(const std::string& device) {
  int count = 0;
  const std::unique_ptr<ibv_device*, ListDeleter> list(ibv_get_device_list(&count));
  if (list == nullptr) return ErrnoStatus(errno, "libibverbs lists no devices");
  for (int i = 0; i < count; ++i) {
    if (device != ibv_get_device_name(list.get()[i])) continue;
    const std::unique_ptr<ibv_context, ContextCloser> context(ibv_open_device(list.get()[i]));
    if (context == nullptr) return ErrnoStatus(errno, "cannot be opened");
    ibv_device_attr attributes{};
    if (const int error = ibv_query_device(context.get(), &attributes)) {
      return ErrnoStatus(error, "cannot be asked");
    }
    std::vector<VerbsPort> ports;
    for (int port = 1; port <= attributes.phys_port_cnt; ++port) {
      ibv_port_attr port_attributes{};
      const auto number = static_cast<std::uint8_t>(port);
      if (const int error = ibv_query_port(context.get(), number, &port_attributes)) {
        return ErrnoStatus(error, absl::StrCat("port ", port, " cannot be asked"));
      }
      ports.push_back({number, MtuBytes(port_attributes.active_mtu)});
    }
    return ports;
  }
  return absl::NotFoundError("libibverbs has no driver for it, or may not open it");
}

}  // namespace ibnbd::client
