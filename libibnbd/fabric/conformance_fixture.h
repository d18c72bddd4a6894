// SPDX-License-Identifier: Apache-2.0
// What the conformance tests share: one end of a connection with memory, a pump that runs the world
// until something is so, and short ways to post.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "fabric/conformance_world.h"
#include "fabric/fabric.h"

namespace ibnbd::fabric {

inline constexpr std::size_t kAreaSize = 256 * 1024;
inline constexpr Limits kAskedLimits{64, 64, 4, 0};
inline constexpr std::uint64_t kPassiveContext = 200;

inline std::vector<std::byte> Bytes(const std::string& text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}
inline std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct SeenEvent {
  CmEvent::Kind kind;
  std::uint64_t context;
  Connection* connection;
  std::string private_data;
  int error;
};

// A host's poller with all that came out of it.
struct Side {
  Poller* poller = nullptr;
  std::vector<Completion> completions;
  std::vector<SeenEvent> events;
  std::vector<std::unique_ptr<Incoming>> incoming;

  void Poll() {
    std::array<Completion, 8> batch;
    const std::size_t count = poller->PollCompletions(batch);
    completions.insert(completions.end(), batch.begin(), batch.begin() + count);
    std::array<CmEvent, 4> some;
    const std::size_t event_count = poller->PollEvents(some);
    for (std::size_t i = 0; i < event_count; ++i) {
      events.push_back({some[i].kind, some[i].context, some[i].connection,
                        Text(some[i].private_data), some[i].error});
      if (some[i].incoming) incoming.push_back(std::move(some[i].incoming));
    }
  }
  std::size_t Count(CmEvent::Kind kind) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const auto& e) { return e.kind == kind; }));
  }
  const SeenEvent* Find(CmEvent::Kind kind) const {
    for (const SeenEvent& event : events) {
      if (event.kind == kind) return &event;
    }
    return nullptr;
  }
  std::vector<Completion> Of(Cookie cookie) const {
    std::vector<Completion> found;
    for (const Completion& c : completions) {
      if (c.cookie == cookie) found.push_back(c);
    }
    return found;
  }
  WcStatus StatusOf(Cookie cookie) const {
    const auto found = Of(cookie);
    EXPECT_EQ(found.size(), 1u) << "completions of cookie " << cookie;
    return found.empty() ? WcStatus::kLocalFault : found.front().status;
  }
};

class ConformanceTest : public testing::TestWithParam<ConformanceParam> {
 protected:
  void SetUp() override {
    world_ = GetParam().create();
    if (world_ == nullptr)
      GTEST_SKIP() << "SKIP no device for the " << GetParam().name << " fabric";
    for (int host = 0; host < 2; ++host) {
      sides_[Index(host)].poller = &world_->poller(host, 0);
      lanes_[Index(host)].poller = &world_->poller(host, 1);
      arenas_[Index(host)] = *Arena::Create(kAreaSize);
      std::fill(area(host).begin(), area(host).end(), std::byte{0xee});
      regions_[Index(host)] = *world_->fabric(host).Register(area(host), Access::kRemoteWrite);
    }
  }
  void TearDown() override {
    if (world_ == nullptr) return;
    for (auto& end : ends_) {
      if (end) end->Disconnect();
    }
    EXPECT_TRUE(Until([&] { return DrainedAll(); })) << "connections did not drain";
    for (auto& end : ends_) end.reset();
    listener_.reset();
    for (auto* side : {&sides_[0], &sides_[1], &lanes_[0], &lanes_[1]}) side->incoming.clear();
    for (auto& region : regions_) region.reset();
    extra_regions_.clear();
    domain_.reset();
    world_.reset();
  }
  bool DrainedAll() const {
    return std::all_of(ends_.begin(), ends_.end(),
                       [](const auto& e) { return !e || e->drained(); });
  }

  std::span<std::byte> area(int host) { return arenas_[Index(host)].bytes(); }
  Side& side(int host) { return sides_[Index(host)]; }
  Connection& end(int host) { return *ends_[Index(host)]; }
  Fabric& fabric(int host) { return world_->fabric(host); }

  void Pump() {
    for (auto* s : {&sides_[0], &sides_[1], &lanes_[0], &lanes_[1]}) s->poller->Flush();
    world_->Progress();
    for (auto* s : {&sides_[0], &sides_[1], &lanes_[0], &lanes_[1]}) s->Poll();
  }
  template <class Condition>
  bool Until(Condition condition) {
    const std::int64_t deadline_ns = MonotonicClock().NowNs() + 15 * kNsPerSecond;
    while (!condition()) {
      Pump();
      if (MonotonicClock().NowNs() > deadline_ns) return condition();
    }
    return true;
  }
  void Settle() {
    for (int i = 0; i < world_->settle_rounds(); ++i) Pump();
  }

  void Listen(int host) {
    auto listener = sides_[Index(host)].poller->Listen(world_->listen_address(host), 77);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }
  ConnectionOptions Options(std::uint64_t context, std::span<const ReceiveRequest> receives = {}) {
    ConnectionOptions options;
    options.limits = limits_;
    options.context = context;
    options.receives = receives;
    if (context == kPassiveContext) options.domain = domain_.get();
    return options;
  }
  void StartConnect(std::span<const ReceiveRequest> receives = {}, const std::string& data = "hi") {
    auto started = sides_[0].poller->StartConnect(listener_->local_address(),
                                                  Options(100, receives), Bytes(data));
    ASSERT_TRUE(started.ok()) << started.status();
    ends_[0] = *std::move(started);
  }
  void Accept(std::span<const ReceiveRequest> receives = {}, const std::string& data = "yes") {
    ASSERT_TRUE(Until([&] { return !side(1).incoming.empty(); })) << "no connection request";
    if (own_domain_) domain_ = *side(1).incoming.front()->CreateDomain();
    auto accepted = side(1).incoming.front()->Accept(
        *side(1).poller, Options(kPassiveContext, receives), Bytes(data));
    ASSERT_TRUE(accepted.ok()) << accepted.status();
    ends_[1] = *std::move(accepted);
    side(1).incoming.clear();
  }
  void Connect(std::span<const ReceiveRequest> active = {},
               std::span<const ReceiveRequest> passive = {}) {
    ASSERT_NO_FATAL_FAILURE(Listen(1));
    ASSERT_NO_FATAL_FAILURE(StartConnect(active));
    ASSERT_NO_FATAL_FAILURE(Accept(passive));
    ASSERT_TRUE(Until([&] {
      return side(0).Count(CmEvent::Kind::kEstablished) == 1 &&
             side(1).Count(CmEvent::Kind::kEstablished) == 1;
    })) << "no connection";
  }

  // A piece of a host's area.
  Sge Piece(int host, std::size_t offset, std::size_t length) {
    return {area(host).data() + offset, static_cast<std::uint32_t>(length),
            regions_[Index(host)]->lkey()};
  }
  RemoteAddress Remote(int host, std::size_t offset) {
    return {reinterpret_cast<std::uintptr_t>(area(host).data()) + offset,
            regions_[Index(host)]->rkey()};
  }
  void Fill(int host, std::size_t offset, std::size_t length, int value) {
    std::memset(area(host).data() + offset, value, length);
  }
  bool AreaIs(int host, std::size_t offset, std::size_t length, int value) {
    const auto part = area(host).subspan(offset, length);
    return std::all_of(part.begin(), part.end(),
                       [&](std::byte b) { return b == static_cast<std::byte>(value); });
  }
  void Send(int host, Opcode opcode, Cookie cookie, const Sge& sge, RemoteAddress remote = {},
            std::uint32_t imm = 0, bool signaled = true) {
    SendRequest request;
    request.cookie = cookie;
    request.opcode = opcode;
    request.signaled = signaled;
    request.imm = imm;
    request.remote = remote;
    if (sge.length > 0) request.sges = {&sge, 1};
    end(host).PostSend({&request, 1});
  }
  void Receive(int host, Cookie cookie, const Sge& sge) {
    ReceiveRequest request;
    request.cookie = cookie;
    if (sge.length > 0) request.sges = {&sge, 1};
    end(host).PostReceive({&request, 1});
  }
  bool Done(int host, Cookie cookie) { return !side(host).Of(cookie).empty(); }
  void ExpectFault(WcStatus status, WcStatus expected) {
    if (!world_->names_every_fault() && status == WcStatus::kFlushed) return;
    EXPECT_EQ(status, expected);
  }
  bool BothDisconnected() {
    return side(0).Count(CmEvent::Kind::kDisconnected) > 0 &&
           side(1).Count(CmEvent::Kind::kDisconnected) > 0;
  }

  std::unique_ptr<ConformanceWorld> world_;
  Limits limits_ = kAskedLimits;
  bool own_domain_ = false;         // The passive end gets one...
  std::unique_ptr<Domain> domain_;  // ... namely this one.
  std::array<Side, 2> sides_, lanes_;
  std::array<Arena, 2> arenas_;
  std::array<std::unique_ptr<Region>, 2> regions_;
  std::vector<std::unique_ptr<Region>> extra_regions_;
  std::array<std::unique_ptr<Connection>, 2> ends_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace ibnbd::fabric
