// SPDX-License-Identifier: Apache-2.0
// One hardware queue of a ublk device, on one loop.  Each tag has a command with the kernel: it
// comes back with a request of the block layer, which is submitted to the session's queue with the
// tag's registered buffer, and goes down again with the result, which also fetches the next
// request.  So an IO costs no system call of its own, no allocation, and the copy between the block
// layer's pages and the buffer that the NIC reads or writes, which the kernel makes.
//
// A queue ends when every tag's command came back for good (the device was stopped) and no IO is
// outstanding; then it is no member of its loop any more, and may be destroyed.
#pragma once

#include <ibnbd/ibnbd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "ibnbd-client/devices/ublk_abi.h"
#include "nbd-bridge/event_loop.h"

namespace ibnbd::client {

struct UblkQueueOptions {
  std::uint16_t index;  // Among the device's queues.
  std::uint16_t depth;
  std::uint32_t io_size_max;
  bool ioctl_encoded;
  ibnbd_session* session;
  ibnbd_device* device;
  ibnbd_queue* queue;  // Of the loop.
};

class UblkQueue final : public bridge::LoopMember {
 public:
  // Not on the loop's thread: it allocates and registers depth x io_size_max bytes.
  static absl::StatusOr<std::unique_ptr<UblkQueue>> Create(bridge::EventLoop& loop,
                                                           const UblkQueueOptions& options);
  ~UblkQueue() override;  // Requires: not started, ended, or abandoned.
  // Before Start().  `device_fd` is /dev/ublkcN, open for as long as the queue.
  absl::Status Attach(int device_fd);

  // --- The loop's thread. ---
  void Start();
  // IOs that come back are answered no more.  The queue leaves its loop, but its memory must stay
  // until the session is closed.
  void Abandon();
  void OnTurnEnd() override;  // IOs that a full queue refused are tried again.
  void OnTick() override {}
  void OnDrain() override {}

  // --- Any thread. ---
  absl::Notification& ended() { return ended_; }
  // Why the kernel refused to begin, 0 or a negative errno.
  [[nodiscard]] int first_error() const { return first_error_.load(std::memory_order_acquire); }

 private:
  struct Tag final : bridge::RingOp {
    UblkQueue* queue = nullptr;
    std::uint16_t number = 0;
    ibnbd_io io{};
    Tag* next_parked = nullptr;
    void OnCqe(int result) override { queue->OnCommand(*this, result); }
  };

  UblkQueue(bridge::EventLoop& loop, const UblkQueueOptions& options);
  absl::Status AllocateBuffers();

  // ublk_queue_datapath.cc.
  void OnCommand(Tag& tag, int result);
  void SubmitIo(Tag& tag);
  static void OnIoDone(ibnbd_io* io, int result);
  void Answer(Tag& tag, int result);
  void SendCommand(Tag& tag, std::uint32_t op, int result);
  void EndIfDone();

  bridge::EventLoop& loop_;
  const UblkQueueOptions options_;
  const std::uint32_t fetch_op_;
  const std::uint32_t commit_op_;
  int device_fd_ = -1;
  const ublksrv_io_desc* descriptors_ = nullptr;  // The kernel's, by tag; shared, read-only.
  std::size_t descriptors_size_ = 0;
  ibnbd_buffer* buffer_ = nullptr;
  std::byte* memory_ = nullptr;
  std::unique_ptr<Tag[]> tags_;
  std::uint32_t tags_fetching_ = 0;  // Their command is with the kernel.
  std::uint32_t ios_outstanding_ = 0;
  Tag* first_parked_ = nullptr;  // In the order of their arrival.
  Tag* last_parked_ = nullptr;
  bool abandoned_ = false;
  bool left_ = false;
  std::atomic<int> first_error_{0};
  absl::Notification ended_;
};

}  // namespace ibnbd::client
