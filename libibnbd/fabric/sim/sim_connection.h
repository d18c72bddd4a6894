// SPDX-License-Identifier: Apache-2.0
// One end of a simulated connection: keeps the books of its caller (limits, posted receives, who is
// owed a completion, when drained() holds) and checks them harder than hardware would.  What
// happens between the ends is Link's business.  Private to fabric/sim.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/sim/sim_link.h"

namespace ibnbd::sim {

class SimPoller;

struct PostedReceive {
  fabric::Cookie cookie = 0;
  std::vector<fabric::Sge> sges;
};

class SimConnection final : public fabric::Connection {
 public:
  // Validates and completes what the caller asks for.
  static absl::StatusOr<fabric::Limits> GrantLimits(const fabric::Limits& asked);

  SimConnection(std::shared_ptr<Link> link, Side side, SimPoller& poller,
                const fabric::Limits& limits, std::uint64_t context);
  ~SimConnection() override;

  void PostSend(std::span<const fabric::SendRequest> requests) override;
  void PostReceive(std::span<const fabric::ReceiveRequest> requests) override;
  void Disconnect() override;
  [[nodiscard]] bool drained() const override;
  [[nodiscard]] const fabric::Limits& limits() const override { return limits_; }
  [[nodiscard]] SocketAddress local_address() const override { return local_; }
  [[nodiscard]] SocketAddress peer_address() const override { return peer_; }

  void set_addresses(const SocketAddress& local, const SocketAddress& peer) {
    local_ = local;
    peer_ = peer;
  }
  [[nodiscard]] std::uint64_t context() const { return context_; }
  [[nodiscard]] SimPoller& poller() const { return poller_; }
  [[nodiscard]] const std::shared_ptr<Link>& link() const { return link_; }
  [[nodiscard]] std::uint64_t id() const { return link_->id() * 2 + Index(side_); }

  enum class State : std::uint8_t {
    kConnecting,  // Awaits the listener's answer.
    kUp,          // Messages pass.
    kBroken,      // Everything is flushed; awaits that the caller sees kDisconnected.
    kDead         // Never came up: kRejected or kUnreachable is on its way or was seen.
  };
  [[nodiscard]] State state() const { return state_; }
  void BecomeUp();
  void BecomeDead();

  // --- For Link. ---
  // Up, and the caller knows it (an active end receives nothing before, F12).
  [[nodiscard]] bool CanLand() const;
  [[nodiscard]] const PostedReceive* FirstReceive() const;
  void CompleteReceive(const fabric::Completion& result);  // The first posted one.
  void CompleteSend(std::uint64_t sequence, const fabric::SendRequest& request,
                    fabric::WcStatus status, std::uint32_t byte_count);
  // Flushes all that is posted here; `unfinished` are the sends that had left, in posting order.
  void Break(const std::deque<Message>& unfinished, fabric::WcStatus first_send,
             fabric::WcStatus first_receive, int error);

  // --- For SimPoller: the caller was given this. ---
  void OnSendPolled(std::uint64_t sequence);
  void OnReceivePolled();
  void OnEstablishedPolled();
  void OnDisconnectedPolled() { disconnect_polled_ = true; }
  void OnEndPolled() { end_polled_ = true; }
  void LaunchPosts();  // Flush().

 private:
  void CheckRequest(const fabric::SendRequest& request) const;
  Message MakeMessage(const fabric::SendRequest& request);
  void PushCompletion(bool is_send, std::uint64_t sequence, fabric::Completion completion);
  fabric::Completion Junk(fabric::Cookie cookie, fabric::WcStatus status);
  [[nodiscard]] Network& network() const { return link_->network(); }

  const std::shared_ptr<Link> link_;
  const Side side_;
  SimPoller& poller_;
  const fabric::Limits limits_;
  const std::uint64_t context_;
  SocketAddress local_, peer_;
  State state_ = State::kConnecting;
  bool disconnecting_ = false;
  bool established_polled_ = false;
  bool disconnect_polled_ = false;
  bool end_polled_ = false;
  std::int64_t drain_ns_ = 0;

  std::deque<Message> unflushed_;
  std::deque<PostedReceive> receives_;
  std::uint64_t sends_posted_ = 0;
  std::uint64_t sends_covered_ = 0;  // Sends up to this one are behind a polled completion.
  std::uint64_t receives_outstanding_ = 0;
  std::uint64_t completions_owed_ = 0;  // Made, not yet polled.
  std::int64_t send_floor_ns_ = 0;
  std::int64_t receive_floor_ns_ = 0;
};

}  // namespace ibnbd::sim
