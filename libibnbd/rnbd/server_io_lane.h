// SPDX-License-Identifier: Apache-2.0
// The block half of one server lane: finds the device of an IO in the lane's own table, checks the
// IO against what was opened, gives it to the backend and answers with what the backend said.  On
// the lane's thread; the control plane changes the table by posting Install() and Remove().
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "proto/rnbd.h"
#include "rnbd/block_backend.h"
#include "rtrs/server_service.h"

namespace ibnbd::rnbd {

class IoLane;

// What one queue of the client's, that is one connection number on all paths, knows of what a
// device has lost.  Any thread; only flushes come here.
struct QueueErrors {
  QueueErrors(std::shared_ptr<SyncErrors> of_device, std::uint64_t told_before)
      : device(std::move(of_device)), told(told_before) {}
  const std::shared_ptr<SyncErrors> device;
  // Of answers that are certain to have been read: one may be lost with its path, and the flush,
  // which then comes again, must fail again.
  HighestCount told;
};

// The state of one IO, in the request of its chunk.
class IoRequest final : public rtrs::ServerRequest, public BackendIo {
 public:
  void OnBackendDone(int error) override;

 private:
  friend class IoLane;
  IoLane* io_lane_ = nullptr;
  std::uint32_t device_id_ = 0;
  bool flush_after_ = false;  // FUA on a backend that can only flush.
  // If it makes something stable.  kAll: what completed before it; kItself: FUA.
  enum class Sync : std::uint8_t { kNone, kItself, kAll } sync_ = Sync::kNone;
  std::uint64_t sync_errors_ = 0;  // More than these are its own to tell.
  // A client uses a chunk again on the same path when it has read the last answer.
  void OnAnswerRead();
  std::shared_ptr<QueueErrors> told_;  // That `told_count_` were lost was the last answer.
  std::uint64_t told_count_ = 0;
  bool told_a_writer_ = false;
};

// What the lanes of one reactor have done.  Written by that reactor's thread alone.
struct alignas(64) ReactorCounters {
  using Counter = std::atomic<std::uint64_t>;
  Counter reads{0}, writes{0}, flushes{0}, discards{0}, zeroes{0}, errors{0};
  Counter read_bytes{0}, write_bytes{0};
  static void Add(Counter& counter, std::uint64_t value) {
    counter.store(counter.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
  }
};

// What the path that carries a message can do.
struct ControlPeer {
  bool is_ibnbd = false;               // Understands our extensions.
  rtrs::PathFencer* fencer = nullptr;  // Null: it has not announced FENCE_PATH.
};

// Takes what is not an IO; connection 0 only, on the control thread.
class ControlMessageHandler {
 public:
  virtual void OnControlMessage(IoRequest& request, proto::RnbdType type,
                                const ControlPeer& peer) = 0;

 protected:
  ~ControlMessageHandler() = default;
};

// An open device as a lane sees it.
struct LaneDevice {
  BackendQueue* queue = nullptr;
  Geometry geometry;
  bool read_only = false;
  std::shared_ptr<QueueErrors> errors;  // Null: SyncErrors says why.
};

class IoLane final : public rtrs::ServerLaneService {
 public:
  // `control` is null for all lanes but that of connection 0; it outlives the lane's requests.
  IoLane(ReactorCounters& counters, ControlMessageHandler* control, const ControlPeer& peer)
      : counters_(counters), control_(control), peer_(peer) {}

  // Opens the device or changes what it may do.
  void Install(std::uint32_t device_id, const LaneDevice& device);
  // New IOs get -ENOTCONN from now on; `idle` is called when none executes any more.
  void Remove(std::uint32_t device_id, absl::AnyInvocable<void()> idle);

  void OnRequest(rtrs::ServerRequest& request) override;

 private:
  friend class IoRequest;
  struct Slot {
    LaneDevice device;                   // queue is null: not open.
    std::uint64_t sync_errors_told = 0;  // By this lane, read or on its way.
    std::uint32_t executing_count = 0;
    absl::AnyInvocable<void()> idle;
  };
  int StartIo(IoRequest& request, const proto::Io& message);
  int Prepare(IoRequest& request, const proto::Io& message, const LaneDevice& device);
  int PrepareWrite(IoRequest& request, const proto::Io& message, const LaneDevice& device);
  int PrepareRange(IoRequest& request, std::uint32_t bytes_max, BackendOp op);
  static bool BeginSync(IoRequest& request, Slot& slot);
  static int EndSync(IoRequest& request, Slot& slot, int error);
  void OnBackendDone(IoRequest& request, int error);
  void Count(const IoRequest& request, int error);

  ReactorCounters& counters_;
  ControlMessageHandler* const control_;
  const ControlPeer peer_;
  std::vector<Slot> slots_;  // By device id.
};

}  // namespace ibnbd::rnbd
