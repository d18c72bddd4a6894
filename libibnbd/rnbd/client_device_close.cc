// SPDX-License-Identifier: Apache-2.0
// Closing a device within a deadline (C4): wait for what is outstanding, looking at the queues'
// counters rather than asking their threads, which may have stopped polling; past the deadline,
// break the path, so that nothing can touch the IOs' memory any more, and fail them.
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mark.h"
#include "rnbd/client_device.h"

namespace ibnbd::rnbd {
namespace {
constexpr std::int64_t kClosePollNs = kNsPerMs;
}  // namespace

void DeviceImpl::Close(std::int64_t deadline_ns, std::function<void()> done) {
  close_done_.push_back(std::move(done));
  if (state_ == DeviceState::kClosing) return;
  CHECK(open_done_ == nullptr && !gone_);
  state_ = DeviceState::kClosing;
  reason_ = "closing";
  loss_timer_.Cancel();
  for (const auto& queue : queues_) queue->StartClosing();
  close_deadline_timer_.ArmAfter(deadline_ns);
  close_timer_.ArmAfter(0);
}

void DeviceImpl::OnCloseTimer() {
  if (Outstanding() == 0 && !open_in_flight_) return StartClose();
  close_timer_.ArmAfter(kClosePollNs);
}

// No IO is outstanding.
void DeviceImpl::StartClose() {
  if (std::exchange(close_sent_, true)) return;
  // Without a path the server has closed, or will close, the device with the session.
  if (!has_device_id_ || !ready_ || close_overdue_) return FinishClose();
  has_device_id_ = false;
  SendClose(device_id_, [self = shared_from_this()] { self->FinishClose(); });
}

void DeviceImpl::SendClose(std::uint32_t device_id, std::function<void()> done) {
  if (context_.others_use(*this, device_id)) return done();
  proto::Close close;
  close.device_id = proto::le32(device_id);
  context_.calls.Start(absl::StrCat("CLOSE ", name_), proto::AsBytes(close), 0,
                       [done = std::move(done)](int, std::span<const std::byte>) {
                         done();  // Whatever it says: there is nothing left to be done about it.
                       });
}

void DeviceImpl::OnCloseDeadline() {
  if (gone_) return;
  close_overdue_ = true;
  retry_timer_.Cancel();
  if (close_sent_) return FinishClose();
  const std::uint32_t outstanding = Outstanding();
  if (outstanding > 0) {
    SIM_MARK("client: close ran out of time");
    LOG_WARN(Name(), " closing: ", outstanding, " IOs do not finish in time: cancelled");
    context_.session.ResetPaths(
        absl::DeadlineExceededError(absl::StrCat("close ", name_, ": IOs do not finish")));
    for (const auto& queue : queues_) {
      queue->lane().port().reactor().Post([queue = queue.get()] { queue->CancelAll(); });
    }
    close_timer_.ArmAfter(0);
    return;
  }
  StartClose();
}

void DeviceImpl::FinishClose() {
  if (std::exchange(gone_, true)) return;
  state_ = DeviceState::kClosed;
  retry_timer_.Cancel();
  loss_timer_.Cancel();
  close_timer_.Cancel();
  close_deadline_timer_.Cancel();
  // Each queue ends on its own thread, behind everything that was posted for it.
  for (auto& queue : queues_) {
    Reactor& reactor = queue->lane().port().reactor();
    reactor.Post([queue = std::move(queue)] { queue->TearDown(); });
  }
  queues_.clear();
  const std::shared_ptr<DeviceImpl> self = shared_from_this();  // on_gone drops one.
  std::vector<std::function<void()>> done;
  done.swap(close_done_);
  context_.on_gone(*this);
  for (const auto& call : done) call();
}

}  // namespace ibnbd::rnbd
