// SPDX-License-Identifier: Apache-2.0
// What the control plane tells a queue, always by Reactor::Post(): open, held, failing, cancelled.
#include "rnbd/client_device_queue.h"

#include <cerrno>
#include <utility>

namespace ibnbd::rnbd {

DeviceQueueImpl::DeviceQueueImpl(rtrs::ClientLane& lane, const DeviceInfo& info,
                                 std::uint32_t io_parts_max, LedgerShare ledger,
                                 std::function<void(std::uint32_t)> on_not_open)
    : lane_(lane),
      info_(info),
      size_bytes_(info.size_bytes),
      on_not_open_(std::move(on_not_open)),
      ledger_(std::move(ledger)),
      parts_(io_parts_max) {}

DeviceQueueImpl::~DeviceQueueImpl() { CHECK(!attached_); }

void DeviceQueueImpl::Attach() {
  context_ = lane_.port().Attach(*this);
  attached_ = true;
}

void DeviceQueueImpl::TearDown() {
  CHECK(ios_.empty());
  if (std::exchange(attached_, false)) lane_.port().Detach(context_);
}

// Those with parts out follow when these are back (Q2); those that OnIoDone() submits meanwhile at
// the end of a turn, or somebody who tries again at once would keep us here for ever.
void DeviceQueueImpl::CompleteIdle(int error) {
  Io* io = ios_.empty() ? nullptr : &ios_.front();
  for (std::uint32_t left = stats_.outstanding; io != nullptr && left > 0; --left) {
    Io* next = ios_.Next(*io);
    if (progress(*io).parts_out == 0) Complete(*io, error);
    io = next;
  }
}

void DeviceQueueImpl::OnTurnEnd() {
  if (EndError() != 0) CompleteIdle(EndError());
}

void DeviceQueueImpl::SetOpen(const Opened& opened) {
  if (state_ == State::kCancelled) return;
  opened_ = opened;
  state_ = State::kOpen;
  loss_to_report_ |= opened.writes_lost;
  // What has not begun begins anew: whether a flag may stand for a flush may have changed.
  ios_.ForEach([this](Io& io) {
    Io::Progress& state = progress(io);
    if (opened_.writes_lost && IsBarrier(io)) state.spans_loss = true;
    const bool not_begun = state.phase != kPostflush && state.issued == 0;
    if (state.parts_out > 0) {
      state.lost |= opened_.restart;
    } else if (not_begun || opened_.restart) {
      Begin(io);
    }
  });
  Rewind();
  Issue();
}

void DeviceQueueImpl::SetHeld() {
  if (state_ == State::kOpen) state_ = State::kHeld;
}

void DeviceQueueImpl::SetFailing() {
  if (state_ == State::kCancelled) return;
  state_ = State::kFailing;
  CompleteIdle(-ETIMEDOUT);
}

void DeviceQueueImpl::CancelAll() {
  state_ = State::kCancelled;
  CompleteIdle(-ECANCELED);
}

void DeviceQueueImpl::ListIos(std::uint32_t lane, std::vector<OutstandingIo>* out) {
  using WaitsFor = OutstandingIo::WaitsFor;
  const std::int64_t now_ns = lane_.port().reactor().clock().NowNs();
  ios_.ForEach([&](Io& io) {
    if (out->size() == out->capacity()) return;
    const Io::Progress& state = progress(io);
    const WaitsFor waits_for = state.parts_out > 0      ? WaitsFor::kAnswer
                               : state_ == State::kOpen ? WaitsFor::kTurn
                                                        : WaitsFor::kServer;
    out->push_back({io.op, waits_for, lane, io.offset, io.length, now_ns - state.submitted_ns});
  });
}

}  // namespace ibnbd::rnbd
