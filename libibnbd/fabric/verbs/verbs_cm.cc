// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_cm.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "fabric/verbs/verbs_connection.h"
#include "fabric/verbs/verbs_domain.h"
#include "fabric/verbs/verbs_fabric.h"
#include "fabric/verbs/verbs_translate.h"

namespace ibnbd::verbs {
namespace {

constexpr int kBacklog = 256;

absl::Status ListenError(int error, const SocketAddress& local) {
  const std::string what = absl::StrCat("rdma: listen on ", local.ToString());
  if (error == ENODEV || error == EADDRNOTAVAIL) {
    return absl::FailedPreconditionError(absl::StrCat(
        what, ": ", ErrnoStatus(error, "bind").message(),
        ": not an address of an RDMA device; for Soft-RoCE: ibnbd-client softroce add DEVICE"));
  }
  return ErrnoStatus(error, what);
}

}  // namespace

VerbsListener::VerbsListener(VerbsPoller& poller, CmIdHandle id, std::uint64_t context)
    : poller_(poller), id_(std::move(id)), context_(context) {
  poller_.AddListener();
}

VerbsListener::~VerbsListener() { poller_.RemoveListener(); }

absl::StatusOr<std::unique_ptr<fabric::Listener>> VerbsListener::Create(VerbsPoller& poller,
                                                                        const SocketAddress& local,
                                                                        std::uint64_t context) {
  rdma_cm_id* raw = nullptr;
  if (rdma_create_id(poller.channel(), &raw, nullptr, RDMA_PS_TCP) != 0) {
    return ListenError(errno, local);
  }
  CmIdHandle id(raw);
  SocketAddress address = local;  // librdmacm takes it writable.
  if (rdma_bind_addr(raw, reinterpret_cast<sockaddr*>(address.bytes.data())) != 0 ||
      rdma_listen(raw, kBacklog) != 0) {
    return ListenError(errno, local);
  }
  std::unique_ptr<VerbsListener> listener(new VerbsListener(poller, std::move(id), context));
  raw->context = static_cast<CmTarget*>(listener.get());
  return listener;
}

SocketAddress VerbsListener::local_address() const {
  return AddressFrom(rdma_get_local_addr(id_.get()));
}

void VerbsListener::OnCmEvent(const rdma_cm_event& event, std::span<const std::byte> private_data) {
  if (event.event != RDMA_CM_EVENT_CONNECT_REQUEST) return;
  event.id->context = nullptr;  // It was ours; until it is accepted its events mean nothing.
  fabric::CmEvent incoming;
  incoming.kind = fabric::CmEvent::Kind::kIncoming;
  incoming.context = context_;
  incoming.incoming = std::make_unique<VerbsIncoming>(CmIdHandle(event.id), private_data);
  poller_.PushEvent(std::move(incoming), {});
}

VerbsIncoming::VerbsIncoming(CmIdHandle id, std::span<const std::byte> private_data)
    : id_(std::move(id)),
      local_address_(AddressFrom(rdma_get_local_addr(id_.get()))),
      peer_address_(AddressFrom(rdma_get_peer_addr(id_.get()))),
      data_(private_data.begin(), private_data.end()) {}

VerbsIncoming::~VerbsIncoming() {
  if (id_ != nullptr) Reject({});
}

absl::StatusOr<std::unique_ptr<fabric::Domain>> VerbsIncoming::CreateDomain() {
  return VerbsDomain::Create(id_->verbs);
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> VerbsIncoming::Accept(
    fabric::Poller& owner, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  CHECK(id_ != nullptr);
  CHECK_LE(private_data.size(), VerbsFabric::kPrivateDataSizeMax);
  auto& poller = static_cast<VerbsPoller&>(owner);
  // Returns when the thread that reads the old channel is through with what it has taken from it.
  if (rdma_migrate_id(id_.get(), poller.channel()) != 0) {
    return ErrnoStatus(errno, "rdma: accept: move the request to its reactor");
  }
  return VerbsConnection::StartPassive(poller, std::move(id_), options, private_data);
}

void VerbsIncoming::Reject(std::span<const std::byte> private_data) {
  CHECK(id_ != nullptr);
  // The peer may be gone; it is not told then.
  (void)rdma_reject(id_.get(), private_data.data(), static_cast<std::uint8_t>(private_data.size()));
  id_.reset();
}

}  // namespace ibnbd::verbs
