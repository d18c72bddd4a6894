// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_poller.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "fabric/tcp/tcp_connection.h"
#include "fabric/tcp/tcp_listener.h"
#include "reactor/io_ring.h"

namespace ibnbd::tcp {
namespace {
// Long enough for most IOs to be answered within it, short against any time-out.
constexpr std::int64_t kAckDelayNs = 500 * kNsPerUs;
}  // namespace

TcpPoller::TcpPoller(RegionTable& regions, Reactor& reactor, fabric::ListeningSockets* listening)
    : regions_(regions),
      listening_(listening),
      reactor_(reactor),
      ack_timer_(reactor.timers(), [this] { OnAckTimer(); }),
      kick_op_(*this, &TcpPoller::OnKick) {}

TcpPoller::~TcpPoller() {
  CHECK(connections_.empty() && listener_count_ == 0);
  events_.clear();  // Incoming connections that nobody asked for are rejected.
  while (kick_op_.armed() || !graves_.empty()) {
    if (ring().Dispatch(64) == 0) ring().SubmitAndWait(kNsPerMs);
    CleanGraves();
  }
}

std::size_t TcpPoller::PollCompletions(std::span<fabric::Completion> out) {
  std::size_t count = 0;
  const std::size_t mask = completions_.size() - 1;
  while (count < out.size() && completions_head_ != completions_tail_) {
    const QueuedCompletion& entry = completions_[completions_head_++ & mask];
    entry.connection->OnCompletionPolled();
    out[count++] = entry.completion;
  }
  return count;
}

std::size_t TcpPoller::PollEvents(std::span<fabric::CmEvent> out) {
  if (grave_idle_) CleanGraves();
  std::size_t count = 0;
  while (count < out.size() && !events_.empty()) {
    out[count] = std::move(events_.front());
    events_.pop_front();
    const fabric::CmEvent& event = out[count++];
    if (event.connection != nullptr) {
      static_cast<TcpConnection*>(event.connection)->OnEventPolled(event.kind);
    }
    if (event.incoming != nullptr) static_cast<TcpIncoming*>(event.incoming.get())->OnPolled();
  }
  return count;
}

void TcpPoller::Flush() {
  while (!dirty_.empty()) dirty_.PopFront().connection.StartSend();
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> TcpPoller::StartConnect(
    const SocketAddress& peer, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  CHECK_LE(private_data.size(), proto::tcp::kPrivateDataSizeMax);
  ASSIGN_OR_RETURN(const fabric::Limits limits, TcpConnection::Grant(options.limits));
  ASSIGN_OR_RETURN(UniqueFd fd, OpenSocket(peer));
  if (options.source.has_value()) RETURN_IF_ERROR(BindSource(fd.get(), *options.source));
  auto connection = std::make_unique<TcpConnection>(*this, std::move(fd), limits, options.context);
  connection->StartActive(peer, options, private_data);
  return connection;
}

absl::StatusOr<std::unique_ptr<fabric::Listener>> TcpPoller::Listen(const SocketAddress& local,
                                                                    std::uint64_t context) {
  UniqueFd fd = listening_ != nullptr ? listening_->TakeInherited(local) : UniqueFd();
  if (!fd.valid()) {
    ASSIGN_OR_RETURN(fd, OpenListener(local));
  }
  const bool shared = listening_ != nullptr && listening_->OnListening(fd.get());
  auto acceptor = std::make_unique<TcpAcceptor>(*this, std::move(fd), shared, context);
  return std::make_unique<TcpListener>(*this, std::move(acceptor));
}

void TcpPoller::AddConnection(TcpConnection& connection, std::size_t completions_max) {
  connections_.push_back(&connection);
  completions_max_ += completions_max;
  const std::size_t size = std::bit_ceil(completions_max_);
  if (size <= completions_.size()) return;
  std::vector<QueuedCompletion> larger(size);
  std::size_t count = 0;
  while (completions_head_ != completions_tail_) {
    larger[count++] = completions_[completions_head_++ & (completions_.size() - 1)];
  }
  completions_ = std::move(larger);
  completions_head_ = 0;
  completions_tail_ = count;
}

void TcpPoller::RemoveConnection(TcpConnection& connection, std::size_t completions_max) {
  std::erase(connections_, &connection);
  completions_max_ -= completions_max;
}

void TcpPoller::PushCompletion(TcpConnection& connection, const fabric::Completion& completion) {
  CHECK_LT(completions_tail_ - completions_head_, completions_.size());
  completions_[completions_tail_++ & (completions_.size() - 1)] = {completion, &connection};
}

void TcpPoller::PushEvent(fabric::CmEvent event) {
  events_.push_back(std::move(event));
  Kick();
}

void TcpPoller::MarkDirty(DirtyHook& hook) { dirty_.PushBack(hook); }

void TcpPoller::ArmAckTimer() {
  if (!ack_timer_.armed()) ack_timer_.ArmAfter(kAckDelayNs);
}

void TcpPoller::OnAckTimer() {
  const std::int64_t before_ns = reactor_.now_ns() - kAckDelayNs / 2;
  bool more = false;
  for (TcpConnection* connection : connections_) more |= connection->SendOverdueAck(before_ns);
  if (more) ack_timer_.ArmAfter(kAckDelayNs);
}

void TcpPoller::Kick() {
  if (kick_op_.armed()) return;
  io_uring_sqe* sqe = ring().GetSqe();
  io_uring_prep_nop(sqe);
  kick_op_.Prepare(ring(), sqe);
}

void TcpPoller::Bury(std::unique_ptr<TcpAcceptor> acceptor) {
  std::erase_if(events_, [&](const fabric::CmEvent& event) {
    return event.kind == fabric::CmEvent::Kind::kIncoming && event.context == acceptor->context();
  });
  acceptor->Stop();
  graves_.push_back(std::move(acceptor));
  grave_idle_ = true;  // It may be idle already.
  Kick();
}

void TcpPoller::OnBuriedIdle() { grave_idle_ = true; }

void TcpPoller::CleanGraves() {
  grave_idle_ = false;
  std::erase_if(graves_, [](const std::unique_ptr<TcpAcceptor>& entry) { return entry->idle(); });
}

bool TcpPoller::MayLog() {
  const std::int64_t now_ns = reactor_.clock().NowNs();
  if (last_log_ns_ != 0 && now_ns - last_log_ns_ < kNsPerSecond) return false;
  last_log_ns_ = now_ns;
  return true;
}

}  // namespace ibnbd::tcp
