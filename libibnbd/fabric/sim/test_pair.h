// SPDX-License-Identifier: Apache-2.0
// The smallest customers a fabric can have, for the tests of the simulator and of the decorators:
// two hosts, a reactor, a poller and a connection on each.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "base/check.h"
#include "fabric/sim/sim_world.h"

namespace ibnbd::sim {

inline constexpr fabric::Limits kLimits{64, 64, 2, 0};
inline constexpr std::uint32_t kSlotSize = 64;
inline constexpr std::uint32_t kSlotCount = 64;
inline constexpr std::uint64_t kReceiveCookie = 1000;

// One end: a reactor with a poller that is looked at in every turn, one connection, memory.
class Peer final : public ReactorSource {
 public:
  explicit Peer(Host& on) : Peer(on, on.fabric()) {}
  Peer(Host& on, fabric::Fabric& through) : host(on), reactor(on.AddReactor()), fabric(through) {
    region = fabric.Register(memory, fabric::Access::kRemoteWrite).value();
    poller = fabric.CreatePoller(reactor).value();
    reactor.AddSource(*this);
  }
  ~Peer() override {
    reactor.RemoveSource(*this);
    connection.reset();
    incoming.reset();
    listener.reset();
    poller.reset();
    region.reset();
  }

  bool Poll() override {
    std::array<fabric::CmEvent, 4> events;
    const std::size_t event_count = poller->PollEvents(events);
    for (std::size_t i = 0; i < event_count; ++i) OnEvent(events[i]);
    std::array<fabric::Completion, 16> batch;
    const std::size_t count = poller->PollCompletions(batch);
    for (std::size_t i = 0; i < count; ++i) completions.push_back(batch[i]);
    return event_count + count > 0;
  }
  void Flush() override { poller->Flush(); }

  void OnEvent(fabric::CmEvent& event) {
    kinds.push_back(event.kind);
    last_error = event.error;
    if (event.kind != fabric::CmEvent::Kind::kIncoming) return;
    incoming = std::move(event.incoming);
    if (!accept) return;
    connection = incoming->Accept(*poller, Options(), {}).value();
    incoming.reset();
  }
  fabric::ConnectionOptions Options() {
    receives.clear();
    receive_sges.resize(kSlotCount / 2);
    for (std::uint32_t i = 0; i < kSlotCount / 2 && post_receives; ++i) {
      receive_sges[i] = Piece(kSlotCount / 2 + i);
      receives.push_back({kReceiveCookie + i, {&receive_sges[i], 1}});
    }
    return {kLimits, 0, receives};
  }
  fabric::Sge Piece(std::uint32_t slot) {
    return {memory.data() + slot * kSlotSize, kSlotSize, region->lkey()};
  }
  void Fill(std::uint32_t slot, int value) {
    std::memset(memory.data() + slot * kSlotSize, value, kSlotSize);
  }
  int At(std::uint32_t slot) const { return std::to_integer<int>(memory[slot * kSlotSize]); }
  void Write(Peer& to, std::uint32_t from_slot, std::uint32_t to_slot, fabric::Cookie cookie,
             fabric::Opcode opcode = fabric::Opcode::kWrite) {
    const fabric::Sge sge = Piece(from_slot);
    fabric::SendRequest request;
    request.cookie = cookie;
    request.opcode = opcode;
    request.imm = static_cast<std::uint32_t>(cookie);
    request.remote = {reinterpret_cast<std::uintptr_t>(to.memory.data()) + to_slot * kSlotSize,
                      to.region->rkey()};
    request.sges = {&sge, 1};
    connection->PostSend({&request, 1});
  }
  bool Saw(fabric::CmEvent::Kind kind) const {
    return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
  }
  bool Gone() const { return Saw(fabric::CmEvent::Kind::kDisconnected) && connection->drained(); }

  Host& host;
  Reactor& reactor;
  fabric::Fabric& fabric;
  std::vector<std::byte> memory = std::vector<std::byte>(kSlotSize * kSlotCount);
  std::unique_ptr<fabric::Region> region;
  std::unique_ptr<fabric::Poller> poller;
  std::unique_ptr<fabric::Listener> listener;
  std::unique_ptr<fabric::Incoming> incoming;
  std::unique_ptr<fabric::Connection> connection;
  std::vector<fabric::Sge> receive_sges;
  std::vector<fabric::ReceiveRequest> receives;
  std::vector<fabric::CmEvent::Kind> kinds;
  std::vector<fabric::Completion> completions;
  int last_error = 0;
  bool accept = true;
  bool post_receives = true;
};

// A client and a server, connected; each through a decorator, if one is given.
struct Pair {
  using Decorate = std::function<std::unique_ptr<fabric::Fabric>(fabric::Fabric& inner)>;
  explicit Pair(std::uint64_t seed, const FaultPlan& plan = FaultPlan(),
                const Decorate& decorate = nullptr)
      : world(seed, plan) {
    client = MakePeer("client", decorate);
    server = MakePeer("server", decorate);
    server->listener = server->poller->Listen(server->host.Address(0), 7).value();
  }
  ~Pair() { Close(); }
  std::unique_ptr<Peer> MakePeer(const char* name, const Decorate& decorate) {
    Host& host = world.AddHost(name);
    if (!decorate) return std::make_unique<Peer>(host);
    decorators.push_back(decorate(host.fabric()));
    return std::make_unique<Peer>(host, *decorators.back());
  }
  void StartConnect() {
    client->connection =
        client->poller->StartConnect(server->listener->local_address(), client->Options(), {})
            .value();
  }
  void Connect() {
    StartConnect();
    CHECK(world.RunUntil(
        [this] {
          return client->Saw(fabric::CmEvent::Kind::kEstablished) &&
                 server->Saw(fabric::CmEvent::Kind::kEstablished);
        },
        kNsPerSecond));
  }
  void Close() {
    for (Peer* peer : {client.get(), server.get()}) {
      if (peer == nullptr || peer->connection == nullptr) continue;
      peer->connection->Disconnect();
      world.RunUntil([peer] { return peer->connection->drained(); }, 60 * kNsPerSecond);
      peer->connection.reset();
    }
    client.reset();
    server.reset();
  }
  World world;
  std::vector<std::unique_ptr<fabric::Fabric>> decorators;
  std::unique_ptr<Peer> client, server;
};

}  // namespace ibnbd::sim
