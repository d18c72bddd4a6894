// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_listener.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "fabric/tcp/tcp_connection.h"

namespace ibnbd::tcp {
namespace {

constexpr std::int64_t kHandshakeNsMax = 10 * kNsPerSecond;
constexpr std::int64_t kRetryFullNs = 10 * kNsPerMs;    // All places are taken.
constexpr std::int64_t kRetryErrorNs = 100 * kNsPerMs;  // Out of descriptors or memory.

}  // namespace

// --- TcpIncoming ---

TcpIncoming::TcpIncoming(RegionTable& regions, UniqueFd fd, std::span<const std::byte> private_data,
                         OpenCount open_count)
    : regions_(regions),
      fd_(std::move(fd)),
      private_data_(private_data.begin(), private_data.end()),
      open_count_(std::move(open_count)),
      local_address_(LocalAddressOf(fd_.get())),
      peer_address_(PeerAddressOf(fd_.get())) {}

TcpIncoming::~TcpIncoming() {
  if (fd_.valid()) Reject({});
  OnPolled();
}

void TcpIncoming::OnPolled() {
  if (open_count_ != nullptr) --*std::exchange(open_count_, nullptr);
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> TcpIncoming::Accept(
    fabric::Poller& owner, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  CHECK(fd_.valid());
  auto& poller = static_cast<TcpPoller&>(owner);
  ASSIGN_OR_RETURN(const fabric::Limits limits, TcpConnection::Grant(options.limits));
  auto connection =
      std::make_unique<TcpConnection>(poller, std::move(fd_), limits, options.context);
  connection->StartPassive(options, private_data);
  return connection;
}

void TcpIncoming::Reject(std::span<const std::byte> private_data) {
  CHECK(fd_.valid());
  OutgoingGreeting greeting;
  greeting.Set(proto::tcp::GreetingKind::kReject, private_data);
  // Nothing was sent before, so this fits into the socket's buffer or the peer is gone.
  (void)::send(fd_.get(), greeting.bytes.data(), greeting.size, MSG_NOSIGNAL | MSG_DONTWAIT);
  fd_.Reset();
}

// --- TcpHandshake ---

TcpHandshake::TcpHandshake(TcpAcceptor& acceptor, TcpPoller& poller, UniqueFd fd)
    : acceptor_(acceptor),
      poller_(poller),
      fd_(std::move(fd)),
      peer_address_(PeerAddressOf(fd_.get())),
      op_(*this, &TcpHandshake::OnRecvCqe),
      timer_(poller.reactor().timers(), [this] { Abort(); }) {}

void TcpHandshake::Start() {
  timer_.ArmAt(poller_.reactor().now_ns() + kHandshakeNsMax);
  ArmRecv();
}

void TcpHandshake::ArmRecv() {
  const std::span<std::byte> window = reader_.Window();
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  io_uring_prep_recv(sqe, fd_.get(), window.data(), window.size(), 0);
  op_.Prepare(poller_.ring(), sqe);
}

void TcpHandshake::Abort() {
  if (std::exchange(aborted_, true)) return;
  (void)::shutdown(fd_.get(), SHUT_RDWR);
  poller_.ring().Cancel(op_);
}

void TcpHandshake::OnRecvCqe(int result, std::uint32_t) {
  const char* reason = nullptr;
  if (result > 0 && !aborted_) {
    reason = reader_.Advance(static_cast<std::size_t>(result));
    if (reason == nullptr && !reader_.complete()) {
      ArmRecv();
      return;
    }
    if (reason == nullptr && reader_.kind() != proto::tcp::GreetingKind::kConnect) {
      reason = "greeting: an answer where a question belongs";
    }
  }
  timer_.Cancel();
  if (reason != nullptr && poller_.MayLog()) {
    LOG_WARN("tcp connection from ", peer_address_.ToString(), " refused: ", reason);
  }
  if (result <= 0 || aborted_ || reason != nullptr) {
    acceptor_.OnHandshakeEnd(*this, UniqueFd(), {});
  } else {
    acceptor_.OnHandshakeEnd(*this, std::move(fd_), reader_.private_data());
  }
}

// --- TcpAcceptor ---

TcpAcceptor::TcpAcceptor(TcpPoller& poller, UniqueFd fd, bool shared, std::uint64_t context)
    : poller_(poller),
      fd_(std::move(fd)),
      shared_(shared),
      context_(context),
      op_(*this, &TcpAcceptor::OnAcceptCqe),
      retry_timer_(poller.reactor().timers(), [this] { Arm(); }),
      open_count_(std::make_shared<std::uint32_t>(0)) {
  Arm();
}

void TcpAcceptor::Arm() {
  if (stopping_ || op_.armed()) return;
  if (*open_count_ >= kOpenMax) {
    // Whoever has been silent for longest makes room: a crowd that says nothing keeps nobody out.
    if (!handshakes_.empty()) handshakes_.front()->Abort();
    retry_timer_.ArmAfter(kRetryFullNs);
    return;
  }
  io_uring_sqe* sqe = poller_.ring().GetSqe();
  io_uring_prep_accept(sqe, fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
  op_.Prepare(poller_.ring(), sqe);
}

void TcpAcceptor::OnAcceptCqe(int result, std::uint32_t) {
  UniqueFd fd(result >= 0 ? result : -1);
  if (stopping_) {
    if (idle()) poller_.OnBuriedIdle();
    return;
  }
  if (result >= 0) {
    SetNoDelay(fd.get());
    ++*open_count_;
    handshakes_.push_back(std::make_unique<TcpHandshake>(*this, poller_, std::move(fd)));
    handshakes_.back()->Start();
    Arm();
  } else if (result == -ECONNABORTED || result == -EINTR || result == -EPROTO) {
    Arm();
  } else if (result != -ECANCELED) {
    if (poller_.MayLog()) {
      LOG_WARN("listen ", local_address().ToString(),
               " accept: ", ErrnoStatus(result, "accept").message());
    }
    retry_timer_.ArmAfter(kRetryErrorNs);
  }
}

void TcpAcceptor::OnHandshakeEnd(TcpHandshake& handshake, UniqueFd fd,
                                 std::span<const std::byte> private_data) {
  if (fd.valid() && !stopping_) {
    fabric::CmEvent event;
    event.kind = fabric::CmEvent::Kind::kIncoming;
    event.context = context_;
    event.incoming =
        std::make_unique<TcpIncoming>(poller_.regions(), std::move(fd), private_data, open_count_);
    poller_.PushEvent(std::move(event));
  } else {
    --*open_count_;
  }
  std::erase_if(handshakes_, [&](const auto& entry) { return entry.get() == &handshake; });
  if (stopping_) {
    if (idle()) poller_.OnBuriedIdle();
  } else {
    Arm();  // There is room again.
  }
}

void TcpAcceptor::Stop() {
  stopping_ = true;
  retry_timer_.Cancel();
  if (!shared_) (void)::shutdown(fd_.get(), SHUT_RDWR);  // From now on the port refuses.
  if (op_.armed()) poller_.ring().Cancel(op_);
  for (const auto& handshake : handshakes_) handshake->Abort();
}

// --- TcpListener ---

TcpListener::TcpListener(TcpPoller& poller, std::unique_ptr<TcpAcceptor> acceptor)
    : poller_(poller), acceptor_(std::move(acceptor)), local_address_(acceptor_->local_address()) {
  ++poller_.listener_count_;
}

TcpListener::~TcpListener() {
  --poller_.listener_count_;
  poller_.Bury(std::move(acceptor_));
}

}  // namespace ibnbd::tcp
