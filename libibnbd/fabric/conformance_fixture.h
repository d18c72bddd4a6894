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
#include "fabric/conformance_side.h"
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
    window_.reset();
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
  // On bytes 4096 to 8191 of host 1's area; false: this fabric has none.
  bool MakeWindow() {
    auto region = fabric(1).Register(area(1).subspan(4096, 4096), Access::kWindows);
    if (absl::IsUnimplemented(region.status())) return false;
    EXPECT_TRUE(region.ok()) << region.status();
    EXPECT_EQ((*region)->rkey(), 0u);
    auto window = (*region)->CreateWindow();
    EXPECT_TRUE(window.ok()) << window.status();
    extra_regions_.push_back(*std::move(region));
    window_ = *std::move(window);
    return true;
  }
  SendRequest WindowRequest(Opcode opcode, Cookie cookie) {
    SendRequest request;
    request.cookie = cookie;
    request.opcode = opcode;
    request.window = window_.get();
    return request;
  }
  std::uint32_t OpenWindow(Cookie cookie) {  // Host 1 does; the key.
    const std::uint32_t rkey = window_->next_rkey();
    const SendRequest request = WindowRequest(Opcode::kOpenWindow, cookie);
    end(1).PostSend({&request, 1});
    EXPECT_NE(window_->next_rkey(), rkey);
    EXPECT_TRUE(Until([&] { return Done(1, cookie); }));
    EXPECT_EQ(side(1).StatusOf(cookie), WcStatus::kOk);
    return rkey;
  }
  // Host 0 writes 64 bytes into host 1's area; whether it was allowed.
  bool WriteThrough(Cookie cookie, std::size_t offset, std::uint32_t rkey, int value) {
    Fill(0, 0, 64, value);
    Send(0, Opcode::kWrite, cookie, Piece(0, 0, 64),
         {reinterpret_cast<std::uintptr_t>(area(1).data()) + offset, rkey});
    EXPECT_TRUE(Until([&] { return Done(0, cookie); }));
    return side(0).StatusOf(cookie) == WcStatus::kOk;
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
  std::unique_ptr<Window> window_;
  std::array<std::unique_ptr<Connection>, 2> ends_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace ibnbd::fabric
