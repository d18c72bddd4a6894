// SPDX-License-Identifier: Apache-2.0
#include "rnbd/client_impl.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd::rnbd {
namespace {

constexpr std::size_t kExportsMax = 65536;  // What one LIST may bring, over all its pages.

bool IsLoss(int error) { return error == -ECONNABORTED || error == -ENOTCONN; }

}  // namespace

Client::Impl::Impl(const Options& options, rtrs::Port& control, std::unique_ptr<ControlCalls> calls)
    : options_(options), control_(control), calls_(std::move(calls)) {}

Client::Impl::~Impl() {
  CHECK(state_ == State::kIdle || state_ == State::kClosed);
  CHECK(devices_.empty());
}

void Client::Impl::set_session(std::unique_ptr<rtrs::ClientSession> session) {
  session_ = std::move(session);
  calls_->set_session(*session_);
}

void Client::Impl::Start(bool retry, std::function<void(absl::Status)> on_ready) {
  CHECK(state_ == State::kIdle);
  state_ = State::kRunning;
  retry_ = retry;
  on_ready_ = std::move(on_ready);
  down_reason_ = absl::UnavailableError("not connected yet");
  session_->Start();
}

void Client::Impl::OnSessionUp() {
  const proto::SessInfo message;
  calls_->Start("SESS_INFO", proto::AsBytes(message), sizeof(message),
                [this](int error, std::span<const std::byte> reply) { OnSessInfo(error, reply); });
}

void Client::Impl::OnSessInfo(int error, std::span<const std::byte> reply) {
  if (IsLoss(error) || !session_->up()) return;  // OnSessionDown() says the rest.
  proto::SessInfo answer;
  const char* reason = error != 0 ? nullptr : proto::DecodeSessInfoRsp(reply, &answer);
  if (error != 0) {
    return session_->ResetPaths(ErrnoStatus(error, "SESS_INFO refused"));
  }
  if (reason != nullptr) return session_->ResetPaths(absl::InternalError(reason));
  server_instance_ = session_->limits().peer_is_ibnbd ? answer.instance_id : proto::InstanceId{};
  ready_ = true;
  if (on_ready_ != nullptr) std::exchange(on_ready_, nullptr)(absl::OkStatus());
  const auto devices = devices_;  // Callbacks may change it.
  for (const auto& device : devices) device->OnReady();
}

void Client::Impl::OnSessionDown(const absl::Status& why) {
  ready_ = false;
  down_reason_ = why;
  const auto devices = devices_;
  for (const auto& device : devices) device->OnSessionDown(why);
  if (on_ready_ != nullptr && !retry_) GiveUp(why);
}

void Client::Impl::OnConnectFailed(const absl::Status& why, bool fatal) {
  down_reason_ = why;
  for (const auto& device : devices_) device->OnConnectFailed(why);
  if (on_ready_ != nullptr && (!retry_ || fatal)) GiveUp(why);
}

// It never was ready, and nobody wants to wait.
void Client::Impl::GiveUp(const absl::Status& why) {
  if (state_ != State::kRunning) return;
  give_up_reason_ = why;
  Close(0, [] {});
}

absl::Status Client::Impl::CheckOpen(const std::string& name) const {
  if (name.empty() || name.size() > proto::kDeviceNameMax || proto::HasControlCharacter(name)) {
    return absl::InvalidArgumentError(absl::StrCat("open '", name, "': a name has 1 to ",
                                                   proto::kDeviceNameMax,
                                                   " characters and no control characters"));
  }
  if (state_ == State::kRunning) return absl::OkStatus();
  return absl::CancelledError(absl::StrCat("open ", name, ": the client is closed"));
}

DeviceImpl& Client::Impl::AddDevice(const std::string& name, AccessMode mode,
                                    const LossPolicy& policy, DeviceImpl::OpenDone done) {
  const DeviceImpl::Context context{control_,
                                    *session_,
                                    *calls_,
                                    server_instance_,
                                    options_.io_parts_max,
                                    [this](DeviceImpl& device) { OnDeviceGone(device); },
                                    [this](const DeviceImpl& device, std::uint32_t device_id) {
                                      return OthersUse(device, device_id);
                                    }};
  devices_.push_back(std::make_shared<DeviceImpl>(context, name, mode, policy, std::move(done)));
  return *devices_.back();
}

void Client::Impl::OpenDevice(const std::string& name, AccessMode mode, const LossPolicy& policy,
                              DeviceImpl::OpenDone done, std::uint16_t writer_epoch) {
  if (const absl::Status status = CheckOpen(name); !status.ok()) {
    Later([done = std::move(done), status] { done(status); });
    return;
  }
  // The name that users know: with the address of the server.
  DeviceImpl& device = AddDevice(
      name, mode, policy,
      [done = std::move(done),
       server = rtrs::TargetOf({options_.session.server, std::nullopt, 0, options_.session.text})](
          absl::StatusOr<Device*> result) {
        if (result.ok()) return done(result);
        done(Annotate(result.status(), absl::StrCat("server ", server)));
      });
  device.GoOnWith(writer_epoch);
  if (ready_) device.OnReady();
}

absl::StatusOr<Device*> Client::Impl::ResumeDevice(const DevicePast& past, AccessMode mode,
                                                   const LossPolicy& policy) {
  RETURN_IF_ERROR(CheckOpen(past.info.name));
  DeviceImpl& device = AddDevice(past.info.name, mode, policy, nullptr);
  device.Resume(past);
  if (ready_) device.OnReady();
  return &device;
}

void Client::Impl::OnDeviceGone(DeviceImpl& device) {
  std::erase_if(devices_, [&device](const auto& entry) { return entry.get() == &device; });
  if (state_ == State::kClosingDevices && devices_.empty()) CloseSession();
}

bool Client::Impl::OthersUse(const DeviceImpl& device, std::uint32_t device_id) const {
  return std::any_of(devices_.begin(), devices_.end(), [&](const auto& other) {
    return other.get() != &device && other->UsesServerDevice(device_id);
  });
}

absl::Status Client::Impl::NotReady(absl::string_view what) const {
  if (state_ == State::kRunning) return Annotate(down_reason_, what);
  return absl::CancelledError(absl::StrCat(what, ": the client is closed"));
}

void Client::Impl::ListExports(ListDone done) {
  absl::Status status;
  if (!ready_) {
    status = NotReady("list");
  } else if (!session_->limits().peer_is_ibnbd) {
    status = ErrnoStatus(EOPNOTSUPP, "list: the server is not ibnbd's");
  }
  if (!status.ok()) {
    Later([done = std::move(done), status] { done(status); });
    return;
  }
  auto list = std::make_shared<ListState>();
  list->done = std::move(done);
  RequestList(0, std::move(list));
}

void Client::Impl::RequestList(std::uint32_t start_index, std::shared_ptr<ListState> list) {
  proto::List message;
  message.start_index = proto::le32(start_index);
  const std::size_t room =
      std::min<std::size_t>(ControlCalls::kReplySizeMax, session_->limits().io_size_max);
  calls_->Start(
      "LIST", proto::AsBytes(message), room,
      [this, start_index, list = std::move(list)](int error, std::span<const std::byte> reply) {
        OnListReply(start_index, list, error, reply);
      });
}

void Client::Impl::OnListReply(std::uint32_t start_index, const std::shared_ptr<ListState>& list,
                               int error, std::span<const std::byte> reply) {
  if (error != 0) return list->done(ErrnoStatus(error, "list"));
  proto::ListRsp header;
  const char* reason = proto::DecodeListRsp(reply, start_index, &header);
  for (std::uint32_t i = 0; reason == nullptr && i < header.count.get(); ++i) {
    proto::ListEntry wire;
    reason = proto::DecodeListEntry(reply, i, &wire);
    if (reason == nullptr && list->entries.size() >= kExportsMax) reason = "too many exports";
    if (reason != nullptr) break;
    const std::uint32_t flags = wire.flags.get();
    list->entries.push_back({.name = std::string(proto::NameOf(wire.name)),
                             .size_bytes = wire.nsectors.get() * proto::kSectorSize,
                             .logical_block_size = wire.logical_block_size.get(),
                             .read_only = (flags & proto::kListReadOnly) != 0,
                             .write_cache = (flags & proto::kListWriteCache) != 0,
                             .reader_count = wire.reader_count.get(),
                             .writer_count = wire.writer_count.get()});
  }
  if (reason == nullptr && header.next_index.get() != 0 && header.count.get() == 0) {
    reason = "list_rsp: a page without entries";
  }
  if (reason != nullptr) {
    const absl::Status status = absl::InternalError(absl::StrCat("list: ", reason));
    session_->ResetPaths(status);
    return list->done(status);
  }
  if (header.next_index.get() != 0) return RequestList(header.next_index.get(), list);
  list->done(std::move(list->entries));
}

void Client::Impl::Ping(PingDone done) {
  if (!ready_) {
    Later([done = std::move(done), status = NotReady("ping")] { done(status); });
    return;
  }
  const Clock& clock = control_.reactor().clock();
  const std::int64_t start_ns = clock.NowNs();
  const proto::SessInfo message;
  calls_->Start("SESS_INFO", proto::AsBytes(message), sizeof(message),
                [done = std::move(done), start_ns, &clock](int error, std::span<const std::byte>) {
                  if (error != 0) return done(ErrnoStatus(error, "ping"));
                  done(clock.NowNs() - start_ns);
                });
}

void Client::Impl::Close(std::int64_t deadline_ns, std::function<void()> done) {
  if (state_ == State::kClosed) return Later(std::move(done));
  close_done_.push_back(std::move(done));
  if (state_ != State::kIdle && state_ != State::kRunning) return;
  state_ = State::kClosingDevices;
  const auto devices = devices_;
  for (const auto& device : devices) {
    if (device->state() == DeviceState::kOpening) {
      device->Abandon(absl::CancelledError(
          absl::StrCat("open ", device->info().name, ": the client is closed")));
    } else {
      device->Close(deadline_ns, [] {});
    }
  }
  if (devices_.empty()) CloseSession();
}

void Client::Impl::CloseSession() {
  if (state_ != State::kClosingDevices) return;
  state_ = State::kClosingSession;
  session_->Close();
}

void Client::Impl::OnSessionClosed() {
  state_ = State::kClosed;
  ready_ = false;
  std::vector<std::function<void()>> done;
  done.swap(close_done_);
  // In a later turn: these may destroy the client, and the session is still on the stack.
  if (on_ready_ != nullptr) {
    const absl::Status why = give_up_reason_.ok()
                                 ? absl::CancelledError("connect: the client is closed")
                                 : give_up_reason_;
    Later([on_ready = std::exchange(on_ready_, nullptr), why] { on_ready(why); });
  }
  Later([done = std::move(done)] {
    for (const auto& call : done) call();
  });
}

}  // namespace ibnbd::rnbd
