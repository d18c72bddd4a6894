// SPDX-License-Identifier: Apache-2.0
// See nbd_netlink.h.
#include "ibnbd-client/devices/nbd_netlink.h"

#include <linux/nbd-netlink.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

// The kernel answers when it is done; disconnecting waits for its receivers to end, which they do.
constexpr int kAnswerTimeS = 10;
constexpr const char* kNoModule =
    "the kernel's NBD client is not there: load the module (modprobe nbd)";
// Linux 5.14; headers may be older.
constexpr int kAttrBackendIdentifier = 10;

struct SocketFree {
  void operator()(nl_sock* socket) const { nl_socket_free(socket); }
};
struct MessageFree {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
using Socket = std::unique_ptr<nl_sock, SocketFree>;
using Message = std::unique_ptr<nl_msg, MessageFree>;

// libnl's error codes for those that tell something of their own.
int ErrnoOf(int nl_error) {
  switch (-nl_error) {
    case NLE_SUCCESS:
      return 0;
    case NLE_AGAIN:
      return -ETIMEDOUT;
    case NLE_BUSY:
      return -EBUSY;
    case NLE_PERM:
      return -EPERM;
    case NLE_NOMEM:
      return -ENOMEM;
    case NLE_NODEV:
      return -ENODEV;
    case NLE_EXIST:
      return -EEXIST;
    case NLE_OBJ_NOTFOUND:
      return -ENOENT;
    case NLE_INVAL:
      return -EINVAL;
    default:
      return -EIO;
  }
}

// One request.  Its own socket: requests are few, and threads do not meet.
class Request {
 public:
  absl::Status Begin(std::uint8_t command) {
    socket_.reset(nl_socket_alloc());
    message_.reset(nlmsg_alloc_size(64 * 1024));
    if (socket_ == nullptr || message_ == nullptr) return ErrnoStatus(ENOMEM, "netlink");
    if (const int error = genl_connect(socket_.get()); error < 0) {
      return ErrnoStatus(ErrnoOf(error), "connect to generic netlink");
    }
    const timeval bound{.tv_sec = kAnswerTimeS, .tv_usec = 0};
    const int fd = nl_socket_get_fd(socket_.get());
    if (::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)) != 0) {
      return ErrnoStatus(errno, "netlink: SO_RCVTIMEO");
    }
    const int family = genl_ctrl_resolve(socket_.get(), NBD_GENL_FAMILY_NAME);
    if (family == -NLE_OBJ_NOTFOUND) return absl::NotFoundError(kNoModule);
    if (family < 0) return ErrnoStatus(ErrnoOf(family), "look for the kernel's NBD client");
    genlmsg_put(message_.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, 0, command, NBD_GENL_VERSION);
    return absl::OkStatus();
  }

  // Cannot fail: the message has room for all that there is.
  void Put(int attribute, std::uint32_t value) { nla_put_u32(message_.get(), attribute, value); }
  void Put64(int attribute, std::uint64_t value) { nla_put_u64(message_.get(), attribute, value); }
  void Put(int attribute, const char* text) { nla_put_string(message_.get(), attribute, text); }
  void PutSockets(std::span<const int> sockets) {
    nlattr* list = nla_nest_start(message_.get(), NBD_ATTR_SOCKETS | NLA_F_NESTED);
    for (const int fd : sockets) {
      nlattr* item = nla_nest_start(message_.get(), NBD_SOCK_ITEM | NLA_F_NESTED);
      Put(NBD_SOCK_FD, static_cast<std::uint32_t>(fd));
      nla_nest_end(message_.get(), item);
    }
    nla_nest_end(message_.get(), list);
  }

  using Answer = absl::FunctionRef<void(nlattr** attributes)>;

  // Sends, and waits for the answer and for the acknowledgement that follows it.  0 or a negative
  // errno.
  int Run(Answer on_answer) {
    const auto on_message = [](nl_msg* message, void* opaque) {
      nlattr* attributes[NBD_ATTR_MAX + 1];
      if (genlmsg_parse(nlmsg_hdr(message), 0, attributes, NBD_ATTR_MAX, nullptr) == 0) {
        (*static_cast<Answer*>(opaque))(attributes);
      }
      return static_cast<int>(NL_OK);
    };
    nl_socket_modify_cb(socket_.get(), NL_CB_VALID, NL_CB_CUSTOM, on_message, &on_answer);
    int result = nl_send_auto(socket_.get(), message_.get());
    if (result >= 0) result = nl_wait_for_ack(socket_.get());
    return ErrnoOf(result);
  }
  int Run() {
    return Run([](nlattr**) {});
  }

 private:
  Socket socket_;
  Message message_;
};

}  // namespace

absl::StatusOr<int> NbdConnect(const NbdConnectOptions& options, std::span<const int> sockets) {
  Request request;
  RETURN_IF_ERROR(request.Begin(NBD_CMD_CONNECT));
  if (options.index >= 0) request.Put(NBD_ATTR_INDEX, static_cast<std::uint32_t>(options.index));
  request.Put64(NBD_ATTR_SIZE_BYTES, options.size_bytes);
  request.Put64(NBD_ATTR_BLOCK_SIZE_BYTES, options.block_size);
  request.Put64(NBD_ATTR_SERVER_FLAGS, options.server_flags);
  request.Put64(NBD_ATTR_TIMEOUT,
                0);  // None: an IO is held for as long as its volume's policy says.
  request.Put64(NBD_ATTR_DEAD_CONN_TIMEOUT, options.dead_connection_s);
  request.Put(kAttrBackendIdentifier, options.identifier);
  request.PutSockets(sockets);
  int index = -1;
  const int error = request.Run([&index](nlattr** attributes) {
    if (attributes[NBD_ATTR_INDEX] != nullptr) {
      index = static_cast<int>(nla_get_u32(attributes[NBD_ATTR_INDEX]));
    }
  });
  if (error == -EBUSY && options.index >= 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("/dev/nbd", options.index, " is in use; leave the number away"));
  }
  if (error != 0) return ErrnoStatus(error, "attach to the kernel's NBD client");
  if (index < 0) return absl::InternalError("the kernel did not say which /dev/nbdN it chose");
  return index;
}

absl::Status NbdDisconnect(int index) {
  Request request;
  RETURN_IF_ERROR(request.Begin(NBD_CMD_DISCONNECT));
  request.Put(NBD_ATTR_INDEX, static_cast<std::uint32_t>(index));
  const int error = request.Run();
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, absl::StrCat("detach /dev/nbd", index));
}

absl::Status NbdReconfigure(int index, const char* identifier, std::span<const int> sockets) {
  Request request;
  RETURN_IF_ERROR(request.Begin(NBD_CMD_RECONFIGURE));
  request.Put(NBD_ATTR_INDEX, static_cast<std::uint32_t>(index));
  request.Put(kAttrBackendIdentifier, identifier);
  request.PutSockets(sockets);
  const int error = request.Run();
  const std::string what = absl::StrCat("take over /dev/nbd", index);
  if (error == -EINVAL) {
    return absl::FailedPreconditionError(
        absl::StrCat(what,
                     ": it is not what was left; perhaps another program has detached it, and "
                     "it is still in use: unmap it"));
  }
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, what);
}

}  // namespace ibnbd::client
