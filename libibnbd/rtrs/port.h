// SPDX-License-Identifier: Apache-2.0
// A reactor's door to one fabric: owns the Poller, polls it once per turn, and routes completions
// and connection events to the connection's owner.  Client lanes, server paths and listeners attach
// here. Everything on the reactor's thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/slot_pool.h"
#include "fabric/fabric.h"
#include "reactor/reactor.h"

namespace ibnbd::rtrs {

// What a cookie says once it is taken apart.  `kind` and `slot` belong to the owner: which sort of
// request this was, and which of its slots.
struct CookieParts {
  std::uint8_t kind = 0;  // 4 bits.
  SlotRef slot;           // 20 bits of index, 12 of generation.
};

// Who gets the completions and events of one connection (or the kIncoming events of one listener).
class PortClient {
 public:
  virtual ~PortClient() = default;
  virtual void OnCompletion(const CookieParts& cookie, const fabric::Completion& completion) = 0;
  virtual void OnCmEvent(fabric::CmEvent& event) = 0;
  // Once per turn in which this client asked for it with Port::RequestTurnEnd(): the place to build
  // one batch of posts out of all that happened in the turn.
  virtual void OnTurnEnd() {}
};

class Port final : public ReactorSource {
 public:
  static absl::StatusOr<std::unique_ptr<Port>> Create(Reactor& reactor, fabric::Fabric& fabric);
  ~Port() override;  // Requires: no clients.

  [[nodiscard]] Reactor& reactor() { return reactor_; }
  [[nodiscard]] fabric::Fabric& fabric() { return fabric_; }
  [[nodiscard]] fabric::Poller& poller() { return *poller_; }

  // A context value for ConnectionOptions::context, Listen() and MakeCookie(); never reused for
  // another client while late events could still carry it (its generation changes).
  std::uint64_t Attach(PortClient& client);
  // Later completions and events with this context are dropped and counted.
  void Detach(std::uint64_t context);
  // Calls client.OnTurnEnd() before this turn's Flush(); asking twice is asking once.
  void RequestTurnEnd(std::uint64_t context);

  // {owner generation:12, owner index:16, kind:4, slot generation:12, slot index:20}
  static fabric::Cookie MakeCookie(std::uint64_t context, std::uint8_t kind, SlotRef slot);

  [[nodiscard]] std::uint64_t stale_completion_count() const { return stale_completions_; }

  bool Poll() override;
  void Flush() override;
  bool HasWork() override { return poller_->HasWork(); }
  void PrepareToSleep() override { poller_->PrepareToSleep(); }

 private:
  struct Entry {
    PortClient* client = nullptr;
    bool turn_end_requested = false;
  };
  static constexpr std::uint32_t kClientsMax = 1u << 14;
  static constexpr std::size_t kCompletionBatch = 64;
  static constexpr std::size_t kTurnEndsAgainMax = 64;
  static constexpr std::size_t kCompletionBudget = 512;  // Per turn: others want to run too.

  Port(Reactor& reactor, fabric::Fabric& fabric) : reactor_(reactor), fabric_(fabric) {}
  PortClient* Find(std::uint64_t context);

  Reactor& reactor_;
  fabric::Fabric& fabric_;
  std::unique_ptr<fabric::Poller> poller_;
  SlotPool<Entry> clients_{kClientsMax};
  std::vector<std::uint64_t> turn_end_queue_;
  std::uint64_t stale_completions_ = 0;
};

}  // namespace ibnbd::rtrs
