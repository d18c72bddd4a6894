// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_domain.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "fabric/verbs/verbs_fabric.h"
#include "fabric/verbs/verbs_translate.h"

namespace ibnbd::verbs {
namespace {

absl::Status RegisterError(int error, std::size_t size, const ibv_context* context) {
  const std::string what =
      absl::StrCat("rdma: register ", size, " bytes with ", DeviceName(context));
  rlimit limit{};
  if ((error == ENOMEM || error == EPERM) && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
      limit.rlim_cur != RLIM_INFINITY) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": not allowed to lock so much memory: the limit is ", limit.rlim_cur,
                     " bytes; raise it (ulimit -l, LimitMEMLOCK= of the service)"));
  }
  return ErrnoStatus(error, what);
}

absl::StatusOr<MrHandle> RegisterWith(ibv_pd* pd, std::span<std::byte> memory,
                                      fabric::Access access) {
  if (access == fabric::Access::kRemoteInvalidate) {
    return absl::UnimplementedError("rdma: a peer that may kill keys is not supported");
  }
  int flags = IBV_ACCESS_LOCAL_WRITE;
  if (access == fabric::Access::kRemoteWrite) flags |= IBV_ACCESS_REMOTE_WRITE;
  if (access == fabric::Access::kWindows) flags |= IBV_ACCESS_MW_BIND;
  MrHandle mr(ibv_reg_mr(pd, memory.data(), memory.size(), flags));
  if (mr == nullptr) return RegisterError(errno, memory.size(), pd->context);
  return mr;
}

}  // namespace

std::string DeviceName(const ibv_context* context) { return ibv_get_device_name(context->device); }

VerbsRegion::~VerbsRegion() {
  if (fabric_ != nullptr) fabric_->Forget(*this);
}

void VerbsRegion::SetKeys(std::uint32_t device) {
  keys_[device].lkey = mrs_[device]->lkey;
  if (access_ == fabric::Access::kRemoteWrite) keys_[device].rkey = mrs_[device]->rkey;
}

bool VerbsRegion::Revoke() {
  if (fabric_ != nullptr) fabric_->Forget(*this);  // No device is added any more.
  fabric_ = nullptr;
  for (MrHandle& mr : mrs_) mr.reset();
  return true;
}

absl::Status VerbsRegion::AddDevice(ibv_pd* pd, std::uint32_t device) {
  ASSIGN_OR_RETURN(mrs_[device], RegisterWith(pd, memory_, access_));
  SetKeys(device);
  return absl::OkStatus();
}

void VerbsRegion::DropDevice(std::uint32_t device) {
  mrs_[device].reset();
  keys_[device] = {};
}

absl::StatusOr<std::unique_ptr<fabric::Window>> VerbsRegion::CreateWindow() {
  ibv_mr* mr = mrs_[0].get();
  if (mr == nullptr) return absl::FailedPreconditionError("rdma: memory window: no device yet");
  MwHandle mw(ibv_alloc_mw(mr->pd, IBV_MW_TYPE_1));
  if (mw == nullptr) {
    return ErrnoStatus(errno, absl::StrCat("rdma: memory window on ", DeviceName(mr->context)));
  }
  return std::make_unique<VerbsWindow>(std::move(mw), mr);
}

void VerbsWindow::Translate(bool open, ibv_send_wr* wr) const {
  wr->bind_mw.mw = mw_.get();
  wr->bind_mw.rkey = next_rkey();
  wr->bind_mw.bind_info.mr = mr_;
  wr->bind_mw.bind_info.mw_access_flags = IBV_ACCESS_REMOTE_WRITE;
  if (!open) return;  // Of nothing: no key is left.
  wr->bind_mw.bind_info.addr = reinterpret_cast<std::uintptr_t>(mr_->addr);
  wr->bind_mw.bind_info.length = mr_->length;
}

absl::StatusOr<std::unique_ptr<VerbsDomain>> VerbsDomain::Create(ibv_context* context,
                                                                 std::uint32_t device) {
  PdHandle pd(ibv_alloc_pd(context));
  if (pd == nullptr) {
    return ErrnoStatus(errno, absl::StrCat("rdma: protection domain on ", DeviceName(context)));
  }
  return std::unique_ptr<VerbsDomain>(new VerbsDomain(std::move(pd), device));
}

absl::StatusOr<std::unique_ptr<fabric::Region>> VerbsDomain::Register(std::span<std::byte> memory,
                                                                      fabric::Access access) {
  auto region = std::make_unique<VerbsRegion>(memory, access);
  RETURN_IF_ERROR(region->AddDevice(pd_.get(), 0));
  return region;
}

absl::StatusOr<ibv_context*> FindDeviceTowards(const SocketAddress& peer,
                                               const SocketAddress* source) {
  // A datagram socket that is connected knows the address that packets would leave from.
  const UniqueFd fd(::socket(peer.family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto* to = reinterpret_cast<const sockaddr*>(peer.bytes.data());
  if (source != nullptr && fd.valid() &&
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(source->bytes.data()), source->length) !=
          0) {
    return ErrnoStatus(errno, absl::StrCat("rdma: connect from ", source->ToString()));
  }
  if (!fd.valid() || ::connect(fd.get(), to, peer.length) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rdma: no route to ", peer.ToString()));
  }
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  auto* from = reinterpret_cast<sockaddr*>(&storage);
  if (::getsockname(fd.get(), from, &length) != 0) return ErrnoStatus(errno, "getsockname");
  rdma_cm_id* raw = nullptr;
  if (rdma_create_id(nullptr, &raw, nullptr, RDMA_PS_TCP) != 0) {
    return ErrnoStatus(errno, "rdma: the connection manager does not answer (modprobe rdma_ucm)");
  }
  const CmIdHandle id(raw);
  // Port 0: an address alone is looked up.
  if (from->sa_family == AF_INET) {
    reinterpret_cast<sockaddr_in*>(from)->sin_port = 0;
  } else {
    reinterpret_cast<sockaddr_in6*>(from)->sin6_port = 0;
  }
  const int error = rdma_bind_addr(id.get(), from) == 0 ? 0 : errno;
  if (error != 0 || id->verbs == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("rdma: ", peer.ToString(), " is reached from ", AddressFrom(from).ToString(),
                     ", which is not an address of an RDMA device (",
                     error != 0 ? ErrnoStatus(error, "bind").message() : "no device",
                     "); for Soft-RoCE: ibnbd-client softroce add DEVICE"));
  }
  return id->verbs;
}

}  // namespace ibnbd::verbs
