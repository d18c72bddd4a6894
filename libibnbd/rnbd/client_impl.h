// SPDX-License-Identifier: Apache-2.0
// The client's control plane: the session, SESS_INFO after each connect, the devices, and what is
// asked about the server as a whole (LIST, ping).  Control thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "proto/rnbd.h"
#include "rnbd/client.h"
#include "rnbd/client_calls.h"
#include "rnbd/client_device.h"

namespace ibnbd::rnbd {

class Client::Impl {
 public:
  using ListDone = std::function<void(absl::StatusOr<std::vector<ExportEntry>>)>;
  using PingDone = std::function<void(absl::StatusOr<std::int64_t>)>;

  Impl(const Options& options, rtrs::Port& control, std::unique_ptr<ControlCalls> calls);
  ~Impl();

  void set_session(std::unique_ptr<rtrs::ClientSession> session);
  [[nodiscard]] rtrs::ClientSession& session() { return *session_; }
  [[nodiscard]] bool closed() const { return state_ == State::kClosed; }

  void Start(bool retry, std::function<void(absl::Status)> on_ready);
  void OpenDevice(const std::string& name, AccessMode mode, const LossPolicy& policy,
                  DeviceImpl::OpenDone done, std::uint16_t writer_epoch);
  absl::StatusOr<Device*> ResumeDevice(const DevicePast& past, AccessMode mode,
                                       const LossPolicy& policy);
  void ListExports(ListDone done);
  void Ping(PingDone done);
  void Close(std::int64_t deadline_ns, std::function<void()> done);

  void OnSessionUp();
  void OnSessionDown(const absl::Status& why);
  void OnConnectFailed(const absl::Status& why, bool fatal);
  void OnSessionClosed();

 private:
  enum class State : std::uint8_t {
    kIdle,            // Waits for Start().
    kRunning,         // The session connects, is up, or reconnects.
    kClosingDevices,  // Waits for the devices to close.
    kClosingSession,  // Waits for OnSessionClosed().
    kClosed
  };
  struct ListState {
    ListDone done;
    std::vector<ExportEntry> entries;
  };

  void OnSessInfo(int error, std::span<const std::byte> reply);
  void GiveUp(const absl::Status& why);
  [[nodiscard]] absl::Status CheckOpen(const std::string& name) const;
  DeviceImpl& AddDevice(const std::string& name, AccessMode mode, const LossPolicy& policy,
                        DeviceImpl::OpenDone done);
  void RequestList(std::uint32_t start_index, std::shared_ptr<ListState> list);
  void OnListReply(std::uint32_t start_index, const std::shared_ptr<ListState>& list, int error,
                   std::span<const std::byte> reply);
  void OnDeviceGone(DeviceImpl& device);
  [[nodiscard]] bool OthersUse(const DeviceImpl& device, std::uint32_t device_id) const;
  void CloseSession();
  // Runs `f` in a later turn: callbacks never come from inside the call.
  template <class F>
  void Later(F f) {
    control_.reactor().Post(std::move(f));
  }
  [[nodiscard]] absl::Status NotReady(absl::string_view what) const;

  const Options options_;
  rtrs::Port& control_;
  std::unique_ptr<ControlCalls> calls_;  // Outlives the session, whose requests it owns.
  std::unique_ptr<rtrs::ClientSession> session_;
  std::vector<std::shared_ptr<DeviceImpl>> devices_;
  State state_ = State::kIdle;
  bool ready_ = false;  // SESS_INFO is exchanged on this path.
  bool retry_ = false;
  proto::InstanceId server_instance_{};  // Of the last SESS_INFO; zero: not known.
  absl::Status down_reason_;
  std::function<void(absl::Status)> on_ready_;  // Until the first time.
  absl::Status give_up_reason_;                 // on_ready_ gets it when everything is closed.
  std::vector<std::function<void()>> close_done_;
};

}  // namespace ibnbd::rnbd
