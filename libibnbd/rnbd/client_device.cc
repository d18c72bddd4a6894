// SPDX-License-Identifier: Apache-2.0
// Opening a device, again and again.  Closing it is in client_device_close.cc.
#include "rnbd/client_device.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/canary.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"

namespace ibnbd::rnbd {
namespace {

constexpr std::int64_t kRetryNs = kNsPerSecond;
constexpr std::int64_t kFirstOpenRetryNs = 100 * kNsPerMs;
constexpr std::int64_t kFirstOpenRetryNsMax = 2 * kNsPerSecond;

proto::AccessMode WireMode(AccessMode mode) {
  switch (mode) {
    case AccessMode::kReadOnly:
      return proto::AccessMode::kReadOnly;
    case AccessMode::kReadWrite:
      return proto::AccessMode::kReadWrite;
    case AccessMode::kMigration:
      return proto::AccessMode::kMigration;
  }
  return proto::AccessMode::kReadOnly;
}

// Sectors of the wire as bytes per request: whole blocks, and less than what bi_size can say.
std::uint32_t BytesMax(std::uint32_t sectors, std::uint32_t block) {
  const std::uint64_t bytes =
      std::min<std::uint64_t>(sectors * proto::kSectorSize, std::uint64_t{1} << 31);
  return static_cast<std::uint32_t>(bytes / block * block);
}

// The wire has room for a number only; what it means most often is worth saying.
absl::Status OpenRefusal(const std::string& name, AccessMode mode, int error) {
  const absl::Status status = ErrnoStatus(error, absl::StrCat("open ", name));
  if (error == -ESTALE) {
    return absl::FailedPreconditionError(absl::StrCat(
        "open ", name, ": it was replaced, moved or removed under the running server"));
  }
  if (error == -EUCLEAN) {
    return absl::FailedPreconditionError(absl::StrCat(
        "open ", name, ": another client has had it open for writing since; what is held here ",
        "must not go over what that one wrote"));
  }
  if (error != -EPERM || mode == AccessMode::kReadOnly) return status;
  return absl::PermissionDeniedError(absl::StrCat(
      status.message(), " (for writing: another client writes it, or it may not be written)"));
}

}  // namespace

DeviceImpl::DeviceImpl(const Context& context, std::string name, AccessMode mode,
                       const LossPolicy& policy, OpenDone done)
    : context_(context),
      name_(std::move(name)),
      mode_(mode),
      policy_(policy),
      open_done_(std::move(done)),
      retry_timer_(context.control.reactor().timers(), [this] { StartOpen(); }),
      loss_timer_(context.control.reactor().timers(), [this] { OnLossTimer(); }),
      close_timer_(context.control.reactor().timers(), [this] { OnCloseTimer(); }),
      close_deadline_timer_(context.control.reactor().timers(), [this] { OnCloseDeadline(); }) {
  info_.name = name_;
}

DeviceImpl::~DeviceImpl() { CHECK(queues_.empty()); }

std::string DeviceImpl::Name() const { return absl::StrCat("device ", name_); }

template <class F>
void DeviceImpl::PostToQueues(F f) {
  for (const auto& queue : queues_) {
    queue->lane().port().reactor().Post([queue = queue.get(), f] { f(*queue); });
  }
}

void DeviceImpl::OnReady() {
  ready_ = true;
  // One that is closing is opened again only to let what it holds finish.
  if (state_ == DeviceState::kClosing && (Outstanding() == 0 || close_overdue_)) return;
  StartOpen();
}

proto::Open DeviceImpl::MakeOpen() const {
  proto::Open open;
  open.access_mode = WireMode(mode_);
  CHECK(proto::SetName(&open.dev_name, name_));  // Client::OpenDevice() has checked it.
  const bool writes = mode_ != AccessMode::kReadOnly;
  if (writes && context_.session.limits().peer_is_ibnbd) {
    open.writer_epoch = proto::le16(writer_epoch_);
  }
  return open;
}

void DeviceImpl::StartOpen() {
  if (!ready_ || open_in_flight_ || gone_ || !settled_) return;
  if (context_.control.reactor().now_ns() < not_before_ns_) {
    return retry_timer_.ArmAt(not_before_ns_);
  }
  retry_timer_.Cancel();
  open_in_flight_ = true;
  const proto::Open open = MakeOpen();
  context_.calls.Start(absl::StrCat("OPEN ", name_), proto::AsBytes(open), sizeof(proto::OpenRsp),
                       [self = shared_from_this()](int error, std::span<const std::byte> reply) {
                         self->OnOpenReply(error, reply);
                       });
}

void DeviceImpl::OnOpenReply(int error, std::span<const std::byte> reply) {
  open_in_flight_ = false;
  if (!ready_ || error == -ECONNABORTED || error == -ENOTCONN) return;  // OnReady() comes again.
  if (error != 0 && (gone_ || RetryFirstOpen(error))) return;
  if (error != 0) return OnOpenRefused(OpenRefusal(name_, mode_, error));
  proto::OpenRsp answer;
  const char* reason = proto::DecodeOpenRsp(reply, &answer);
  if (reason != nullptr) {
    context_.session.ResetPaths(absl::InternalError(absl::StrCat("open ", name_, ": ", reason)));
    return;
  }
  if (gone_) return SendClose(answer.device_id.get(), [] {});
  device_id_ = answer.device_id.get();
  has_device_id_ = true;
  DeviceInfo info;
  absl::Status status = TakeReply(answer, &info);
  const bool first = queues_.empty();
  if (status.ok() && !first) status = CheckIdentity(info);
  if (!status.ok()) {
    SIM_MARK("client: offer refused");
    has_device_id_ = false;
    SendClose(device_id_, [] {});
    return OnOpenRefused(status);
  }
  // A server that does not say leaves us with what we know: the next one may.
  if (info.writer_epoch != 0) writer_epoch_ = info.writer_epoch;
  if (first) {
    info_ = std::move(info);
    CreateQueues();
  } else {
    GrowTo(info.size_bytes);
  }
  OnOpen();
}

absl::Status DeviceImpl::TakeReply(const proto::OpenRsp& reply, DeviceInfo* info) const {
  const rtrs::SessionLimits& limits = context_.session.limits();
  const std::uint32_t block = reply.logical_block_size.get();
  info->name = name_;
  info->size_bytes = reply.nsectors.get() * proto::kSectorSize;
  info->logical_block_size = block;
  info->physical_block_size = std::max<std::uint32_t>(reply.physical_block_size.get(), block);
  info->io_size_max = limits.io_size_max / block * block;
  info->discard_bytes_max = BytesMax(reply.max_discard_sectors.get(), block);
  info->discard_granularity = reply.discard_granularity.get();
  info->discard_alignment = reply.discard_alignment.get();
  info->write_zeroes_bytes_max = BytesMax(reply.max_write_zeroes_sectors.get(), block);
  info->secure_erase = reply.secure_discard.get() != 0;
  info->write_cache = (reply.cache_policy & proto::kCacheWriteback) != 0;
  info->fua = (reply.cache_policy & proto::kCacheFua) != 0;
  info->read_only = mode_ == AccessMode::kReadOnly;
  info->volume_id = limits.peer_is_ibnbd ? reply.volume_id.get() : 0;
  info->writer_epoch = limits.peer_is_ibnbd ? reply.writer_epoch.get() : std::uint16_t{0};
  if (info->io_size_max == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("open ", name_, ": a block of ", block, " bytes is more than the ",
                     limits.io_size_max, " bytes that the server takes at once"));
  }
  if (info->size_bytes % block != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "open ", name_, ": its size ", info->size_bytes, " is not a multiple of its block size"));
  }
  return absl::OkStatus();
}

bool DeviceImpl::LossUnreported() const { return losses_ > 0 && !ledger_->LossReported(losses_); }

DevicePast DeviceImpl::past() const {
  DevicePast past;
  past.info = info_;
  past.info.writer_epoch = writer_epoch_;
  past.server_instance = LossUnreported() ? unreported_ : instance_;
  if (lost_at_ns_) past.held_ns = context_.control.reactor().clock().NowNs() - *lost_at_ns_;
  return past;
}

void DeviceImpl::Resume(const DevicePast& past) {
  CHECK(queues_.empty() && open_done_ == nullptr);
  SIM_MARK("client: resumed a device");
  const std::int64_t now_ns = context_.control.reactor().now_ns();
  info_ = past.info;
  info_.read_only = mode_ == AccessMode::kReadOnly;
  instance_ = past.server_instance;
  writer_epoch_ = past.info.writer_epoch;
  CreateQueues();
  // Of a whole life that we know nothing of, one write that is not flushed.
  if (!info_.read_only && info_.write_cache && !IBNBD_CANARY(11)) ledger_->OnVolatileWrite(0);
  settled_ = false;
  state_ = DeviceState::kHeld;
  reason_ = "left by another process: waits for the session";
  const std::int64_t held_ns = IBNBD_CANARY(12) ? 0 : past.held_ns;
  lost_at_ns_ = now_ns - held_ns;
  if (policy_.fail_after_ns >= 0 && held_ns >= policy_.fail_after_ns) {
    SIM_MARK("client: resumed a device whose time was over");
    return OnLossTimer();
  }
  ArmLossTimer();
}

// Who relies on the loss policy must not see what was written longer ago.
void DeviceImpl::Settle(std::int64_t window_ns) {
  if (gone_ || std::exchange(settled_, true)) return;
  const std::int64_t end_ns = context_.control.reactor().now_ns() + window_ns;
  if (policy_.fail_after_ns >= 0 && *lost_at_ns_ + policy_.fail_after_ns < end_ns) {
    not_before_ns_ = end_ns;
  }
  if (state_ != DeviceState::kClosing) StartOpen();
}

// D9: what is behind the name now must be what we know, or our IOs would go to somebody else's
// data.
absl::Status DeviceImpl::CheckIdentity(const DeviceInfo& found) const {
  const auto refuse = [this](absl::string_view what, auto was, auto is) {
    return absl::FailedPreconditionError(absl::StrCat("the server offers another volume as ", name_,
                                                      ": its ", what, " was ", was, " and is ",
                                                      is));
  };
  const bool ids_known = info_.volume_id != 0 && found.volume_id != 0 && !IBNBD_CANARY(9);
  if (ids_known && info_.volume_id != found.volume_id) {
    if (((info_.volume_id ^ found.volume_id) & ~proto::kVolumeGenerationMask) == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("the server offers another volume as ", name_,
                       ": its content was changed by somebody else while no server had it"));
    }
    return refuse("volume id", absl::Hex(info_.volume_id, absl::kZeroPad16),
                  absl::Hex(found.volume_id, absl::kZeroPad16));
  }
  // The server should have refused.
  const bool epochs_known = writer_epoch_ != 0 && found.writer_epoch != 0;
  if (mode_ == AccessMode::kReadWrite && epochs_known && found.writer_epoch != writer_epoch_) {
    return OpenRefusal(name_, mode_, -EUCLEAN);
  }
  if (found.logical_block_size != info_.logical_block_size) {
    return refuse("block size", info_.logical_block_size, found.logical_block_size);
  }
  if (found.size_bytes < info_.size_bytes) {
    return refuse("size", info_.size_bytes, found.size_bytes);
  }
  // What held IOs may already count on.
  if (info_.fua && !found.fua && found.write_cache) return refuse("FUA", 1, 0);
  if (!info_.write_cache && found.write_cache) return refuse("write cache", 0, 1);
  if (found.io_size_max < info_.io_size_max) {
    return refuse("IO size", info_.io_size_max, found.io_size_max);
  }
  const bool writes = mode_ != AccessMode::kReadOnly;  // Limits of others do not concern a reader.
  if (writes && found.discard_bytes_max < info_.discard_bytes_max) {
    return refuse("discard limit", info_.discard_bytes_max, found.discard_bytes_max);
  }
  if (writes && found.write_zeroes_bytes_max < info_.write_zeroes_bytes_max) {
    return refuse("write-zeroes limit", info_.write_zeroes_bytes_max, found.write_zeroes_bytes_max);
  }
  return absl::OkStatus();
}

void DeviceImpl::GrowTo(std::uint64_t size_bytes) {
  if (size_bytes <= info_.size_bytes) return;
  LOG_INFO(Name(), " has grown from ", info_.size_bytes, " to ", size_bytes, " bytes");
  info_.size_bytes = size_bytes;
  for (const auto& queue : queues_) queue->GrowTo(size_bytes);
}

// Asks by opening again what is open: any server then says how large it is now.
void DeviceImpl::Refresh(RefreshDone done) {
  if (state_ != DeviceState::kOpen || !ready_ || open_in_flight_) {
    return done(absl::UnavailableError(absl::StrCat(Name(), " is not open now: ", reason_)));
  }
  const proto::Open open = MakeOpen();
  context_.calls.Start(
      absl::StrCat("OPEN ", name_, " again"), proto::AsBytes(open), sizeof(proto::OpenRsp),
      [self = shared_from_this(), done = std::move(done)](
          int error, std::span<const std::byte> reply) { done(self->TakeRefresh(error, reply)); });
}

absl::StatusOr<std::uint64_t> DeviceImpl::TakeRefresh(int error, std::span<const std::byte> reply) {
  if (error != 0) return OpenRefusal(name_, mode_, error);
  proto::OpenRsp answer;
  const char* reason = proto::DecodeOpenRsp(reply, &answer);
  if (reason != nullptr) {
    const absl::Status status = absl::InternalError(absl::StrCat("open ", name_, ": ", reason));
    context_.session.ResetPaths(status);
    return status;
  }
  if (gone_ || state_ != DeviceState::kOpen || !UsesServerDevice(answer.device_id.get())) {
    // It was closed or lost meanwhile, so this is another handle, which nobody wants.
    if (ready_ && !UsesServerDevice(answer.device_id.get()) &&
        !context_.others_use(*this, answer.device_id.get())) {
      SendClose(answer.device_id.get(), [] {});
    }
    return absl::UnavailableError(absl::StrCat(Name(), " was lost or closed meanwhile"));
  }
  DeviceInfo found;
  RETURN_IF_ERROR(TakeReply(answer, &found));
  RETURN_IF_ERROR(CheckIdentity(found));
  GrowTo(found.size_bytes);
  return info_.size_bytes;
}

void DeviceImpl::CreateQueues() {
  ledger_ = std::make_shared<WriteLedger>(context_.session.lane_count());
  for (std::size_t i = 0; i < context_.session.lane_count(); ++i) {
    rtrs::ClientLane& lane = context_.session.lane(i);
    auto on_not_open = [weak = weak_from_this(),
                        reactor = &context_.control.reactor()](std::uint32_t generation) {
      reactor->Post([weak, generation] {
        if (const auto self = weak.lock()) self->OnNotOpen(generation);
      });
    };
    queues_.push_back(std::make_unique<DeviceQueueImpl>(lane, info_, context_.io_parts_max,
                                                        DeviceQueueImpl::LedgerShare{ledger_, i},
                                                        std::move(on_not_open)));
  }
  PostToQueues([](DeviceQueueImpl& queue) { queue.Attach(); });
}

// Whether this is the machine that knows what we wrote last, and if not, what it may have lost.
DeviceQueueImpl::Opened DeviceImpl::TakeInstance() {
  const proto::InstanceId& now = context_.server_instance;
  const proto::InstanceId unknown{};
  DeviceQueueImpl::Opened opened;
  opened.restart = now == unknown || now != instance_;
  if (now == unknown) return opened;
  const bool power_lost = instance_ != unknown && now != instance_;
  const proto::InstanceId before = std::exchange(instance_, now);
  if (!power_lost) return opened;
  const std::uint64_t lost = ledger_->TakeUnflushed();
  opened.writes_lost = lost > 0;
  if (generation_ == 1 && open_done_ == nullptr) {
    SIM_MARK("client: resumed a device after a loss of power");
  }
  if (opened.writes_lost) {
    if (!LossUnreported()) unreported_ = before;
    ++losses_;
    LOG_WARN("volume ", name_, ": server restarted its machine: ", lost,
             " acknowledged writes since the last flush may be lost; the next flush fails");
  }
  return opened;
}

void DeviceImpl::OnOpen() {
  ++generation_;
  lost_at_ns_.reset();
  loss_timer_.Cancel();
  DeviceQueueImpl::Opened opened = TakeInstance();
  opened.generation = generation_;
  opened.loss = losses_;
  opened.device_id = device_id_;
  opened.preflush_flag = context_.session.limits().peer_is_ibnbd;
  PostToQueues([opened](DeviceQueueImpl& queue) { queue.SetOpen(opened); });
  if (state_ == DeviceState::kClosing) return;
  LOG_INFO(Name(), " open, ", info_.size_bytes, " bytes, block ", info_.logical_block_size);
  state_ = DeviceState::kOpen;
  reason_.clear();
  if (open_done_ == nullptr) return;
  std::exchange(open_done_, nullptr)(this);
}

// Who was killed and started again may meet its own past: the server lets go of the writer when the
// last IO of the old session has ended (EPERM), of a handle that is being closed a little later
// (EBUSY).
bool DeviceImpl::RetryFirstOpen(int error) {
  const bool may_pass = error == -EBUSY || (error == -EPERM && mode_ != AccessMode::kReadOnly);
  if (open_done_ == nullptr || !may_pass) return false;
  const std::int64_t now_ns = context_.control.reactor().now_ns();
  if (refused_since_ns_ < 0) refused_since_ns_ = now_ns;
  if (now_ns - refused_since_ns_ >= kFirstOpenRetryNsMax) return false;
  SIM_MARK("client: first open tried again");
  reason_ = std::string(OpenRefusal(name_, mode_, error).message());
  retry_timer_.ArmAfter(kFirstOpenRetryNs);
  return true;
}

void DeviceImpl::OnOpenRefused(const absl::Status& why) {
  if (open_done_ != nullptr) return Abandon(why);
  RetrySoon(std::string(why.message()));
}

void DeviceImpl::Abandon(const absl::Status& why) {
  CHECK(open_done_ != nullptr);
  gone_ = true;
  state_ = DeviceState::kClosed;
  retry_timer_.Cancel();
  const std::shared_ptr<DeviceImpl> self = shared_from_this();  // on_gone drops one.
  const OpenDone done = std::exchange(open_done_, nullptr);
  context_.on_gone(*this);
  done(why);
}

// It stays held; the old session of a crashed client, say, may need a while to let the writer go.
void DeviceImpl::RetrySoon(std::string reason) {
  if (reason != reason_) LOG_WARN(Name(), " held: ", reason);
  reason_ = std::move(reason);
  retry_timer_.ArmAfter(kRetryNs);
}

// The server says that this device is not open in our session: it was revoked, or taken down and
// up.
void DeviceImpl::OnNotOpen(std::uint32_t generation) {
  if (gone_ || generation != generation_ || !has_device_id_) return;
  SIM_MARK("client: server closed the device");
  has_device_id_ = false;
  PostToQueues([](DeviceQueueImpl& queue) { queue.SetHeld(); });
  Hold("the server closed it");
  if (ready_) StartOpen();
}

void DeviceImpl::OnSessionDown(const absl::Status& why) {
  ready_ = false;
  has_device_id_ = false;
  retry_timer_.Cancel();
  if (gone_) return;
  if (open_done_ != nullptr) {
    reason_ = std::string(why.message());
    return;
  }
  PostToQueues([](DeviceQueueImpl& queue) { queue.SetHeld(); });
  Hold(std::string(why.message()));
}

// Of one that was never open there is nothing better to say.
void DeviceImpl::OnConnectFailed(const absl::Status& why) {
  if (generation_ != 0) return;
  if (open_done_ == nullptr) SIM_MARK("client: resumed a device without a server");
  reason_ = std::string(why.message());
}

void DeviceImpl::Hold(std::string reason) {
  reason_ = std::move(reason);
  if (!lost_at_ns_) lost_at_ns_ = context_.control.reactor().now_ns();
  if (state_ != DeviceState::kOpen) return;
  state_ = DeviceState::kHeld;
  ArmLossTimer();
}

void DeviceImpl::ArmLossTimer() {
  loss_timer_.Cancel();
  if (policy_.fail_after_ns < 0 || !lost_at_ns_) return;
  loss_timer_.ArmAt(*lost_at_ns_ + policy_.fail_after_ns);
}

void DeviceImpl::SetLossPolicy(const LossPolicy& policy) {
  policy_ = policy;
  if (state_ == DeviceState::kHeld) ArmLossTimer();
}

void DeviceImpl::OnLossTimer() {
  if (state_ != DeviceState::kHeld) return;
  SIM_MARK("client: loss policy ended the wait");
  state_ = DeviceState::kFailing;
  LOG_WARN(Name(), " failing: the server was away for ", policy_.fail_after_ns / kNsPerMs,
           " ms: ", reason_);
  PostToQueues([](DeviceQueueImpl& queue) { queue.SetFailing(); });
}

std::uint32_t DeviceImpl::Outstanding() const {
  std::uint32_t count = 0;
  for (const auto& queue : queues_) count += queue->outstanding();
  return count;
}

}  // namespace ibnbd::rnbd
