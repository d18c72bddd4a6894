// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/softroce/rdma_netlink.h"

#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <rdma/rdma_netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <functional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

// enum ib_port_state of the kernel.
constexpr const char* kStates[] = {"NOP", "DOWN", "INIT", "ARMED", "ACTIVE", "ACTIVE_DEFER"};
constexpr std::uint8_t kServicesType = 1;           // IB_QPT_GSI of the kernel.
constexpr std::uint8_t kErrorState = 6;             // IB_QPS_ERR.
constexpr int kTableMax = RDMA_NLDEV_ATTR_RES_CTX;  // The largest attribute that is looked at.
constexpr std::size_t kNameMax = 63;                // IB_DEVICE_NAME_MAX less the zero.

static_assert(kTableMax >= RDMA_NLDEV_ATTR_NDEV_NAME &&
              kTableMax >= RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_CURR &&
              kTableMax >= RDMA_NLDEV_ATTR_RES_PID);

constexpr int MessageType(int command) { return RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, command); }

struct SocketDeleter {
  void operator()(nl_sock* socket) const { nl_socket_free(socket); }
};
struct MessageDeleter {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
struct CallbacksDeleter {
  void operator()(nl_cb* callbacks) const { nl_cb_put(callbacks); }
};
using Socket = std::unique_ptr<nl_sock, SocketDeleter>;
using Message = std::unique_ptr<nl_msg, MessageDeleter>;
using Callbacks = std::unique_ptr<nl_cb, CallbacksDeleter>;
using Sink = std::function<absl::Status(std::span<const std::byte>)>;

// What one progress has come to, for libnl's callbacks.
struct Progress {
  const Sink& sink;
  absl::Status status;
  int error = 0;  // Of the kernel: positive.
  bool done = false;
};

int OnMessage(nl_msg* message, void* opaque) {
  auto& progress = *static_cast<Progress*>(opaque);
  const nlmsghdr* header = nlmsg_hdr(message);
  const auto* bytes = reinterpret_cast<const std::byte*>(header);
  if (progress.status.ok()) progress.status = progress.sink({bytes, header->nlmsg_len});
  return NL_OK;
}

int OnEnd(nl_msg*, void* opaque) {
  static_cast<Progress*>(opaque)->done = true;
  return NL_STOP;
}

int OnError(sockaddr_nl*, nlmsgerr* error, void* opaque) {
  auto& progress = *static_cast<Progress*>(opaque);
  progress.error = error->error < 0 ? -error->error : EPROTO;
  progress.done = true;
  return NL_STOP;
}

absl::Status LibraryStatus(int error, const std::string& what) {
  return absl::InternalError(absl::StrCat(what, ": ", nl_geterror(error)));
}

absl::StatusOr<Socket> Connect() {
  Socket socket(nl_socket_alloc());
  if (socket == nullptr) return absl::ResourceExhaustedError("RDMA netlink: no memory");
  errno = 0;
  if (const int error = nl_connect(socket.get(), NETLINK_RDMA); error < 0) {
    if (errno != 0) return ErrnoStatus(errno, "RDMA netlink: connect");
    return LibraryStatus(error, "RDMA netlink: connect");
  }
  const timeval bound{kAnswerSeconds, 0};
  if (setsockopt(nl_socket_get_fd(socket.get()), SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound)) {
    return ErrnoStatus(errno, "RDMA netlink: time limit");
  }
  return socket;
}

// Sends, and gives what comes back to the sink until the kernel says that this was all.
absl::Status Exchange(nl_msg* message, const std::string& what, const Sink& sink) {
  ASSIGN_OR_RETURN(const Socket socket, Connect());
  nl_socket_disable_auto_ack(socket.get());  // The flags of the message say what is wanted.
  const Callbacks callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  if (callbacks == nullptr) return absl::ResourceExhaustedError("RDMA netlink: no memory");
  Progress progress{sink, {}};
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, OnMessage, &progress);
  nl_cb_set(callbacks.get(), NL_CB_FINISH, NL_CB_CUSTOM, OnEnd, &progress);
  nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, OnEnd, &progress);
  nl_cb_err(callbacks.get(), NL_CB_CUSTOM, OnError, &progress);
  if (const int error = nl_send_auto(socket.get(), message); error < 0) {
    return LibraryStatus(error, what);
  }
  while (!progress.done) {
    const int error = nl_recvmsgs(socket.get(), callbacks.get());
    if (progress.done) break;
    if (error == -NLE_AGAIN) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, ": no answer of the kernel in ", kAnswerSeconds, " seconds"));
    }
    if (error < 0) return LibraryStatus(error, what);
  }
  if (progress.error != 0) return ErrnoStatus(progress.error, what);
  return progress.status.ok() ? progress.status : Annotate(progress.status, what);
}

absl::StatusOr<Message> NewMessage(int command, int flags) {
  Message message(nlmsg_alloc_simple(MessageType(command), flags));
  if (message == nullptr) return absl::ResourceExhaustedError("RDMA netlink: no memory");
  return message;
}

// The attributes of a message of this kind: tb has kTableMax + 1 places.
absl::Status ParseAttributes(std::span<const std::byte> bytes, int command, nlattr** tb) {
  if (bytes.size() < sizeof(nlmsghdr)) {
    return absl::DataLossError(absl::StrCat("a message of ", bytes.size(), " bytes"));
  }
  // libnl's functions take no const, and write nothing.
  auto* header = reinterpret_cast<nlmsghdr*>(const_cast<std::byte*>(bytes.data()));
  if (header->nlmsg_len < sizeof(nlmsghdr) || header->nlmsg_len > bytes.size()) {
    return absl::DataLossError(absl::StrCat("a message that says it has ", header->nlmsg_len,
                                            " bytes, and has ", bytes.size()));
  }
  if (header->nlmsg_type != MessageType(command)) {
    return absl::DataLossError(absl::StrCat("a message of type ", header->nlmsg_type));
  }
  // libnl demands a zero at the end of NLA_STRING, and not of NLA_NUL_STRING.
  nla_policy policy[kTableMax + 1] = {};
  policy[RDMA_NLDEV_ATTR_DEV_INDEX].type = NLA_U32;
  policy[RDMA_NLDEV_ATTR_DEV_NAME].type = NLA_STRING;
  policy[RDMA_NLDEV_ATTR_PORT_INDEX].type = NLA_U32;
  policy[RDMA_NLDEV_ATTR_PORT_STATE].type = NLA_U8;
  policy[RDMA_NLDEV_ATTR_NDEV_NAME].type = NLA_STRING;
  policy[RDMA_NLDEV_ATTR_RES_SUMMARY].type = NLA_NESTED;
  policy[RDMA_NLDEV_ATTR_RES_CTX].type = NLA_NESTED;
  policy[RDMA_NLDEV_ATTR_RES_QP].type = NLA_NESTED;
  if (const int error = nlmsg_parse(header, 0, tb, kTableMax, policy); error < 0) {
    return absl::DataLossError(absl::StrCat("a message that is damaged: ", nl_geterror(error)));
  }
  return absl::OkStatus();
}

// The entries of `table`, one after the other, until one is damaged.
absl::Status ForEachEntry(const nlattr* table, int entry_type, int max, nla_policy* policy,
                          const std::function<void(nlattr**)>& visit) {
  nlattr* entry = nullptr;
  int left = 0;
  nla_for_each_nested(entry, table, left) {
    nlattr* tb[kTableMax + 1] = {};
    if (nla_type(entry) != entry_type) continue;
    if (nla_parse_nested(tb, max, entry, policy) < 0) {
      return absl::DataLossError("a message with a table that is damaged");
    }
    visit(tb);
  }
  return absl::OkStatus();
}

absl::StatusOr<RdmaLink> Parse(std::span<const std::byte> message, int command) {
  nlattr* tb[kTableMax + 1] = {};
  RETURN_IF_ERROR(ParseAttributes(message, command, tb));
  if (tb[RDMA_NLDEV_ATTR_DEV_INDEX] == nullptr || tb[RDMA_NLDEV_ATTR_DEV_NAME] == nullptr) {
    return absl::DataLossError("a message without an index and a name");
  }
  RdmaLink link;
  link.device_index = nla_get_u32(tb[RDMA_NLDEV_ATTR_DEV_INDEX]);
  link.device = nla_get_string(tb[RDMA_NLDEV_ATTR_DEV_NAME]);
  if (!IsDeviceName(link.device)) return absl::DataLossError("a device whose name is none");
  if (const nlattr* port = tb[RDMA_NLDEV_ATTR_PORT_INDEX]) link.port = nla_get_u32(port);
  if (const nlattr* state = tb[RDMA_NLDEV_ATTR_PORT_STATE]) link.state = nla_get_u8(state);
  if (const nlattr* netdev = tb[RDMA_NLDEV_ATTR_NDEV_NAME]) link.netdev = nla_get_string(netdev);
  return link;
}

class NetlinkRdmaLinks final : public RdmaLinks {
 public:
  absl::StatusOr<std::vector<RdmaLink>> List() override;
  absl::Status AddSoftRoce(const std::string& device, const std::string& netdev) override;
  absl::Status Remove(std::uint32_t device_index) override;
  absl::StatusOr<RdmaUsers> Users(std::uint32_t device_index) override;
  absl::StatusOr<bool> CannotConnect(std::uint32_t device_index) override;
};

absl::StatusOr<Message> MessageAbout(std::uint32_t device_index, int command, int flags) {
  ASSIGN_OR_RETURN(Message message, NewMessage(command, flags));
  if (nla_put_u32(message.get(), RDMA_NLDEV_ATTR_DEV_INDEX, device_index) < 0) {
    return absl::ResourceExhaustedError("RDMA netlink: no memory");
  }
  return message;
}

absl::StatusOr<std::vector<RdmaLink>> NetlinkRdmaLinks::List() {
  std::vector<RdmaLink> devices, links;
  ASSIGN_OR_RETURN(const Message all, NewMessage(RDMA_NLDEV_CMD_GET, NLM_F_REQUEST | NLM_F_DUMP));
  const absl::Status listed =
      Exchange(all.get(), "list RDMA devices", [&devices](std::span<const std::byte> message) {
        ASSIGN_OR_RETURN(RdmaLink device, ParseDevice(message));
        devices.push_back(std::move(device));
        return absl::OkStatus();
      });
  if (ErrnoFromStatus(listed) == -EPROTONOSUPPORT) return links;  // No ib_core.
  RETURN_IF_ERROR(listed);
  for (const RdmaLink& device : devices) {
    ASSIGN_OR_RETURN(const Message ports, MessageAbout(device.device_index, RDMA_NLDEV_CMD_PORT_GET,
                                                       NLM_F_REQUEST | NLM_F_DUMP));
    const std::string what = absl::StrCat("list the ports of RDMA device ", device.device);
    const absl::Status status =
        Exchange(ports.get(), what, [&links](std::span<const std::byte> message) {
          ASSIGN_OR_RETURN(RdmaLink link, ParsePort(message));
          links.push_back(std::move(link));
          return absl::OkStatus();
        });
    // Removed since it was listed.
    if (ErrnoFromStatus(status) == -ENODEV || ErrnoFromStatus(status) == -EINVAL) continue;
    RETURN_IF_ERROR(status);
  }
  return links;
}

absl::Status NetlinkRdmaLinks::AddSoftRoce(const std::string& device, const std::string& netdev) {
  ASSIGN_OR_RETURN(const Message message,
                   NewMessage(RDMA_NLDEV_CMD_NEWLINK, NLM_F_REQUEST | NLM_F_ACK));
  if (nla_put_string(message.get(), RDMA_NLDEV_ATTR_DEV_NAME, device.c_str()) < 0 ||
      nla_put_string(message.get(), RDMA_NLDEV_ATTR_LINK_TYPE, "rxe") < 0 ||
      nla_put_string(message.get(), RDMA_NLDEV_ATTR_NDEV_NAME, netdev.c_str()) < 0) {
    return absl::ResourceExhaustedError("RDMA netlink: no memory");
  }
  return Exchange(message.get(), absl::StrCat("add ", device, " on ", netdev),
                  [](std::span<const std::byte>) { return absl::OkStatus(); });
}

absl::Status NetlinkRdmaLinks::Remove(std::uint32_t device_index) {
  ASSIGN_OR_RETURN(const Message message,
                   MessageAbout(device_index, RDMA_NLDEV_CMD_DELLINK, NLM_F_REQUEST | NLM_F_ACK));
  return Exchange(message.get(), "remove",
                  [](std::span<const std::byte>) { return absl::OkStatus(); });
}

absl::StatusOr<RdmaUsers> NetlinkRdmaLinks::Users(std::uint32_t device_index) {
  RdmaUsers users;
  // A request for one device is answered by one message, and then by an acknowledgement.
  ASSIGN_OR_RETURN(const Message summary,
                   MessageAbout(device_index, RDMA_NLDEV_CMD_RES_GET, NLM_F_REQUEST | NLM_F_ACK));
  RETURN_IF_ERROR(Exchange(summary.get(), "count the users of an RDMA device",
                           [&users](std::span<const std::byte> message) {
                             ASSIGN_OR_RETURN(users.count, ParseContextCount(message));
                             return absl::OkStatus();
                           }));
  if (users.count == 0) return users;
  ASSIGN_OR_RETURN(const Message contexts, MessageAbout(device_index, RDMA_NLDEV_CMD_RES_CTX_GET,
                                                        NLM_F_REQUEST | NLM_F_DUMP));
  // Older kernels do not say who: the number does.
  Exchange(contexts.get(), "list the users of an RDMA device",
           [&users](std::span<const std::byte> message) {
             ASSIGN_OR_RETURN(const std::vector<std::uint32_t> pids, ParseContextPids(message));
             users.pids.insert(users.pids.end(), pids.begin(), pids.end());
             return absl::OkStatus();
           })
      .IgnoreError();
  return users;
}

absl::StatusOr<bool> NetlinkRdmaLinks::CannotConnect(std::uint32_t device_index) {
  bool failed = false;
  ASSIGN_OR_RETURN(const Message pairs, MessageAbout(device_index, RDMA_NLDEV_CMD_RES_QP_GET,
                                                     NLM_F_REQUEST | NLM_F_DUMP));
  RETURN_IF_ERROR(Exchange(pairs.get(), "list the queue pairs of an RDMA device",
                           [&failed](std::span<const std::byte> message) {
                             ASSIGN_OR_RETURN(const bool here, ParseServicesFailed(message));
                             failed = failed || here;
                             return absl::OkStatus();
                           }));
  return failed;
}

}  // namespace

const char* LinkStateText(std::uint8_t state) {
  return state < std::size(kStates) ? kStates[state] : "unknown";
}

std::unique_ptr<RdmaLinks> KernelRdmaLinks() { return std::make_unique<NetlinkRdmaLinks>(); }

absl::StatusOr<RdmaLink> ParseDevice(std::span<const std::byte> message) {
  return Parse(message, RDMA_NLDEV_CMD_GET);
}

absl::StatusOr<RdmaLink> ParsePort(std::span<const std::byte> message) {
  ASSIGN_OR_RETURN(RdmaLink link, Parse(message, RDMA_NLDEV_CMD_PORT_GET));
  if (link.port == 0) return absl::DataLossError("a port without a number");
  return link;
}

absl::StatusOr<std::uint64_t> ParseContextCount(std::span<const std::byte> message) {
  nlattr* tb[kTableMax + 1] = {};
  RETURN_IF_ERROR(ParseAttributes(message, RDMA_NLDEV_CMD_RES_GET, tb));
  std::uint64_t count = 0;
  const nlattr* table = tb[RDMA_NLDEV_ATTR_RES_SUMMARY];
  if (table == nullptr) return count;
  constexpr int kName = RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_NAME;
  constexpr int kCurrent = RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_CURR;
  nla_policy policy[kTableMax + 1] = {};
  policy[kName].type = NLA_STRING;
  policy[kCurrent].type = NLA_U64;
  RETURN_IF_ERROR(ForEachEntry(table, RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY, kCurrent, policy,
                               [&count](nlattr** entry) {
                                 if (entry[kName] == nullptr || entry[kCurrent] == nullptr) return;
                                 const std::string name = nla_get_string(entry[kName]);
                                 if (name == "ctx") count = nla_get_u64(entry[kCurrent]);
                               }));
  return count;
}

absl::StatusOr<std::vector<std::uint32_t>> ParseContextPids(std::span<const std::byte> message) {
  nlattr* tb[kTableMax + 1] = {};
  RETURN_IF_ERROR(ParseAttributes(message, RDMA_NLDEV_CMD_RES_CTX_GET, tb));
  std::vector<std::uint32_t> pids;
  const nlattr* table = tb[RDMA_NLDEV_ATTR_RES_CTX];
  if (table == nullptr) return pids;
  nla_policy policy[kTableMax + 1] = {};
  policy[RDMA_NLDEV_ATTR_RES_PID].type = NLA_U32;
  RETURN_IF_ERROR(ForEachEntry(table, RDMA_NLDEV_ATTR_RES_CTX_ENTRY, RDMA_NLDEV_ATTR_RES_PID,
                               policy, [&pids](nlattr** entry) {
                                 const nlattr* pid = entry[RDMA_NLDEV_ATTR_RES_PID];
                                 if (pid != nullptr) pids.push_back(nla_get_u32(pid));
                               }));
  return pids;
}

absl::StatusOr<bool> ParseServicesFailed(std::span<const std::byte> message) {
  nlattr* tb[kTableMax + 1] = {};
  RETURN_IF_ERROR(ParseAttributes(message, RDMA_NLDEV_CMD_RES_QP_GET, tb));
  bool failed = false;
  const nlattr* table = tb[RDMA_NLDEV_ATTR_RES_QP];
  if (table == nullptr) return failed;
  nla_policy policy[kTableMax + 1] = {};
  policy[RDMA_NLDEV_ATTR_RES_TYPE].type = NLA_U8;
  policy[RDMA_NLDEV_ATTR_RES_STATE].type = NLA_U8;
  RETURN_IF_ERROR(ForEachEntry(table, RDMA_NLDEV_ATTR_RES_QP_ENTRY, RDMA_NLDEV_ATTR_RES_STATE,
                               policy, [&failed](nlattr** entry) {
                                 const nlattr* type = entry[RDMA_NLDEV_ATTR_RES_TYPE];
                                 const nlattr* state = entry[RDMA_NLDEV_ATTR_RES_STATE];
                                 if (type == nullptr || state == nullptr) return;
                                 failed = failed || (nla_get_u8(type) == kServicesType &&
                                                     nla_get_u8(state) == kErrorState);
                               }));
  return failed;
}

bool IsDeviceName(const std::string& name) {
  if (name.empty() || name.size() > kNameMax || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' ||
           c == ':';
  });
}

}  // namespace ibnbd::client
