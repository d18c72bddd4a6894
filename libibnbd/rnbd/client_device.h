// SPDX-License-Identifier: Apache-2.0
// The control side of a device: opens it, opens it again after every reconnect, checks that it is
// still the same volume, ends the wait when the loss policy says so, and closes it within a
// deadline.  The IOs are the queues' (client_device_queue.h), which are told by Reactor::Post().
// Control thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/rnbd.h"
#include "reactor/timers.h"
#include "rnbd/client.h"
#include "rnbd/client_calls.h"
#include "rnbd/client_device_queue.h"
#include "rnbd/client_ledger.h"

namespace ibnbd::rnbd {

class DeviceImpl final : public Device, public std::enable_shared_from_this<DeviceImpl> {
 public:
  using OpenDone = std::function<void(absl::StatusOr<Device*>)>;
  using ListDone = std::function<void(std::vector<OutstandingIo>)>;
  using RefreshDone = std::function<void(absl::StatusOr<std::uint64_t> size_bytes)>;
  struct Context {  // The client's; outlives the device.
    rtrs::Port& control;
    rtrs::ClientSession& session;
    ControlCalls& calls;
    const proto::InstanceId& server_instance;  // As SESS_INFO said last; zero: not known.
    std::uint32_t io_parts_max;
    // The device is closed or could not be opened: forget it.
    std::function<void(DeviceImpl&)> on_gone;
    // Another handle of the same name uses this device of the server: it must not be closed yet.
    std::function<bool(const DeviceImpl&, std::uint32_t device_id)> others_use;
  };

  DeviceImpl(const Context& context, std::string name, AccessMode mode, const LossPolicy& policy,
             OpenDone done);
  ~DeviceImpl() override;

  [[nodiscard]] const DeviceInfo& info() const override { return info_; }
  DeviceQueue& queue(std::size_t lane) override { return *queues_.at(lane); }
  [[nodiscard]] DeviceState state() const override { return state_; }
  [[nodiscard]] std::string state_reason() const override { return reason_; }
  [[nodiscard]] DevicePast past() const override;

  [[nodiscard]] bool UsesServerDevice(std::uint32_t device_id) const {
    return has_device_id_ && device_id_ == device_id;
  }

  // Before OnReady(): the epoch of an earlier opening.
  void GoOnWith(std::uint16_t writer_epoch) { writer_epoch_ = writer_epoch; }
  // Instead of a first open: this is what it was.
  void Resume(const DevicePast& past);
  void Settle(std::int64_t window_ns);
  // The session is up and SESS_INFO is exchanged.
  void OnReady();
  void OnSessionDown(const absl::Status& why);
  void OnConnectFailed(const absl::Status& why);
  void SetLossPolicy(const LossPolicy& policy);
  void Refresh(RefreshDone done);
  void ListIos(ListDone done);
  // For a device that was never open: its open fails with `why`.
  void Abandon(const absl::Status& why);
  void Close(std::int64_t deadline_ns, std::function<void()> done);

 private:
  void StartOpen();
  [[nodiscard]] proto::Open MakeOpen() const;
  void OnOpenReply(int error, std::span<const std::byte> reply);
  absl::Status TakeReply(const proto::OpenRsp& reply, DeviceInfo* info) const;
  absl::Status CheckIdentity(const DeviceInfo& found) const;
  absl::StatusOr<std::uint64_t> TakeRefresh(int error, std::span<const std::byte> reply);
  void GrowTo(std::uint64_t size_bytes);
  void CreateQueues();
  DeviceQueueImpl::Opened TakeInstance();
  [[nodiscard]] bool LossUnreported() const;
  void OnOpen();
  bool RetryFirstOpen(int error);
  void OnOpenRefused(const absl::Status& why);
  void OnNotOpen(std::uint32_t generation);
  void Hold(std::string reason);
  void ArmLossTimer();
  void OnLossTimer();
  void RetrySoon(std::string reason);
  void OnCloseTimer();
  void OnCloseDeadline();
  void StartClose();
  void FinishClose();
  void SendClose(std::uint32_t device_id, std::function<void()> done);
  [[nodiscard]] std::uint32_t Outstanding() const;
  [[nodiscard]] std::string Name() const;
  template <class F>
  void PostToQueues(F f);

  const Context context_;
  const std::string name_;
  const AccessMode mode_;
  LossPolicy policy_;
  OpenDone open_done_;  // Until the first open.
  DeviceState state_ = DeviceState::kOpening;
  std::string reason_ = "waits for the session";
  DeviceInfo info_;
  std::vector<std::unique_ptr<DeviceQueueImpl>> queues_;
  std::shared_ptr<WriteLedger> ledger_;  // The queues' too.
  proto::InstanceId instance_{};         // The last known one that had us open.
  std::uint32_t losses_ = 0;             // Of power, with writes that were not flushed.
  // The machine that may have lost what no flush has failed for yet: our successor must find it
  // changed, as we did.
  proto::InstanceId unreported_{};
  std::uint16_t writer_epoch_ = 0;  // The last known one, in which what we hold was written.
  std::uint32_t generation_ = 0;
  std::uint32_t device_id_ = 0;
  bool ready_ = false;  // Of the session, as OnReady() and OnSessionDown() told.
  bool open_in_flight_ = false;
  bool has_device_id_ = false;  // The server has it open for us.
  bool gone_ = false;
  std::optional<std::int64_t> lost_at_ns_;  // Since when IOs are held, if they are.
  std::int64_t refused_since_ns_ = -1;      // The first open; -1: it was not.
  bool settled_ = true;                     // Of one that was resumed: it may be opened,
  std::int64_t not_before_ns_ = 0;          // but not earlier.
  Timer retry_timer_;
  Timer loss_timer_;
  // Closing.
  bool close_overdue_ = false;
  bool close_sent_ = false;
  std::vector<std::function<void()>> close_done_;
  Timer close_timer_;
  Timer close_deadline_timer_;
};

}  // namespace ibnbd::rnbd
