// SPDX-License-Identifier: Apache-2.0
// The life of a session's devices; the messages themselves are in server_session_messages.cc.
#include "rnbd/server_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/canary.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"
#include "reactor/reactor.h"
#include "rnbd/server_access.h"

namespace ibnbd::rnbd {
namespace {

// Counts the lanes that have not answered yet.  Control thread.
struct LaneBarrier {
  std::uint32_t awaited = 1;
  absl::AnyInvocable<void()> done;
  void Arrive() {
    if (--awaited == 0) done();
  }
};

class PathHandle final : public rtrs::ServerPathService {
 public:
  PathHandle(std::shared_ptr<ServerSession> session, const rtrs::ServerPathInfo& info)
      : session_(std::move(session)), path_(session_->AddPath(info)) {}
  ~PathHandle() override { session_->RemovePath(path_); }
  std::unique_ptr<rtrs::ServerRequest> CreateRequest() override {
    return std::make_unique<IoRequest>();
  }
  rtrs::ServerLaneService& lane(std::uint32_t cid) override { return *path_->lanes[cid]; }

 private:
  const std::shared_ptr<ServerSession> session_;
  const std::shared_ptr<IoPath> path_;
};

class SessionHandle final : public rtrs::ServerSessionService {
 public:
  explicit SessionHandle(std::shared_ptr<ServerSession> session) : session_(std::move(session)) {}
  ~SessionHandle() override { session_->Close(); }
  std::unique_ptr<rtrs::ServerPathService> OpenPath(const rtrs::ServerPathInfo& info) override {
    return std::make_unique<PathHandle>(session_, info);
  }
  [[nodiscard]] std::uint32_t device_count() const override { return session_->device_count(); }

 private:
  const std::shared_ptr<ServerSession> session_;
};

}  // namespace

std::unique_ptr<rtrs::ServerSessionService> OpenServerSession(ServerContext& context,
                                                              const rtrs::ServerSessionInfo& info) {
  return std::make_unique<SessionHandle>(std::make_shared<ServerSession>(context, info));
}

ServerSession::ServerSession(ServerContext& context, const rtrs::ServerSessionInfo& info)
    : context_(context),
      name_(info.name),
      writer_(WriterOf(info)),
      begins_at_(EpochDrawnFor(info)) {
  context_.sessions.push_back(this);
}

void ServerSession::LogClient(const std::string& line) {
  if (!LogEnabled(LogLevel::kInfo)) return;
  if (!context_.log_limiter.Allow(context_.reactors[0]->now_ns())) return;
  const std::uint64_t suppressed = context_.log_limiter.TakeSuppressedCount();
  if (suppressed > 0) LOG_INFO(suppressed, " lines about devices were suppressed");
  LogLine(LogLevel::kInfo, absl::StrCat("session ", name_, " ", line));
}

void ServerSession::Close() {
  closed_ = true;
  std::erase(context_.sessions, this);
  for (auto& [id, device] : devices_) GiveBack(device);
  devices_.clear();
}

std::shared_ptr<IoPath> ServerSession::AddPath(const rtrs::ServerPathInfo& info) {
  peer_is_ibnbd_ = info.peer_is_ibnbd;
  auto path = std::make_shared<IoPath>();
  path->reactors = info.reactors;
  for (std::size_t cid = 0; cid < info.reactors.size(); ++cid) {
    const std::uint32_t reactor = info.reactors[cid];
    path->lanes.push_back(std::make_unique<IoLane>((*context_.counters)[reactor],
                                                   cid == 0 ? this : nullptr,
                                                   ControlPeer{info.peer_is_ibnbd, info.fencer}));
    for (auto& [id, device] : devices_) {
      // Devices that are being opened were announced to the lanes of the day: a later path needs
      // to be told as well.
      if (device.open == nullptr) continue;
      if (device.state != Device::State::kOpen && device.state != Device::State::kOpening) continue;
      LaneDevice lane_device = MakeLaneDevice(device, reactor);
      MakeErrors(device, cid + 1);
      lane_device.errors = device.errors[cid];
      path->lanes.back()->Install(id, lane_device);
    }
  }
  paths_.push_back(path);
  return path;
}

void ServerSession::RemovePath(const std::shared_ptr<IoPath>& path) { std::erase(paths_, path); }

template <class F>
void ServerSession::OnEveryLane(F each, absl::AnyInvocable<void()> done) {
  auto barrier = std::make_shared<LaneBarrier>();
  barrier->done = std::move(done);
  Reactor* control = context_.reactors[0];
  for (const std::shared_ptr<IoPath>& path : paths_) {
    for (std::size_t cid = 0; cid < path->lanes.size(); ++cid) {
      ++barrier->awaited;
      const std::uint32_t reactor = path->reactors[cid];
      context_.reactors[reactor]->Post([path, cid, reactor, each, barrier, control] {
        each(*path->lanes[cid], cid, reactor, [barrier, control]() mutable {
          control->Post([barrier = std::move(barrier)] { barrier->Arrive(); });
        });
      });
    }
  }
  barrier->Arrive();
}

LaneDevice ServerSession::MakeLaneDevice(const Device& device, std::uint32_t reactor) const {
  LaneDevice lane_device;
  lane_device.queue = device.open->queue(reactor);
  lane_device.geometry = device.exported->backend->geometry();
  lane_device.read_only = !IsWriter(device.mode);
  return lane_device;
}

// A queue that comes later was told nothing, either, since the device was opened.
void ServerSession::MakeErrors(Device& device, std::size_t cid_count) {
  const std::shared_ptr<SyncErrors> errors = device.exported->backend->sync_errors();
  while (device.errors.size() < cid_count) {
    device.errors.push_back(errors == nullptr
                                ? nullptr
                                : std::make_shared<QueueErrors>(errors, device.sync_errors_told));
  }
}

void ServerSession::InstallEverywhere(std::uint32_t id, absl::AnyInvocable<void()> done) {
  Device& device = devices_.at(id);
  device.size_bytes = device.exported->backend->geometry().size_bytes;
  std::vector<LaneDevice> by_reactor;
  for (std::uint32_t i = 0; i < context_.reactors.size(); ++i) {
    by_reactor.push_back(MakeLaneDevice(device, i));
  }
  for (const std::shared_ptr<IoPath>& path : paths_) MakeErrors(device, path->lanes.size());
  OnEveryLane(
      [id, by_reactor, errors = device.errors](IoLane& lane, std::size_t cid, std::uint32_t reactor,
                                               auto ack) {
        LaneDevice lane_device = by_reactor[reactor];
        lane_device.errors = errors[cid];
        lane.Install(id, lane_device);
        ack();
      },
      std::move(done));
}

// An id comes back as late as can be: IOs that were sent to a device which is gone must not reach
// the next one.  Requires: there is a free one.
std::uint32_t ServerSession::NewId() {
  const std::uint32_t count = context_.options->devices_per_session_max;
  while (devices_.contains(next_id_)) next_id_ = (next_id_ + 1) % count;
  return std::exchange(next_id_, (next_id_ + 1) % count);
}

// The client opens the name again: it has noticed, and need not close what was taken away.
void ServerSession::ForgetRevoked(const std::string& name) {
  for (auto device = devices_.begin(); device != devices_.end();) {
    if (device->second.name != name || device->second.state != Device::State::kRevoked) {
      ++device;
    } else if (device->second.open == nullptr) {
      SIM_MARK("server: revoked device forgotten");
      device = devices_.erase(device);
    } else {
      device->second.forget = true;  // Still being taken away.
      ++device;
    }
  }
}

// Nobody is given, and nobody comes back to, what only we still see: whoever comes in now would
// write what is lost when we end.  Those who have it open go on, and are told when they ask.
int ServerSession::CheckPlace(const Export& exported) {
  const absl::Status status = exported.backend->CheckPlace();
  if (status.ok()) return 0;
  LogClient(absl::StrCat("open ", exported.name, ": ", status.message()));
  return ErrnoFromStatus(status);
}

WriterRecord::Opening ServerSession::OpeningOf(proto::AccessMode mode, std::uint16_t epoch) const {
  return {.writer = writer_,
          .epoch = peer_is_ibnbd_ ? epoch : std::uint16_t{0},  // Else it is what was on a stack.
          .migration = mode == proto::AccessMode::kMigration,
          .begins_at = begins_at_};
}

// A client that goes on with what it held, after somebody else has written, would undo that.
int ServerSession::CheckWriters(const Export& exported, const proto::Open& open) {
  if (!IsWriter(open.access_mode)) return 0;
  const int error = exported.writers->Check(OpeningOf(open.access_mode, open.writer_epoch.get()));
  if (error == 0) return 0;
  SIM_MARK("server: a writer came back after another one");
  LogClient(absl::StrCat("open ", exported.name,
                         ": refused: somebody else has had it open for writing since"));
  return error;
}

int ServerSession::TakeOpenAccess(Export& exported, const proto::Open& open) {
  const proto::AccessMode mode = open.access_mode;
  const bool comes_back = exported.writers->WasHere(OpeningOf(mode, open.writer_epoch.get()));
  const bool beside_itself = IBNBD_CANARY(13) && mode == proto::AccessMode::kReadWrite;
  if (!beside_itself || exported.writer_count != 1) {
    const int error = TakeAccess(exported, mode, comes_back);
    const bool beside = error == 0 && IsWriter(mode) && exported.writer_count > 1;
    if (beside && mode != proto::AccessMode::kMigration) {
      SIM_MARK("server: a writer came back beside one that migrates");
    }
    return error;
  }
  ++exported.writer_count;
  return 0;
}

// Access has been taken, and nothing was written yet.
int ServerSession::EnterWriters(const Device& device) {
  if (!IsWriter(device.mode)) return 0;
  WriterRecord::Opening opening = OpeningOf(device.mode, device.known_epoch);
  opening.beside_others = device.exported->writer_count > 1;
  const int error = device.exported->writers->Check(opening);
  if (error == 0) device.exported->writers->Enter(opening);
  return error;
}

int ServerSession::StartOpen(const proto::Open& open, IoRequest& request) {
  const std::string name(proto::NameOf(open.dev_name));
  if (devices_.size() >= context_.options->devices_per_session_max) return -EMFILE;
  auto found = context_.provider->Find(name_, name);
  if (!found.ok()) {
    LogClient(absl::StrCat("open ", name, ": ", found.status().message()));
    return ErrnoFromStatus(found.status());
  }
  int error = CheckPlace(**found);
  if (error == 0) error = CheckWriters(**found, open);
  if (error == 0) error = TakeOpenAccess(**found, open);
  if (error != 0) return error;
  (*found)->backend->RefreshSize();
  const std::uint32_t id = NewId();
  Device& device = devices_[id];
  device.name = name;
  device.mode = open.access_mode;
  device.known_epoch = open.writer_epoch.get();
  device.exported = *found;
  context_.exports->Acquire(*std::move(found), [self = shared_from_this(), id,
                                                &request](absl::StatusOr<OpenExport*> ready) {
    self->OnExportReady(id, request, std::move(ready));
  });
  return 1;
}

// The request executes until it is answered, so the session cannot be gone here (V2).
void ServerSession::OnExportReady(std::uint32_t id, IoRequest& request,
                                  absl::StatusOr<OpenExport*> open) {
  Device& device = devices_.at(id);
  int error = ErrnoFromStatus(open.status());
  if (error != 0) LogClient(absl::StrCat("open ", device.name, ": ", open.status().message()));
  if (error == 0) {
    device.open = *open;
    if (const std::shared_ptr<SyncErrors> errors = device.exported->backend->sync_errors()) {
      device.sync_errors_told = errors->told();
    }
    error = EnterWriters(device);
  }
  if (error != 0) {
    GiveBack(device);
    devices_.erase(id);
    return request.Complete(error);
  }
  InstallEverywhere(id,
                    [self = shared_from_this(), id, &request] { self->FinishOpen(id, request); });
}

// A device of the same name is open: the same id again, with more rights and a larger size if there
// are to be had.
int ServerSession::Reopen(Devices::iterator found, const proto::Open& open, IoRequest& request) {
  const proto::AccessMode mode = open.access_mode;
  Device& device = found->second;
  if (device.state != Device::State::kOpen) return -EBUSY;
  if (const int error = CheckPlace(*device.exported); error != 0) return error;
  if (const int error = CheckWriters(*device.exported, open); error != 0) return error;
  device.exported->backend->RefreshSize();
  const bool grown = device.size_bytes != device.exported->backend->geometry().size_bytes;
  const bool upgraded = IsWriter(mode) && !IsWriter(device.mode);
  if (!grown && !upgraded) {
    FinishOpen(found->first, request);
    return 1;
  }
  if (upgraded) {
    const int error = TakeOpenAccess(*device.exported, open);
    if (error != 0) return error;
    ReturnAccess(*device.exported, device.mode);
    device.mode = mode;
    device.known_epoch = open.writer_epoch.get();
    (void)EnterWriters(device);  // It was asked just now.
  }
  device.state = Device::State::kOpening;
  InstallEverywhere(found->first, [self = shared_from_this(), id = found->first, &request] {
    self->FinishOpen(id, request);
  });
  return 1;
}

void ServerSession::StartRemove(std::uint32_t id, Device& device) {
  const bool revoked = device.state == Device::State::kRevoked;
  OnEveryLane([id](IoLane& lane, std::size_t /*cid*/, std::uint32_t /*reactor*/,
                   auto ack) { lane.Remove(id, std::move(ack)); },
              [self = shared_from_this(), id, revoked] { self->OnRemoved(id, revoked); });
}

void ServerSession::OnRemoved(std::uint32_t id, bool revoked) {
  if (closed_) return;
  Device& device = devices_.at(id);
  GiveBack(device);
  // The client may have asked to close it while it was being taken away.
  if (revoked && device.closers.empty() && !device.forget) return;
  const std::vector<IoRequest*> closers = std::move(device.closers);
  devices_.erase(id);
  for (IoRequest* closer : closers) closer->Complete(0);
}

void ServerSession::GiveBack(Device& device) {
  if (device.exported != nullptr) ReturnAccess(*device.exported, device.mode);
  device.exported.reset();
  if (device.open != nullptr) context_.exports->Release(*std::exchange(device.open, nullptr));
}

void ServerSession::Revoke(const Export& exported) {
  for (auto& [id, device] : devices_) {
    if (device.exported.get() != &exported) continue;
    if (device.state == Device::State::kOpening) device.revoke_pending = true;
    if (device.state != Device::State::kOpen) continue;
    SIM_MARK("server: device revoked");
    LogClient(absl::StrCat("device ", device.name, " revoked"));
    device.state = Device::State::kRevoked;
    StartRemove(id, device);
  }
}

}  // namespace ibnbd::rnbd
