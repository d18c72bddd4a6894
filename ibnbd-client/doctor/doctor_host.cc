// SPDX-License-Identifier: Apache-2.0
// The machine that doctor runs on.  The addresses and the session are those that the library would
// use.
#include <ifaddrs.h>
#include <liburing.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/doctor/doctor.h"
#include "ibnbd-client/softroce/rdma_netlink.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

// "10.0.0.2:1234" and "[fe80::1%eth0]:1234" without port and brackets.
std::string WithoutPort(const SocketAddress& address) {
  std::string text = address.ToString();
  text.erase(text.rfind(':'));
  if (!text.empty() && text.front() == '[') text = text.substr(1, text.size() - 2);
  return text;
}

// The network device that has an address, whatever the ports.
std::string NetdevWith(const SocketAddress& wanted) {
  std::string name;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return name;
  for (const ifaddrs* item = list; item != nullptr; item = item->ifa_next) {
    if (item->ifa_addr == nullptr || item->ifa_addr->sa_family != wanted.family) continue;
    const bool is_v6 = wanted.family == AF_INET6;
    const std::size_t offset =
        is_v6 ? offsetof(sockaddr_in6, sin6_addr) : offsetof(sockaddr_in, sin_addr);
    const std::size_t size = is_v6 ? sizeof(in6_addr) : sizeof(in_addr);
    const char* bytes = reinterpret_cast<const char*>(item->ifa_addr);
    if (std::memcmp(bytes + offset, wanted.bytes.data() + offset, size) != 0) continue;
    name = item->ifa_name;
    break;
  }
  freeifaddrs(list);
  return name;
}

class RealDoctorHost final : public DoctorHost {
 public:
  const SystemTree& tree() override { return tree_; }
  bool MayReadAndWrite(const std::string& path) override { return tree_.MayReadAndWrite(path); }
  int TryIoUring() override;
  absl::StatusOr<std::vector<VerbsPort>> TryDevice(const std::string& device) override {
    return OpenVerbsDevice(device);
  }
  absl::StatusOr<bool> CannotConnect(const std::string& device) override;
  absl::StatusOr<std::string> Resolve(const Uri& uri) override;
  absl::StatusOr<Route> RouteTo(const std::string& address) override;
  absl::StatusOr<std::string> TrySession(const Uri& uri, std::uint32_t timeout_ms) override;

 private:
  const SystemTree tree_;
};

int RealDoctorHost::TryIoUring() {
  io_uring ring{};
  const int error = io_uring_queue_init(4, &ring, 0);
  if (error == 0) io_uring_queue_exit(&ring);
  return error;
}

absl::StatusOr<bool> RealDoctorHost::CannotConnect(const std::string& device) {
  const std::unique_ptr<RdmaLinks> links = KernelRdmaLinks();
  ASSIGN_OR_RETURN(const std::vector<RdmaLink> all, links->List());
  for (const RdmaLink& link : all) {
    if (link.device == device) return links->CannotConnect(link.device_index);
  }
  return absl::NotFoundError(absl::StrCat("there is no RDMA device ", device));
}

absl::StatusOr<std::string> RealDoctorHost::Resolve(const Uri& uri) {
  ASSIGN_OR_RETURN(const SocketAddress address, ResolveAddress(uri.host, uri.port));
  return WithoutPort(address);
}

// Connecting a datagram socket sends nothing: the kernel picks the route, and with it the address.
absl::StatusOr<Route> RealDoctorHost::RouteTo(const std::string& address) {
  ASSIGN_OR_RETURN(const SocketAddress peer, ResolveAddress(address, kDefaultPort));
  const std::string what = absl::StrCat("route to ", address);
  const UniqueFd fd(socket(peer.family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, what);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(peer.bytes.data()), peer.length) != 0) {
    return ErrnoStatus(errno, what);
  }
  SocketAddress local;
  socklen_t length = sizeof local.bytes;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(local.bytes.data()), &length) != 0) {
    return ErrnoStatus(errno, what);
  }
  local.family = peer.family;
  local.length = length;
  return Route{WithoutPort(local), NetdevWith(local)};
}

absl::StatusOr<std::string> RealDoctorHost::TrySession(const Uri& uri, std::uint32_t timeout_ms) {
  ASSIGN_OR_RETURN(const Session session, OpenSession(uri.ToString(), "", timeout_ms, 16));
  std::uint64_t time_ns = 0;
  if (const int error = ibnbd_session_ping(session.get(), timeout_ms, &time_ns)) {
    return Annotate(ApiStatus(error), "ping");
  }
  std::string text = absl::StrCat("answers in ", DurationText(static_cast<std::int64_t>(time_ns)));
  if (!uri.export_name.empty()) {
    // Read-only, which disturbs no writer.
    ASSIGN_OR_RETURN(const Device device,
                     OpenDevice(session.get(), uri.export_name, false, timeout_ms, -1));
    ASSIGN_OR_RETURN(const ibnbd_device_info info, DescribeDevice(device.get()));
    absl::StrAppend(&text, "; export ", Printable(uri.export_name), ": ", SizeText(info.size));
  }
  return text;
}

}  // namespace

std::unique_ptr<DoctorHost> ThisDoctorHost() { return std::make_unique<RealDoctorHost>(); }

}  // namespace ibnbd::client
