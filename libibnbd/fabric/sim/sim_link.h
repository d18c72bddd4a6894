// SPDX-License-Identifier: Apache-2.0
// The pair of queues between two ends of a connection: what was sent and has not landed, what has
// landed and is not acknowledged, and what survives a break and lands later (F4).  Decides when a
// message lands, how the link breaks, and when each end sees it; the ends (SimConnection) only keep
// the books of their caller.  Owned by the Network, and by the events that are about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "fabric/fabric.h"

namespace ibnbd::sim {

class Host;
class Network;
struct FaultPlan;
class SimConnection;
class SimFabric;

enum class Side : std::uint8_t { kActive = 0, kPassive = 1 };
constexpr Side Other(Side side) { return side == Side::kActive ? Side::kPassive : Side::kActive; }
constexpr std::size_t Index(Side side) { return static_cast<std::size_t>(side); }

// A posted send on its way.
struct Message {
  std::uint64_t sequence = 0;   // Of its connection's sends.
  fabric::SendRequest request;  // Its sges are below.
  std::vector<fabric::Sge> sges;
  std::vector<std::byte> payload;  // Once taken: at once if inline, else when it lands.
  bool payload_taken = false;
  bool receive_missed = false;
  std::uint64_t checksum = 0;  // Of the source when it was posted.
  std::uint32_t length = 0;
  std::uint32_t window_rkey = 0;  // kOpenWindow: the key it gives.
  std::int64_t arrival_ns = 0;
  std::int64_t ack_ns = 0;
};

// A message that outlived its connection at the sender.
struct Stray {
  Message message;
  std::size_t byte_count = 0;  // Less than the message's: it lands in part, and nothing after it.
  bool whole = true;
};

class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(Network& network, std::uint64_t id, SimFabric& active, std::uint32_t rail);

  [[nodiscard]] std::uint64_t id() const { return id_; }
  [[nodiscard]] std::uint32_t rail() const { return rail_; }
  [[nodiscard]] const FaultPlan& plan() const;  // Of its rail.
  [[nodiscard]] Network& network() { return network_; }
  [[nodiscard]] SimConnection* end(Side side) const { return ends_[Index(side)]; }
  // Of the connection at this end, also when it is gone (F13).
  [[nodiscard]] std::uint64_t domain(Side side) const { return domains_[Index(side)]; }
  void set_domain(Side side, std::uint64_t id) { domains_[Index(side)] = id; }
  [[nodiscard]] SimFabric* fabric(Side side) const { return fabrics_[Index(side)]; }
  [[nodiscard]] bool cut() const { return cut_; }
  // Nothing gets through any more, and nobody is told; the host's other links are well.
  void Swallow() { swallowed_ = true; }
  // Nothing from this side gets through now.
  [[nodiscard]] bool Blocked(Side from) const;
  void AttachEnd(Side side, SimConnection& end);
  void DetachEnd(Side side);
  void set_passive_fabric(SimFabric& fabric) { fabrics_[1] = &fabric; }

  // --- Traffic. ---
  void Launch(Side side, Message message);
  void Kick();  // Something that may have been in the way is gone.
  void OnReceivePosted(Side side);

  // --- Breaking. ---
  // The network breaks the link: both ends see it, each in its own time.
  // `silent`: only in the time that a dead host takes to be noticed.
  void Cut(int error, bool silent = false);
  // This end sees the break: its first unfinished send gets `first_send`, everything else is
  // flushed.
  void SeeBreak(Side side, fabric::WcStatus first_send, int error,
                fabric::WcStatus first_receive = fabric::WcStatus::kFlushed);
  // The other end is told, late or very late.
  void TellLater(Side side, int error);

 private:
  struct Wire {  // One direction, by its sender.
    std::deque<Message> inflight;
    std::deque<Message> landed;
    std::deque<Stray> strays;
    std::int64_t arrival_floor_ns = 0;
    std::int64_t ack_floor_ns = 0;
    std::int64_t late_until_ns = 0;  // When the last stray lands, if they are late.
    bool severed = false;
    bool retry_armed = false;
  };
  // What became of a message at its target.
  struct Verdict {
    fabric::WcStatus sender = fabric::WcStatus::kOk;
    fabric::WcStatus receiver = fabric::WcStatus::kFlushed;  // Of the receive it was to consume.
    bool wait = false;                                       // For a receive.
  };
  [[nodiscard]] Wire& wire(Side side) { return wires_[Index(side)]; }
  [[nodiscard]] Host& host(Side side) const;
  [[nodiscard]] std::int64_t DrawDelay(Side from, std::uint32_t byte_count = 0);
  void ScheduleSelf(std::int64_t delay_ns, void (Link::*step)(Side), Side side);

  void Progress(Side side);
  void ProgressAcks(Side side);
  bool WaitForReceive(Side side, Message& message);  // False: no longer.
  Verdict Land(Side side, Message& message);
  Verdict LandWrite(Side side, const Message& message);
  Verdict LandSend(Side side, const Message& message);
  void CompleteReceive(Side side, const Message& message);
  bool TakePayload(Side side, Message& message);
  void FailHead(Side side, const Verdict& verdict);
  void ThrowLandingDice(Side target);

  void SeePeerGone(Side side, int error);
  void Sever(Side side);
  void LandStray(Side side);
  void LandStrayBytes(Side side, const Stray& stray);
  void ArmRetry(Side side);
  void OnRetryTimeout(Side side);

  Network& network_;
  const std::uint64_t id_;
  const std::uint32_t rail_;
  SimConnection* ends_[2] = {nullptr, nullptr};
  SimFabric* fabrics_[2];
  std::uint64_t domains_[2] = {0, 0};  // 0: the fabric's common one.
  Wire wires_[2];
  bool told_[2] = {false, false};  // A notice of the break is on its way to this end.
  bool cut_ = false;
  bool swallowed_ = false;
};

}  // namespace ibnbd::sim
