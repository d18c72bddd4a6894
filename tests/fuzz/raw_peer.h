// SPDX-License-Identifier: Apache-2.0
// A peer in the simulated world that speaks verbs and nothing above: what it sends, and where it
// writes to, is the fuzzer's choice.  Towards its own fabric it keeps the caller's duties of
// fabric.h, so that every violation the world reports is the other side's.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/arena.h"
#include "fabric/fabric.h"
#include "fabric/sim/sim_world.h"

namespace ibnbd::fuzz {

class RawPeer final : public ReactorSource {
 public:
  static constexpr std::size_t kSlots = 6;  // Connections at a time.
  static constexpr std::uint32_t kReceives = 64;
  static constexpr std::uint32_t kReceiveSize = 512;
  static constexpr std::uint32_t kLandingSize = 64 << 10;

  RawPeer(sim::World& world, sim::Host& host);
  ~RawPeer() override;  // Disconnects all and waits.

  SocketAddress Listen();
  // Nothing happens when the slot is taken.
  void Connect(std::size_t slot, const SocketAddress& to, std::span<const std::byte> private_data);
  // The connection's slot, or kSlots if none was free.
  std::size_t Accept(fabric::Incoming& incoming, std::span<const std::byte> private_data);
  // Nothing happens when the slot is not connected, or the peer has sent as much as it may.
  void Post(std::size_t slot, fabric::SendRequest request, std::span<const std::byte> payload);
  void PostAgain();  // What was posted last.
  void Disconnect(std::size_t slot);
  void DisconnectAll();
  [[nodiscard]] bool AllGone();

  // kLandingSize bytes that the other side may write to.
  [[nodiscard]] fabric::RemoteAddress landing() const;
  [[nodiscard]] std::span<std::byte> landing_memory() { return landing_; }

  std::function<void(std::unique_ptr<fabric::Incoming>)> on_incoming;
  // `message`: what a send brought; empty for a write with an immediate.
  std::function<void(std::size_t slot, const fabric::Completion&, std::span<const std::byte>)>
      on_message;

  // ReactorSource
  bool Poll() override;
  void Flush() override { poller_->Flush(); }

 private:
  struct Slot {
    std::unique_ptr<fabric::Connection> connection;
    bool may_send = false;
    bool over = false;  // kDisconnected, kRejected or kUnreachable was seen.
    std::uint32_t sends = 0;
  };
  struct LastPost {
    std::size_t slot = kSlots;
    fabric::SendRequest request;
    fabric::Sge source;
  };
  void PostLast();
  fabric::ConnectionOptions Options(std::size_t slot);
  fabric::Sge ReceiveSge(std::size_t slot, std::uint32_t index);
  void OnEvent(fabric::CmEvent& event);
  void OnCompletion(const fabric::Completion& completion);
  void Reap();

  sim::World& world_;
  sim::Host& host_;
  Reactor& reactor_;
  Arena arena_;  // Receives, landing area, sources.
  std::span<std::byte> landing_;
  std::span<std::byte> sources_;  // What is left: each source is used once, which keeps F9.
  std::unique_ptr<fabric::Region> region_;
  std::unique_ptr<fabric::Poller> poller_;
  std::unique_ptr<fabric::Listener> listener_;
  std::array<Slot, kSlots> slots_;
  LastPost last_;
  std::vector<fabric::Sge> receive_sges_;
  std::vector<fabric::ReceiveRequest> receives_;
};

}  // namespace ibnbd::fuzz
