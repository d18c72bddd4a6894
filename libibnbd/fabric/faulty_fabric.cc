// SPDX-License-Identifier: Apache-2.0
#include "fabric/faulty_fabric.h"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/prng.h"
#include "reactor/reactor.h"

namespace ibnbd::fabric {
namespace {

class FaultyPoller;

class FaultyConnection final : public ForwardingConnection {
 public:
  FaultyConnection(FaultyPoller& poller, std::unique_ptr<Connection> connection,
                   std::uint64_t number);
  ~FaultyConnection() override;
  void PostSend(std::span<const SendRequest> requests) override;
  [[nodiscard]] bool drained() const override;
  [[nodiscard]] std::uint64_t number() const { return number_; }
  void Cut() { inner().Disconnect(); }

 private:
  FaultyPoller& poller_;
  const std::uint64_t number_;
  // Once the inner connection is drained: the first completion that cannot be ours any more.
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  mutable std::uint64_t last_completion_ = kUnknown;
};

// A connection that was refused before anybody was asked.
class RefusedConnection final : public Connection {
 public:
  RefusedConnection(FaultyPoller& poller, const SocketAddress& peer,
                    const ConnectionOptions& options);
  ~RefusedConnection() override;
  void PostSend(std::span<const SendRequest>) override { CHECK(false); }  // F12: never connected.
  void PostReceive(std::span<const ReceiveRequest>) override {}
  void Disconnect() override {}  // kUnreachable is on its way already.
  [[nodiscard]] bool drained() const override { return reported_; }
  [[nodiscard]] const Limits& limits() const override { return limits_; }
  [[nodiscard]] SocketAddress local_address() const override { return {}; }
  [[nodiscard]] SocketAddress peer_address() const override { return peer_; }
  [[nodiscard]] std::uint64_t context() const { return context_; }
  void set_reported() { reported_ = true; }

 private:
  FaultyPoller& poller_;
  const SocketAddress peer_;
  const Limits limits_;
  const std::uint64_t context_;
  bool reported_ = false;
};

class FaultyPoller final : public ForwardingPoller {
 public:
  FaultyPoller(const FaultSpec& spec, std::uint64_t number, Reactor& reactor,
               std::unique_ptr<Poller> poller)
      : ForwardingPoller(std::move(poller)),
        spec_(spec),
        prng_(Prng(spec.seed + number).Fork()),
        clock_(reactor.clock()),
        alarm_(reactor.timers(), [] {}) {}

  std::size_t PollCompletions(std::span<Completion> out) override;
  std::size_t PollEvents(std::span<CmEvent> out) override;
  absl::StatusOr<std::unique_ptr<Connection>> StartConnect(
      const SocketAddress& peer, const ConnectionOptions& options,
      std::span<const std::byte> private_data) override;

  [[nodiscard]] bool DrawCutPost() { return Draw(spec_.cut_post_ppm); }
  [[nodiscard]] std::uint64_t next_completion() const { return next_completion_; }
  [[nodiscard]] std::uint64_t first_held() const { return next_completion_ - held_.size(); }
  void AddRefused(RefusedConnection& connection) { refused_.push_back(&connection); }
  void ForgetRefused(RefusedConnection& connection) { std::erase(refused_, &connection); }
  void Forget(std::uint64_t connection) { lives_.erase(connection); }

 protected:
  std::unique_ptr<ForwardingConnection> Wrap(std::unique_ptr<Connection> connection) override {
    return std::make_unique<FaultyConnection>(*this, std::move(connection), ++connection_count_);
  }

 private:
  struct Held {
    Completion completion;
    std::int64_t due_ns = 0;
  };
  struct Life {
    FaultyConnection* connection = nullptr;
    std::int64_t end_ns = 0;
  };
  [[nodiscard]] bool Draw(std::uint32_t ppm) { return ppm != 0 && prng_.Chance(ppm); }
  void TakeCompletions();
  void CutTheOld();
  std::size_t Filter(std::span<CmEvent> events);
  // Wakes the reactor when the next held completion or cut is due.
  void SetAlarm();

  const FaultSpec spec_;
  Prng prng_;
  const Clock& clock_;
  Timer alarm_;
  std::uint64_t connection_count_ = 0;
  std::map<std::uint64_t, Life> lives_;
  std::deque<Held> held_;  // In the order they came: one that is slow holds those behind it.
  std::uint64_t next_completion_ = 0;
  std::deque<RefusedConnection*> refused_;  // To be reported.
};

FaultyConnection::FaultyConnection(FaultyPoller& poller, std::unique_ptr<Connection> connection,
                                   std::uint64_t number)
    : ForwardingConnection(poller, std::move(connection)), poller_(poller), number_(number) {}

FaultyConnection::~FaultyConnection() { poller_.Forget(number_); }

void FaultyConnection::PostSend(std::span<const SendRequest> requests) {
  inner().PostSend(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (poller_.DrawCutPost()) Cut();
  }
}

// F10: not while one of our completions may be among those held back.
bool FaultyConnection::drained() const {
  if (!inner().drained()) return false;
  if (last_completion_ == kUnknown) last_completion_ = poller_.next_completion();
  return poller_.first_held() >= last_completion_;
}

RefusedConnection::RefusedConnection(FaultyPoller& poller, const SocketAddress& peer,
                                     const ConnectionOptions& options)
    : poller_(poller), peer_(peer), limits_(options.limits), context_(options.context) {
  poller_.AddRefused(*this);
}
RefusedConnection::~RefusedConnection() {
  CHECK(drained());
  poller_.ForgetRefused(*this);
}

void FaultyPoller::TakeCompletions() {
  Completion batch[32];
  std::size_t count = 0;
  do {
    count = inner().PollCompletions(batch);
    for (const Completion& completion : std::span(batch).first(count)) {
      const std::int64_t delay_ns = prng_.Between(spec_.delay_ns_min, spec_.delay_ns_max);
      held_.push_back({completion, clock_.NowNs() + delay_ns});
      ++next_completion_;
    }
  } while (count == std::size(batch));
}

std::size_t FaultyPoller::PollCompletions(std::span<Completion> out) {
  if (spec_.delay_ns_max == 0 && held_.empty()) return inner().PollCompletions(out);
  TakeCompletions();
  const std::int64_t now_ns = clock_.NowNs();
  std::size_t count = 0;
  while (count < out.size() && !held_.empty() && held_.front().due_ns <= now_ns) {
    out[count++] = held_.front().completion;
    held_.pop_front();
  }
  SetAlarm();
  return count;
}

void FaultyPoller::CutTheOld() {
  const std::int64_t now_ns = clock_.NowNs();
  for (auto life = lives_.begin(); life != lives_.end();) {
    if (life->second.end_ns > now_ns) {
      ++life;
      continue;
    }
    life->second.connection->Cut();
    life = lives_.erase(life);
  }
}

void FaultyPoller::SetAlarm() {
  std::int64_t due_ns = held_.empty() ? -1 : held_.front().due_ns;
  for (const auto& [number, life] : lives_) {
    if (due_ns < 0 || life.end_ns < due_ns) due_ns = life.end_ns;
  }
  if (!refused_.empty()) due_ns = clock_.NowNs();
  if (due_ns < 0) {
    alarm_.Cancel();
  } else if (!alarm_.armed() || alarm_.deadline_ns() != due_ns) {
    alarm_.ArmAt(due_ns);
  }
}

// Refuses some requests, starts the lives of new connections; how many events are left, at the
// front.
std::size_t FaultyPoller::Filter(std::span<CmEvent> events) {
  std::size_t count = 0;
  for (CmEvent& event : events) {
    if (event.kind == CmEvent::Kind::kIncoming && Draw(spec_.refuse_ppm)) {
      event.incoming->Reject({});
      event.incoming.reset();
      continue;
    }
    if (event.kind == CmEvent::Kind::kEstablished && spec_.cut_every_ns != 0) {
      auto* connection = static_cast<FaultyConnection*>(event.connection);
      const std::int64_t life_ns =
          prng_.Between(spec_.cut_every_ns / 2, spec_.cut_every_ns + spec_.cut_every_ns / 2);
      lives_[connection->number()] = {connection, clock_.NowNs() + life_ns};
    }
    if (&event != &events[count]) events[count] = std::move(event);
    ++count;
  }
  return count;
}

std::size_t FaultyPoller::PollEvents(std::span<CmEvent> out) {
  CutTheOld();
  std::size_t count = 0;
  while (count < out.size() && !refused_.empty()) {
    RefusedConnection& refused = *refused_.front();
    refused_.pop_front();
    refused.set_reported();
    out[count] = CmEvent();
    out[count].kind = CmEvent::Kind::kUnreachable;
    out[count].context = refused.context();
    out[count].connection = &refused;
    out[count].error = -ECONNREFUSED;
    ++count;
  }
  // Again if all were refused: there may be more, and the caller takes 0 for "nothing there".
  std::size_t inner_count = 0;
  do {
    const std::span<CmEvent> room = out.subspan(count);
    inner_count = room.empty() ? 0 : ForwardingPoller::PollEvents(room);
    count += Filter(room.first(inner_count));
  } while (count == 0 && inner_count > 0);
  SetAlarm();
  return count;
}

absl::StatusOr<std::unique_ptr<Connection>> FaultyPoller::StartConnect(
    const SocketAddress& peer, const ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  if (!Draw(spec_.refuse_ppm)) return ForwardingPoller::StartConnect(peer, options, private_data);
  auto refused = std::make_unique<RefusedConnection>(*this, peer, options);
  SetAlarm();
  return refused;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Poller>> FaultyFabric::CreatePoller(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<Poller>> poller = inner().CreatePoller(reactor);
  if (!poller.ok()) return poller.status();
  return std::make_unique<FaultyPoller>(spec_, ++poller_count_, reactor, *std::move(poller));
}

}  // namespace ibnbd::fabric
