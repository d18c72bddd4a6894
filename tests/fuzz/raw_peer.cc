// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/raw_peer.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/memory_provider.h"

namespace ibnbd::fuzz {
namespace {

constexpr std::size_t kReceiveBytes =
    RawPeer::kSlots * RawPeer::kReceives * std::size_t{RawPeer::kReceiveSize};
constexpr std::size_t kSourceBytes = 512 << 10;
constexpr std::uint32_t kSendsMax = 512;
// What hostile peers send holds addresses, and what becomes of garbage depends on them: a run can
// only be repeated if they are the same every time.
class SteadyPages final : public MemoryProvider {
 public:
  [[nodiscard]] const char* name() const override { return "steady"; }
  [[nodiscard]] absl::StatusOr<ProvidedMemory> Map(std::size_t byte_count) const override {
    for (std::uintptr_t place = kFirst; place < kEnd; place += kStride) {
      void* const wanted = reinterpret_cast<void*>(place);  // NOLINT: a fixed address it is.
      void* const got = ::mmap(wanted, byte_count, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (got == wanted) return ProvidedMemory{{static_cast<std::byte*>(got), byte_count}};
      if (got != MAP_FAILED) (void)::munmap(got, byte_count);  // An old kernel's idea of the flag.
    }
    return OrdinaryPages().Map(byte_count);  // Some sanitizers leave no such place.
  }

 private:
  static constexpr std::uintptr_t kFirst = 0x2000'0000'0000, kStride = 16 << 20;
  static constexpr std::uintptr_t kEnd = kFirst + 256 * kStride;
};

const MemoryProvider& Steady() {
  static const SteadyPages* const pages = new SteadyPages;
  return *pages;
}

constexpr fabric::Cookie kSendCookie = 1u << 31;  // Below it: slot * kReceives + receive.

}  // namespace

RawPeer::RawPeer(sim::World& world, sim::Host& host)
    : world_(world), host_(host), reactor_(host.AddReactor()) {
  arena_ = Arena::Create(kReceiveBytes + kLandingSize + kSourceBytes, Steady()).value();
  landing_ = arena_.bytes().subspan(kReceiveBytes, kLandingSize);
  sources_ = arena_.bytes().subspan(kReceiveBytes + kLandingSize, kSourceBytes);
  region_ = host_.fabric().Register(arena_.bytes(), fabric::Access::kRemoteWrite).value();
  poller_ = host_.fabric().CreatePoller(reactor_).value();
  reactor_.AddSource(*this);
}

RawPeer::~RawPeer() {
  on_incoming = nullptr;
  on_message = nullptr;
  listener_.reset();
  DisconnectAll();
  CHECK(world_.RunUntil([this] { return AllGone(); }, 100 * kNsPerSecond));
  reactor_.RemoveSource(*this);
}

SocketAddress RawPeer::Listen() {
  listener_ = poller_->Listen(host_.Address(1234), kSlots).value();
  return listener_->local_address();
}

fabric::Sge RawPeer::ReceiveSge(std::size_t slot, std::uint32_t index) {
  const std::size_t offset = (slot * kReceives + index) * kReceiveSize;
  return {arena_.bytes().data() + offset, kReceiveSize, region_->lkey()};
}

fabric::ConnectionOptions RawPeer::Options(std::size_t slot) {
  receive_sges_.clear();
  receives_.clear();
  for (std::uint32_t i = 0; i < kReceives; ++i) receive_sges_.push_back(ReceiveSge(slot, i));
  for (std::uint32_t i = 0; i < kReceives; ++i) {
    receives_.push_back({slot * kReceives + i, {&receive_sges_[i], 1}});
  }
  return {{kSendsMax, kReceives, 2, 0}, slot, receives_};
}

void RawPeer::Connect(std::size_t slot, const SocketAddress& to,
                      std::span<const std::byte> private_data) {
  Reap();
  Slot& mine = slots_.at(slot);
  if (mine.connection != nullptr) return;
  mine = Slot();
  mine.connection = poller_->StartConnect(to, Options(slot), private_data).value();
}

std::size_t RawPeer::Accept(fabric::Incoming& incoming, std::span<const std::byte> private_data) {
  Reap();
  for (std::size_t i = 0; i < kSlots; ++i) {
    if (slots_[i].connection != nullptr) continue;
    slots_[i] = Slot();
    slots_[i].connection = incoming.Accept(*poller_, Options(i), private_data).value();
    slots_[i].may_send = true;
    return i;
  }
  return kSlots;
}

void RawPeer::Post(std::size_t slot, fabric::SendRequest request,
                   std::span<const std::byte> payload) {
  if (payload.size() > sources_.size()) return;
  if (!payload.empty()) std::memcpy(sources_.data(), payload.data(), payload.size());
  last_.slot = slot;
  last_.request = request;
  last_.source = {sources_.data(), static_cast<std::uint32_t>(payload.size()), region_->lkey()};
  sources_ = sources_.subspan(payload.size());
  PostLast();
}

void RawPeer::PostAgain() {
  if (last_.slot < kSlots) PostLast();
}

void RawPeer::PostLast() {
  Slot& mine = slots_.at(last_.slot);
  if (mine.connection == nullptr || !mine.may_send || mine.over || mine.sends >= kSendsMax) return;
  ++mine.sends;
  last_.request.cookie = kSendCookie;
  last_.request.signaled = true;
  last_.request.sges = std::span(&last_.source, last_.source.length == 0 ? 0 : 1);
  mine.connection->PostSend({&last_.request, 1});
}

void RawPeer::Disconnect(std::size_t slot) {
  if (slots_.at(slot).connection != nullptr) slots_[slot].connection->Disconnect();
}

void RawPeer::DisconnectAll() {
  for (std::size_t i = 0; i < kSlots; ++i) Disconnect(i);
}

bool RawPeer::AllGone() {
  Reap();
  for (const Slot& slot : slots_) {
    if (slot.connection != nullptr) return false;
  }
  return true;
}

fabric::RemoteAddress RawPeer::landing() const {
  return {reinterpret_cast<std::uintptr_t>(landing_.data()), region_->rkey()};
}

void RawPeer::Reap() {
  for (Slot& slot : slots_) {
    if (slot.connection != nullptr && slot.over && slot.connection->drained()) slot = Slot();
  }
}

bool RawPeer::Poll() {
  std::array<fabric::CmEvent, 4> events;
  const std::size_t event_count = poller_->PollEvents(events);
  for (std::size_t i = 0; i < event_count; ++i) OnEvent(events[i]);
  std::array<fabric::Completion, 16> completions;
  const std::size_t count = poller_->PollCompletions(completions);
  for (std::size_t i = 0; i < count; ++i) OnCompletion(completions[i]);
  return event_count + count > 0;
}

void RawPeer::OnEvent(fabric::CmEvent& event) {
  using Kind = fabric::CmEvent::Kind;
  if (event.kind == Kind::kIncoming) {
    if (on_incoming) on_incoming(std::move(event.incoming));
    return;
  }
  Slot& slot = slots_.at(event.context);
  if (event.kind == Kind::kEstablished) {
    slot.may_send = true;
  } else {
    slot.over = true;
  }
}

void RawPeer::OnCompletion(const fabric::Completion& completion) {
  if (completion.cookie >= kSendCookie || completion.status != fabric::WcStatus::kOk) return;
  const std::size_t slot = completion.cookie / kReceives;
  const fabric::Sge sge =
      ReceiveSge(slot, static_cast<std::uint32_t>(completion.cookie % kReceives));
  const bool is_send = completion.opcode == fabric::Opcode::kReceive;
  if (on_message) {
    on_message(slot, completion,
               std::span(sge.addr, is_send ? completion.byte_count : std::uint32_t{0}));
  }
  if (slots_[slot].over || slots_[slot].connection == nullptr) return;
  const fabric::ReceiveRequest again{completion.cookie, {&sge, 1}};
  slots_[slot].connection->PostReceive({&again, 1});
}

}  // namespace ibnbd::fuzz
