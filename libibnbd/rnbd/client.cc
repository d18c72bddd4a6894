// SPDX-License-Identifier: Apache-2.0
// The public face of the RNBD client; the work is in client_impl.cc, client_device*.cc.
#include "rnbd/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "rnbd/client_impl.h"

namespace ibnbd::rnbd {
namespace {
// How long a living server may take to answer a control message.
constexpr std::int64_t kCallTimeoutNs = 30 * kNsPerSecond;
constexpr std::uint32_t kIoPartsMax = 1u << 16;
}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const Options& options, rtrs::Port& control,
                                                       std::span<rtrs::Port* const> lane_ports) {
  if (options.io_parts_max == 0 || options.io_parts_max > kIoPartsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("client: io_parts_max ", options.io_parts_max, " is not in 1..", kIoPartsMax));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ControlCalls> calls,
                   ControlCalls::Create(control, kCallTimeoutNs));
  std::unique_ptr<Client> self(
      new Client(std::make_unique<Impl>(options, control, std::move(calls))));
  ASSIGN_OR_RETURN(std::unique_ptr<rtrs::ClientSession> session,
                   rtrs::ClientSession::Create(options.session, control, lane_ports, *self));
  self->impl_->set_session(std::move(session));
  return self;
}

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

void Client::Start(bool retry, std::function<void(absl::Status)> on_ready) {
  impl_->Start(retry, std::move(on_ready));
}
void Client::OpenDevice(const std::string& name, AccessMode mode, const LossPolicy& policy,
                        std::function<void(absl::StatusOr<Device*>)> done,
                        std::uint16_t writer_epoch) {
  impl_->OpenDevice(name, mode, policy, std::move(done), writer_epoch);
}
absl::StatusOr<Device*> Client::ResumeDevice(const DevicePast& past, AccessMode mode,
                                             const LossPolicy& policy) {
  return impl_->ResumeDevice(past, mode, policy);
}
void Client::SettleDevice(Device* device, std::int64_t window_ns) {
  static_cast<DeviceImpl*>(device)->Settle(window_ns);
}
void Client::CloseDevice(Device* device, std::int64_t deadline_ns, std::function<void()> done) {
  static_cast<DeviceImpl*>(device)->Close(deadline_ns, std::move(done));
}
void Client::ListExports(std::function<void(absl::StatusOr<std::vector<ExportEntry>>)> done) {
  impl_->ListExports(std::move(done));
}
void Client::Ping(std::function<void(absl::StatusOr<std::int64_t>)> done) {
  impl_->Ping(std::move(done));
}
void Client::Close(std::int64_t deadline_ns, std::function<void()> done) {
  impl_->Close(deadline_ns, std::move(done));
}
void Client::SetLossPolicy(Device* device, const LossPolicy& policy) {
  static_cast<DeviceImpl*>(device)->SetLossPolicy(policy);
}
void Client::RefreshDevice(Device* device,
                           std::function<void(absl::StatusOr<std::uint64_t>)> done) {
  static_cast<DeviceImpl*>(device)->Refresh(std::move(done));
}
void Client::ListIos(Device* device, std::function<void(std::vector<OutstandingIo>)> done) {
  static_cast<DeviceImpl*>(device)->ListIos(std::move(done));
}
rtrs::ClientSession& Client::session() { return impl_->session(); }
bool Client::closed() const { return impl_->closed(); }

void Client::OnSessionUp() { impl_->OnSessionUp(); }
void Client::OnSessionDown(const absl::Status& why) { impl_->OnSessionDown(why); }
void Client::OnConnectFailed(const absl::Status& why, bool fatal) {
  impl_->OnConnectFailed(why, fatal);
}
void Client::OnSessionClosed() { impl_->OnSessionClosed(); }

}  // namespace ibnbd::rnbd
