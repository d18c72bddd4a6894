// SPDX-License-Identifier: Apache-2.0
// A decorator that says what passes: one line per post, completion and connection event, like
//   connection 2 post write-imm cookie 17 signaled length 4096 imm 0x10000001
//   poller 1 completion cookie 17 ok write-imm
//   poller 1 event established connection 2
// For ibnbd-server --trace and for tests.  It formats text per IO: never without being asked for.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "fabric/forwarding_fabric.h"

namespace ibnbd::fabric {

const char* Name(Opcode opcode);
const char* Name(WcStatus status);
const char* Name(CmEvent::Kind kind);

class TracedFabric final : public ForwardingFabric {
 public:
  // Called on the thread of whichever poller has something to say.
  using Sink = std::function<void(const std::string& line)>;

  TracedFabric(Fabric& inner, Sink sink) : ForwardingFabric(inner), sink_(std::move(sink)) {}
  TracedFabric(std::unique_ptr<Fabric> inner, Sink sink)
      : ForwardingFabric(std::move(inner)), sink_(std::move(sink)) {}
  absl::StatusOr<std::unique_ptr<Region>> Register(std::span<std::byte> memory,
                                                   Access access) override;
  absl::StatusOr<std::unique_ptr<Poller>> CreatePoller(Reactor& reactor) override;

  void Say(const std::string& line) const { sink_(line); }
  std::uint32_t NextConnection() { return ++connection_count_; }

 private:
  const Sink sink_;
  std::atomic<std::uint32_t> connection_count_{0};
  std::atomic<std::uint32_t> poller_count_{0};
};

}  // namespace ibnbd::fabric
