// SPDX-License-Identifier: Apache-2.0
// One connection of a ScriptedServer: receives that are posted again as they complete, and messages
// of any kind, each from a place of its own.  On the thread of the server's reactor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/arena.h"
#include "rtrs/port.h"
#include "tests/support/peer_host.h"

namespace ibnbd::rnbd {

class ScriptedConnection final : public rtrs::PortClient {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual void OnMessage(ScriptedConnection& connection, const fabric::Completion& wc) = 0;
  };
  static constexpr std::uint32_t kReceives = 64, kReceiveSize = 512;
  static constexpr std::uint32_t kSends = 256, kSendSize = 16384;

  ScriptedConnection(fabric::Fabric& fabric, Owner& owner) : owner_(owner) {
    memory = *Arena::Create(kReceives * kReceiveSize + kSends * kSendSize);
    region = *fabric.Register(memory.bytes(), fabric::Access::kLocal);
  }
  void PostReceive(std::uint32_t index) {
    const fabric::Sge sge{&memory.bytes()[index * kReceiveSize], kReceiveSize, region->lkey()};
    const fabric::ReceiveRequest request{rtrs::Port::MakeCookie(context, 1, {index, 0}), {&sge, 1}};
    connection->PostReceive({&request, 1});
  }
  void Post(fabric::Opcode opcode, std::uint32_t imm, std::span<const std::byte> bytes,
            fabric::RemoteAddress remote = {}) {
    fabric::SendRequest request;
    request.opcode = opcode;
    request.imm = imm;
    request.remote = remote;
    Post(request, bytes);
  }
  void Post(fabric::SendRequest request, std::span<const std::byte> bytes) {
    std::byte* place = &memory.bytes()[kReceives * kReceiveSize + (sent++ % kSends) * kSendSize];
    std::copy(bytes.begin(), bytes.end(), place);
    const fabric::Sge sge{place, static_cast<std::uint32_t>(bytes.size()), region->lkey()};
    request.cookie = rtrs::Port::MakeCookie(context, 2, {});
    if (!bytes.empty()) request.sges = {&sge, 1};
    connection->PostSend({&request, 1});
  }
  void OnCompletion(const rtrs::CookieParts& cookie, const fabric::Completion& wc) override {
    if (wc.status != fabric::WcStatus::kOk || cookie.kind != 1) return;
    owner_.OnMessage(*this, wc);
    if (!gone) PostReceive(cookie.slot.index);
  }
  void OnCmEvent(fabric::CmEvent& event) override {
    using Kind = fabric::CmEvent::Kind;
    if (event.kind != Kind::kDisconnected && event.kind != Kind::kUnreachable) return;
    gone = true;
    connection->Disconnect();
  }

  std::uint16_t cid = 0;
  std::uint64_t context = 0;
  Arena memory;
  std::unique_ptr<fabric::Region> region;
  std::unique_ptr<fabric::Connection> connection;
  std::uint64_t sent = 0;
  bool gone = false;

 private:
  Owner& owner_;
};

}  // namespace ibnbd::rnbd
