// SPDX-License-Identifier: Apache-2.0
// One reactor's end of the verbs fabric: a CM event channel, a completion queue (or more) per
// device, and the table that finds a connection again by the name of its work request.  On the
// reactor's thread.
//
// Sleeping.  While the reactor is awake the completion queues are polled and nothing else; only
// when it is about to sleep they are armed, and looked at once more.  The descriptors of the
// completion channels, of the CM channel and of the devices' events are watched by the reactor's
// ring.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/verbs/verbs_handles.h"
#include "reactor/io_ring.h"
#include "reactor/reactor.h"

namespace ibnbd::verbs {

class VerbsConnection;
class VerbsFabric;

// Who gets the CM events of an id: rdma_cm_id::context points to one, or is null.
class CmTarget {
 public:
  // `private_data` is the event's, and copied by who wants to keep it.
  virtual void OnCmEvent(const rdma_cm_event& event, std::span<const std::byte> private_data) = 0;

 protected:
  ~CmTarget() = default;
};

class VerbsPoller final : public fabric::Poller {
 public:
  static absl::StatusOr<std::unique_ptr<VerbsPoller>> Create(VerbsFabric& fabric, Reactor& reactor);
  ~VerbsPoller() override;

  std::size_t PollCompletions(std::span<fabric::Completion> out) override;
  std::size_t PollEvents(std::span<fabric::CmEvent> out) override;
  void Flush() override {}  // PostSend() rings the doorbell, once per batch.
  bool HasWork() override;
  void PrepareToSleep() override;
  absl::StatusOr<std::unique_ptr<fabric::Connection>> StartConnect(
      const SocketAddress& peer, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  absl::StatusOr<std::unique_ptr<fabric::Listener>> Listen(const SocketAddress& local,
                                                           std::uint64_t context) override;

  // --- For connections and listeners. ---
  [[nodiscard]] VerbsFabric& fabric() { return fabric_; }
  [[nodiscard]] Reactor& reactor() { return reactor_; }
  [[nodiscard]] rdma_event_channel* channel() { return channel_.get(); }
  struct Place {
    std::uint16_t index = 0;
    std::uint16_t generation = 0;
  };
  absl::StatusOr<Place> AddConnection(VerbsConnection& connection);
  void RemoveConnection(const Place& place);
  void AddListener() { ++listener_count_; }
  void RemoveListener() { --listener_count_; }
  // A completion queue of the device, with room for `entries` more; given back by ReturnEntries().
  absl::StatusOr<ibv_cq*> TakeEntries(ibv_context* context, std::uint32_t entries);
  void ReturnEntries(ibv_cq* cq, std::uint32_t entries);
  void PushCompletion(VerbsConnection& connection, const fabric::Completion& completion);
  void PushEvent(fabric::CmEvent event, std::span<const std::byte> private_data);
  // It is broken: what is left of it is taken down once its completions have been seen.
  void AddBroken(VerbsConnection& connection) { broken_.push_back(&connection); }

 private:
  struct Slot {
    VerbsConnection* connection = nullptr;
    std::uint16_t generation = 0;
  };
  struct Stashed {
    fabric::Completion completion;
    VerbsConnection* connection = nullptr;
  };
  struct QueuedEvent {
    fabric::CmEvent event;
    std::vector<std::byte> private_data;
  };
  // Watches a descriptor from Arm() on, for as long as the kernel likes.
  class Watch final : public IoRingOp {
   public:
    void Arm(IoRing& ring, int fd);
    void OnCqe(int result, std::uint32_t flags) override {
      armed = (flags & IORING_CQE_F_MORE) != 0;
      fired = true;
      if (result == -EINVAL) multishot = false;  // Before Linux 5.13.
    }
    bool multishot = true;
    bool armed = false;
    bool fired = false;
  };
  struct DeviceQueue {
    CompChannelHandle channel;
    CqHandle cq;
    std::uint32_t entries_max = 0;   // What the device allows; never less than `entries`.
    std::uint32_t entries = 0;       // What the queue has.
    std::uint32_t entries_used = 0;  // What connections may need at once.
    bool armed = false;              // The device will tell the channel of the next completion.
    Watch watch;
    int device_fd = -1;  // Of what the device says of itself.
    Watch device_watch;
  };

  VerbsPoller(VerbsFabric& fabric, Reactor& reactor) : fabric_(fabric), reactor_(reactor) {}
  absl::StatusOr<DeviceQueue*> AddQueue(ibv_context* context, std::uint32_t entries);
  absl::StatusOr<DeviceQueue*> QueueFor(ibv_context* context, std::uint32_t entries);
  static bool Lengthen(DeviceQueue& queue, std::uint32_t wanted);
  std::size_t PollQueue(DeviceQueue& queue, std::span<fabric::Completion> out);
  std::size_t TakeStashed(std::span<fabric::Completion> out);
  void StashQueue(DeviceQueue& queue);
  bool OnWc(const ibv_wc& wc, fabric::Completion* out);
  void FinishBroken();
  void ReadCmEvents();
  void TakeEvent(DeviceQueue& queue);

  VerbsFabric& fabric_;
  Reactor& reactor_;
  EventChannelHandle channel_;
  Watch cm_watch_;
  std::vector<std::unique_ptr<DeviceQueue>> queues_;  // One per device, or more.
  std::vector<Slot> slots_;
  std::vector<std::uint16_t> free_slots_;
  std::vector<Stashed> stash_;
  std::size_t stash_head_ = 0;
  std::deque<QueuedEvent> events_;
  std::vector<std::vector<std::byte>> reported_data_;  // Of the last PollEvents().
  std::vector<VerbsConnection*> broken_;
  std::size_t connection_count_ = 0;
  std::size_t listener_count_ = 0;
};

}  // namespace ibnbd::verbs
