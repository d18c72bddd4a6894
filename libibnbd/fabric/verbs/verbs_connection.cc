// SPDX-License-Identifier: Apache-2.0
// Beginning and end of a connection; what happens in between is in verbs_connection_datapath.cc.
#include "fabric/verbs/verbs_connection.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "fabric/verbs/verbs_domain.h"
#include "fabric/verbs/verbs_fabric.h"

namespace ibnbd::verbs {
namespace {

using fabric::CmEvent;

constexpr int kResolveMs = 2000;
constexpr std::int64_t kAttemptNsMax = 15 * kNsPerSecond;
constexpr std::uint8_t kRetryCount = 6;
constexpr std::uint8_t kRnrRetryForEver = 7;  // F5: who has no receive posted keeps us waiting.
// The CM leaves 0, which means 655 ms: an eternity for a receive that is posted a moment late.
constexpr std::uint8_t kMinRnrTimer = 12;  // 0.64 ms; the InfiniBand specification's table 46.
constexpr int kRejectedByConsumer = 28;    // IB_CM_REJ_CONSUMER_DEFINED.

void ShortenRnrTimer(ibv_qp* qp) {
  ibv_qp_attr attributes{};
  attributes.min_rnr_timer = kMinRnrTimer;
  (void)ibv_modify_qp(qp, &attributes, IBV_QP_MIN_RNR_TIMER);  // Slower without, but right.
}

}  // namespace

VerbsConnection::VerbsConnection(VerbsPoller& poller, CmIdHandle id,
                                 const fabric::ConnectionOptions& options)
    : poller_(poller),
      id_(std::move(id)),
      domain_(options.domain != nullptr ? static_cast<VerbsDomain*>(options.domain)
                                        : poller.fabric().common_domain()),
      domain_is_common_(options.domain == nullptr),
      context_(options.context),
      limits_(options.limits),
      timer_(poller.reactor().timers(),
             [this] { EndAttempt(CmEvent::Kind::kUnreachable, -ETIMEDOUT); }) {
  limits_.sges_max = std::max(limits_.sges_max, 2u);
  sends_.Reset(limits_.sends_max);
  receives_.Reset(limits_.receives_max);
}

VerbsConnection::~VerbsConnection() {
  CHECK(drained());
  timer_.Cancel();
  DestroyQueuePair();
  if (entered_) poller_.RemoveConnection(place_);
}

absl::Status VerbsConnection::Enter() {
  ASSIGN_OR_RETURN(place_, poller_.AddConnection(*this));
  entered_ = true;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> VerbsConnection::StartActive(
    VerbsPoller& poller, const SocketAddress& peer, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  CHECK_LE(private_data.size(), VerbsFabric::kPrivateDataSizeMax);
  rdma_cm_id* raw = nullptr;
  if (rdma_create_id(poller.channel(), &raw, nullptr, RDMA_PS_TCP) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rdma: connect ", peer.ToString(), ": create id"));
  }
  std::unique_ptr<VerbsConnection> connection(
      new VerbsConnection(poller, CmIdHandle(raw), options));
  connection->state_ = State::kEnded;  // Until it has begun: it may be destroyed.
  connection->end_reported_ = connection->flushed_ = true;
  if (connection->domain_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("rdma: connect ", peer.ToString(), ": no device was chosen"));
  }
  RETURN_IF_ERROR(connection->CheckLimits(connection->domain_->context()));
  RETURN_IF_ERROR(connection->Enter());
  connection->peer_address_ = peer;
  connection->private_data_.assign(private_data.begin(), private_data.end());
  raw->context = static_cast<CmTarget*>(connection.get());
  SocketAddress to = peer;  // librdmacm takes it writable.
  SocketAddress from = options.source.value_or(SocketAddress{});
  auto* source = from.length == 0 ? nullptr : reinterpret_cast<sockaddr*>(from.bytes.data());
  if (rdma_resolve_addr(raw, source, reinterpret_cast<sockaddr*>(to.bytes.data()), kResolveMs) !=
      0) {
    return ErrnoStatus(errno, absl::StrCat("rdma: connect ", peer.ToString(), ": resolve address"));
  }
  connection->state_ = State::kResolving;
  connection->end_reported_ = connection->flushed_ = false;
  connection->timer_.ArmAt(poller.reactor().clock().NowNs() + kAttemptNsMax);
  connection->PostReceive(options.receives);
  return connection;
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> VerbsConnection::StartPassive(
    VerbsPoller& poller, CmIdHandle id, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  rdma_cm_id* raw = id.get();
  std::unique_ptr<VerbsConnection> connection(new VerbsConnection(poller, std::move(id), options));
  connection->state_ = State::kEnded;  // Until it has begun: it may be destroyed.
  connection->end_reported_ = connection->flushed_ = true;
  if (connection->domain_ == nullptr || connection->domain_->context() != raw->verbs) {
    return absl::FailedPreconditionError(absl::StrCat(
        "rdma: accept: the request came in on ", DeviceName(raw->verbs), ", the domain is on ",
        connection->domain_ == nullptr ? "none" : DeviceName(connection->domain_->context())));
  }
  RETURN_IF_ERROR(connection->CheckLimits(raw->verbs));
  RETURN_IF_ERROR(connection->Enter());
  RETURN_IF_ERROR(connection->CreateQueuePair());
  raw->context = static_cast<CmTarget*>(connection.get());
  if (absl::Status status = connection->Accept(options.receives, private_data); !status.ok()) {
    connection->DestroyQueuePair();
    return status;
  }
  ShortenRnrTimer(connection->qp_);
  connection->state_ = State::kUp;
  connection->end_reported_ = connection->flushed_ = false;
  return connection;
}

// Fails also if the peer goes away just now.
absl::Status VerbsConnection::Accept(std::span<const fabric::ReceiveRequest> receives,
                                     std::span<const std::byte> private_data) {
  if (const int error = PostReceiveNow(receives)) {
    return ErrnoStatus(error, "rdma: accept: post receives");
  }
  rdma_conn_param parameters = Parameters(private_data);
  if (rdma_accept(id_.get(), &parameters) != 0) return ErrnoStatus(errno, "rdma: accept");
  return absl::OkStatus();
}

absl::Status VerbsConnection::CheckLimits(ibv_context* context) const {
  ibv_device_attr device{};
  if (const int error = ibv_query_device(context, &device)) {
    return ErrnoStatus(error, absl::StrCat("rdma: query ", DeviceName(context)));
  }
  const auto work_max = static_cast<std::uint32_t>(device.max_qp_wr);
  if (limits_.sends_max > work_max || limits_.receives_max > work_max ||
      limits_.sges_max > static_cast<std::uint32_t>(device.max_sge)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rdma: ", DeviceName(context), " takes at most ", work_max, " requests of ",
                     device.max_sge, " pieces; wanted are ", limits_.sends_max, " sends and ",
                     limits_.receives_max, " receives of ", limits_.sges_max));
  }
  return absl::OkStatus();
}

absl::Status VerbsConnection::CreateQueuePair() {
  ASSIGN_OR_RETURN(cq_, poller_.TakeEntries(id_->verbs, limits_.sends_max + limits_.receives_max));
  ibv_qp_init_attr attributes{};
  attributes.send_cq = attributes.recv_cq = cq_;
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap.max_send_wr = std::max(limits_.sends_max, 1u);
  attributes.cap.max_recv_wr = std::max(limits_.receives_max, 1u);
  attributes.cap.max_send_sge = attributes.cap.max_recv_sge = limits_.sges_max;
  attributes.cap.max_inline_data = limits_.inline_size_max;
  if (rdma_create_qp(id_.get(), domain_->pd(), &attributes) == 0) {
    qp_ = id_->qp;
    return absl::OkStatus();
  }
  const int error = errno;
  poller_.ReturnEntries(std::exchange(cq_, nullptr), limits_.sends_max + limits_.receives_max);
  return ErrnoStatus(error,
                     absl::StrCat("rdma: queue pair with ", limits_.sends_max, " sends and ",
                                  limits_.receives_max, " receives on ", DeviceName(id_->verbs)));
}

void VerbsConnection::DestroyQueuePair() {
  if (qp_ == nullptr) return;
  rdma_destroy_qp(id_.get());
  qp_ = nullptr;
  poller_.ReturnEntries(std::exchange(cq_, nullptr), limits_.sends_max + limits_.receives_max);
}

rdma_conn_param VerbsConnection::Parameters(std::span<const std::byte> private_data) const {
  rdma_conn_param parameters{};
  parameters.private_data = private_data.data();
  parameters.private_data_len = static_cast<std::uint8_t>(private_data.size());
  parameters.retry_count = kRetryCount;
  parameters.rnr_retry_count = kRnrRetryForEver;
  return parameters;  // No reads and no atomics: no resources for them.
}

// The way leads through another device than the fabric's first one.
absl::Status VerbsConnection::ChangeDevice() {
  VerbsDomain* domain = domain_is_common_ ? poller_.fabric().DomainOn(id_->verbs) : nullptr;
  if (domain == nullptr) return absl::OkStatus();  // The caller says what that means.
  RETURN_IF_ERROR(CheckLimits(id_->verbs));
  domain_ = domain;
  return absl::OkStatus();
}

std::uint32_t VerbsConnection::device() const { return domain_->device(); }

// Active side: one step further.
absl::Status VerbsConnection::OnResolved(rdma_cm_event_type type) {
  if (type == RDMA_CM_EVENT_ADDR_RESOLVED) {
    if (id_->verbs != domain_->context()) RETURN_IF_ERROR(ChangeDevice());
    if (id_->verbs != domain_->context()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the way leads through ", DeviceName(id_->verbs), " now, and our memory is registered ",
          "with ", DeviceName(domain_->context())));
    }
    if (rdma_resolve_route(id_.get(), kResolveMs) != 0) return ErrnoStatus(errno, "resolve route");
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CreateQueuePair());
  if (const int error = PostPendingReceives()) return ErrnoStatus(error, "post receives");
  rdma_conn_param parameters = Parameters(private_data_);
  if (rdma_connect(id_.get(), &parameters) != 0) return ErrnoStatus(errno, "connect");
  state_ = State::kConnecting;
  return absl::OkStatus();
}

void VerbsConnection::OnCmEvent(const rdma_cm_event& event,
                                std::span<const std::byte> private_data) {
  if (state_ == State::kBroken || state_ == State::kEnded) return;
  switch (event.event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      if (const absl::Status status = OnResolved(event.event); !status.ok()) {
        LOG_WARN("rdma: connect ", peer_address().ToString(), ": ", status.message());
        EndAttempt(CmEvent::Kind::kUnreachable, ErrnoFromStatus(status));
      }
      return;
    case RDMA_CM_EVENT_ESTABLISHED:
      timer_.Cancel();
      if (state_ == State::kConnecting) ShortenRnrTimer(qp_);
      state_ = State::kUp;
      return PushEvent(CmEvent::Kind::kEstablished, 0, private_data);
    case RDMA_CM_EVENT_REJECTED:
      if (state_ == State::kUp) return Break(-ECONNRESET);
      if (event.status == kRejectedByConsumer) {
        return EndAttempt(CmEvent::Kind::kRejected, -ECONNREFUSED, private_data);
      }
      return EndAttempt(CmEvent::Kind::kUnreachable, -ECONNREFUSED);
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      LOG_WARN("rdma: device of the connection to ", peer_address().ToString(), " was removed");
      if (state_ == State::kUp) return Break(-ENODEV);
      return EndAttempt(CmEvent::Kind::kUnreachable, -ENODEV);
    case RDMA_CM_EVENT_DISCONNECTED:
      return Break(-ECONNRESET);
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE: {
      const int error = event.status < 0 ? event.status : -EHOSTUNREACH;
      if (state_ == State::kUp) return Break(error);
      return EndAttempt(CmEvent::Kind::kUnreachable, error);
    }
    default:
      return;
  }
}

void VerbsConnection::PushEvent(CmEvent::Kind kind, int error, std::span<const std::byte> data) {
  CmEvent event;
  event.kind = kind;
  event.context = context_;
  event.connection = this;
  event.error = error;
  poller_.PushEvent(std::move(event), data);
}

// An attempt that never came to be: nothing was sent, and what was posted is simply forgotten.
void VerbsConnection::EndAttempt(CmEvent::Kind kind, int error, std::span<const std::byte> data) {
  if (state_ == State::kBroken || state_ == State::kEnded) return;
  timer_.Cancel();
  state_ = State::kEnded;
  DestroyQueuePair();
  pending_receives_.clear();
  flushed_ = true;
  PushEvent(kind, error, data);
}

void VerbsConnection::Break(int error) {
  if (state_ == State::kResolving || state_ == State::kConnecting) {
    return EndAttempt(CmEvent::Kind::kUnreachable, error);
  }
  if (state_ != State::kUp) return;
  timer_.Cancel();
  state_ = State::kBroken;
  (void)rdma_disconnect(id_.get());  // Tells the peer; that it may be gone is why we are here.
  PushEvent(CmEvent::Kind::kDisconnected, error);
  poller_.AddBroken(*this);
}

void VerbsConnection::Disconnect() {
  if (state_ == State::kUp) return Break(0);
  EndAttempt(CmEvent::Kind::kDisconnected, 0);
}

void VerbsConnection::OnReported(CmEvent::Kind kind) {
  if (kind != CmEvent::Kind::kEstablished) end_reported_ = true;
}

bool VerbsConnection::drained() const {
  return end_reported_ && flushed_ && qp_ == nullptr && stashed_count_ == 0;
}

SocketAddress VerbsConnection::local_address() const {
  return AddressFrom(rdma_get_local_addr(id_.get()));
}

SocketAddress VerbsConnection::peer_address() const {
  if (peer_address_.length > 0) return peer_address_;
  return AddressFrom(rdma_get_peer_addr(id_.get()));
}

}  // namespace ibnbd::verbs
