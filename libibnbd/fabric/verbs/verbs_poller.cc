// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_poller.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "fabric/verbs/verbs_cm.h"
#include "fabric/verbs/verbs_connection.h"
#include "fabric/verbs/verbs_device_events.h"
#include "fabric/verbs/verbs_domain.h"
#include "fabric/verbs/verbs_fabric.h"
#include "fabric/verbs/verbs_translate.h"

namespace ibnbd::verbs {
namespace {

constexpr std::uint32_t kQueueEntriesMin = 1024;
constexpr std::size_t kBatch = 32;
constexpr std::size_t kCmEventBudget = 64;  // Per PollEvents(): connections want to run, too.

bool SetNonBlocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

}  // namespace

void VerbsPoller::Watch::Arm(IoRing& ring, int fd) {
  if (armed) return;
  armed = true;
  io_uring_sqe* sqe = ring.GetSqe();
  if (multishot) {
    io_uring_prep_poll_multishot(sqe, fd, POLLIN);
  } else {
    io_uring_prep_poll_add(sqe, fd, POLLIN);
  }
  ring.Prepare(sqe, *this);
}

absl::StatusOr<std::unique_ptr<VerbsPoller>> VerbsPoller::Create(VerbsFabric& fabric,
                                                                 Reactor& reactor) {
  if (reactor.ring() == nullptr) {
    return absl::FailedPreconditionError("rdma: create poller: the reactor has no IO ring");
  }
  std::unique_ptr<VerbsPoller> poller(new VerbsPoller(fabric, reactor));
  poller->channel_.reset(rdma_create_event_channel());
  if (poller->channel_ == nullptr || !SetNonBlocking(poller->channel_->fd)) {
    return ErrnoStatus(
        errno,
        "rdma: the connection manager (/dev/infiniband/rdma_cm) cannot be used: modprobe "
        "rdma_ucm");
  }
  poller->cm_watch_.Arm(*reactor.ring(), poller->channel_->fd);
  return poller;
}

VerbsPoller::~VerbsPoller() {
  CHECK(connection_count_ == 0 && listener_count_ == 0);
  events_.clear();  // Connection requests that nobody asked for are rejected.
  IoRing& ring = *reactor_.ring();
  const auto armed = [this] {
    return cm_watch_.armed || std::any_of(queues_.begin(), queues_.end(), [](const auto& queue) {
             return queue->watch.armed || queue->device_watch.armed;
           });
  };
  if (cm_watch_.armed) ring.Cancel(cm_watch_);
  for (const auto& queue : queues_) {
    if (queue->watch.armed) ring.Cancel(queue->watch);
    if (queue->device_watch.armed) ring.Cancel(queue->device_watch);
  }
  while (armed()) {
    if (ring.Dispatch(64) == 0) ring.SubmitAndWait(kNsPerMs);
  }
  for (const auto& queue : queues_) TakeEvent(*queue);
}

absl::StatusOr<VerbsPoller::Place> VerbsPoller::AddConnection(VerbsConnection& connection) {
  if (free_slots_.empty()) {
    if (slots_.size() > 0xffff) {
      return absl::ResourceExhaustedError("rdma: 65536 connections on one reactor");
    }
    free_slots_.push_back(static_cast<std::uint16_t>(slots_.size()));
    slots_.emplace_back();
  }
  const std::uint16_t index = free_slots_.back();
  free_slots_.pop_back();
  slots_[index].connection = &connection;
  ++connection_count_;
  return Place{index, slots_[index].generation};
}

void VerbsPoller::RemoveConnection(const Place& place) {
  Slot& slot = slots_[place.index];
  std::erase(broken_, slot.connection);
  slot.connection = nullptr;
  ++slot.generation;  // What the device still says of it is nobody's.
  free_slots_.push_back(place.index);
  --connection_count_;
}

// With room for `entries` at once, if the device has it: it may not be able to resize.  As long as
// all that are as long as they can be, so that there never are many: each is polled.
absl::StatusOr<VerbsPoller::DeviceQueue*> VerbsPoller::AddQueue(ibv_context* context,
                                                                std::uint32_t entries) {
  auto queue = std::make_unique<DeviceQueue>();
  ibv_device_attr limits{};
  if (const int error = ibv_query_device(context, &limits)) {
    return ErrnoStatus(error, absl::StrCat("rdma: query ", DeviceName(context)));
  }
  queue->entries_max = static_cast<std::uint32_t>(limits.max_cqe);
  queue->channel.reset(ibv_create_comp_channel(context));
  if (queue->channel == nullptr || !SetNonBlocking(queue->channel->fd)) {
    return ErrnoStatus(errno, absl::StrCat("rdma: completion channel of ", DeviceName(context)));
  }
  ASSIGN_OR_RETURN(queue->device_fd, DeviceEventsFd(context));
  std::uint32_t full = 0;
  for (const auto& other : queues_) {
    if (other->cq->context == context && other->entries == other->entries_max) {
      full += other->entries;
    }
  }
  queue->entries =
      std::min(std::max({kQueueEntriesMin, std::bit_ceil(entries), full}), queue->entries_max);
  queue->cq.reset(
      ibv_create_cq(context, static_cast<int>(queue->entries), nullptr, queue->channel.get(), 0));
  if (queue->cq == nullptr) {
    return ErrnoStatus(errno, absl::StrCat("rdma: completion queue of ", DeviceName(context)));
  }
  queues_.push_back(std::move(queue));
  return queues_.back().get();
}

// The first that has, or can have, as much room; a device's queues are longer than one connection
// needs, but not always long enough for all (rxe: 32767).
absl::StatusOr<VerbsPoller::DeviceQueue*> VerbsPoller::QueueFor(ibv_context* context,
                                                                std::uint32_t entries) {
  for (const auto& queue : queues_) {
    if (queue->cq->context != context) continue;
    if (entries <= queue->entries_max - queue->entries_used) return queue.get();
  }
  ASSIGN_OR_RETURN(DeviceQueue * queue, AddQueue(context, entries));
  if (entries > queue->entries_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "rdma: ", DeviceName(context), " has completion queues of at most ", queue->entries_max,
        " entries; a connection needs ", entries, " (a smaller queue depth would do)"));
  }
  return queue;
}

// False: then it stays as it is.  Some devices cannot do it at all, others may be short of memory.
bool VerbsPoller::Lengthen(DeviceQueue& queue, std::uint32_t wanted) {
  const std::uint32_t roomy = std::min(std::bit_ceil(wanted), queue.entries_max);
  const int error = ibv_resize_cq(queue.cq.get(), static_cast<int>(roomy));
  if (error == 0) {
    queue.entries = roomy;
    return true;
  }
  LOG_DEBUG("rdma: ", DeviceName(queue.cq->context), ": a completion queue stays at ",
            queue.entries,
            " entries: ", std::string(ErrnoStatus(error < 0 ? errno : error, "resize").message()));
  queue.entries_max = queue.entries;
  return false;
}

absl::StatusOr<ibv_cq*> VerbsPoller::TakeEntries(ibv_context* context, std::uint32_t entries) {
  while (true) {  // Each turn but the last ends the growth of one queue; a new one needs none.
    ASSIGN_OR_RETURN(DeviceQueue * queue, QueueFor(context, entries));
    const std::uint32_t wanted = queue->entries_used + entries;
    if (wanted > queue->entries && !Lengthen(*queue, wanted)) continue;
    queue->entries_used = wanted;
    return queue->cq.get();
  }
}

void VerbsPoller::ReturnEntries(ibv_cq* cq, std::uint32_t entries) {
  for (const auto& queue : queues_) {
    if (queue->cq.get() == cq) queue->entries_used -= entries;
  }
}

void VerbsPoller::PushCompletion(VerbsConnection& connection,
                                 const fabric::Completion& completion) {
  connection.NoteStashed(1);
  stash_.push_back({completion, &connection});
}

std::size_t VerbsPoller::TakeStashed(std::span<fabric::Completion> out) {
  std::size_t count = 0;
  while (count < out.size() && stash_head_ < stash_.size()) {
    const Stashed& entry = stash_[stash_head_++];
    entry.connection->NoteStashed(-1);
    out[count++] = entry.completion;
  }
  if (stash_head_ == stash_.size()) {
    stash_.clear();
    stash_head_ = 0;
  }
  return count;
}

// False: nobody waits for it.
bool VerbsPoller::OnWc(const ibv_wc& wc, fabric::Completion* out) {
  const WrName name = UnpackWrName(wc.wr_id);
  if (name.index >= slots_.size()) return false;
  const Slot& slot = slots_[name.index];
  if (slot.connection == nullptr || slot.generation != name.generation) return false;
  return slot.connection->OnWc(name, wc, out);
}

std::size_t VerbsPoller::PollQueue(DeviceQueue& queue, std::span<fabric::Completion> out) {
  std::size_t count = 0;
  while (count < out.size()) {
    std::array<ibv_wc, kBatch> batch;
    const int wanted = static_cast<int>(std::min(batch.size(), out.size() - count));
    const int got = ibv_poll_cq(queue.cq.get(), wanted, batch.data());
    for (int i = 0; i < got; ++i) {
      if (OnWc(batch[static_cast<std::size_t>(i)], &out[count])) ++count;
    }
    if (got < wanted) break;  // Empty, or (negative) the device is gone: CM events say so.
  }
  return count;
}

std::size_t VerbsPoller::PollCompletions(std::span<fabric::Completion> out) {
  std::size_t count = TakeStashed(out);
  if (stash_head_ < stash_.size()) return count;
  for (const auto& queue : queues_) count += PollQueue(*queue, out.subspan(count));
  if (count < out.size() && !broken_.empty()) {
    FinishBroken();
    count += TakeStashed(out.subspan(count));
  }
  return count;
}

void VerbsPoller::StashQueue(DeviceQueue& queue) {
  std::array<ibv_wc, kBatch> batch;
  int got = 0;
  do {
    got = ibv_poll_cq(queue.cq.get(), static_cast<int>(batch.size()), batch.data());
    for (int i = 0; i < got; ++i) {
      const ibv_wc& wc = batch[static_cast<std::size_t>(i)];
      const WrName name = UnpackWrName(wc.wr_id);
      fabric::Completion completion;
      if (OnWc(wc, &completion)) PushCompletion(*slots_[name.index].connection, completion);
    }
  } while (got == static_cast<int>(batch.size()));
}

// The queues were empty a moment ago.  Once a queue pair is destroyed the device touches nothing of
// the connection any more; what it reported before that is read, and the rest is flushed.
void VerbsPoller::FinishBroken() {
  std::vector<VerbsConnection*> broken;
  broken.swap(broken_);
  for (VerbsConnection* connection : broken) connection->DestroyQueuePair();
  for (const auto& queue : queues_) StashQueue(*queue);
  for (VerbsConnection* connection : broken) connection->FlushAll();
}

bool VerbsPoller::HasWork() {
  if (stash_head_ < stash_.size() || !events_.empty() || !broken_.empty() || cm_watch_.fired) {
    return true;
  }
  for (const auto& queue : queues_) StashQueue(*queue);
  return !stash_.empty() || !broken_.empty() || !events_.empty();
}

// One event at most: the queue is armed once at a time.
void VerbsPoller::TakeEvent(DeviceQueue& queue) {
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  if (ibv_get_cq_event(queue.channel.get(), &cq, &context) != 0) return;
  ibv_ack_cq_events(queue.cq.get(), 1);
  queue.armed = false;
}

void VerbsPoller::PrepareToSleep() {
  IoRing& ring = *reactor_.ring();
  if (!cm_watch_.fired) cm_watch_.Arm(ring, channel_->fd);
  for (const auto& queue : queues_) {
    if (queue->watch.fired) {
      queue->watch.fired = false;
      TakeEvent(*queue);
    }
    if (!queue->armed) queue->armed = ibv_req_notify_cq(queue->cq.get(), 0) == 0;
    queue->watch.Arm(ring, queue->channel->fd);
    if (queue->device_watch.fired) {
      queue->device_watch.fired = false;
      ReadDeviceEvents(queue->cq->context);
    }
    queue->device_watch.Arm(ring, queue->device_fd);
  }
}

void VerbsPoller::PushEvent(fabric::CmEvent event, std::span<const std::byte> private_data) {
  events_.push_back({std::move(event), {private_data.begin(), private_data.end()}});
}

void VerbsPoller::ReadCmEvents() {
  cm_watch_.fired = false;
  for (std::size_t i = 0; i < kCmEventBudget; ++i) {
    rdma_cm_event* event = nullptr;
    if (rdma_get_cm_event(channel_.get(), &event) != 0) {
      cm_watch_.Arm(*reactor_.ring(), channel_->fd);
      return;
    }
    // A copy: the event is given back before an id that it names may be destroyed.
    const rdma_cm_event copy = *event;
    const auto* data = static_cast<const std::byte*>(event->param.conn.private_data);
    std::vector<std::byte> private_data;
    if (data != nullptr) private_data.assign(data, data + event->param.conn.private_data_len);
    rdma_cm_id* named = copy.listen_id != nullptr ? copy.listen_id : copy.id;
    auto* target = static_cast<CmTarget*>(named->context);
    (void)rdma_ack_cm_event(event);
    if (target != nullptr) {
      target->OnCmEvent(copy, private_data);
    } else if (copy.event == RDMA_CM_EVENT_CONNECT_REQUEST) {
      rdma_destroy_id(copy.id);
    }
  }
  cm_watch_.fired = true;  // There may be more.
}

std::size_t VerbsPoller::PollEvents(std::span<fabric::CmEvent> out) {
  reported_data_.clear();
  if (cm_watch_.fired) ReadCmEvents();
  std::size_t count = 0;
  while (count < out.size() && !events_.empty()) {
    QueuedEvent queued = std::move(events_.front());
    events_.pop_front();
    if (queued.event.connection != nullptr) {
      static_cast<VerbsConnection*>(queued.event.connection)->OnReported(queued.event.kind);
    }
    reported_data_.push_back(std::move(queued.private_data));
    queued.event.private_data = reported_data_.back();
    out[count++] = std::move(queued.event);
  }
  return count;
}

absl::StatusOr<std::unique_ptr<fabric::Connection>> VerbsPoller::StartConnect(
    const SocketAddress& peer, const fabric::ConnectionOptions& options,
    std::span<const std::byte> private_data) {
  return VerbsConnection::StartActive(*this, peer, options, private_data);
}

absl::StatusOr<std::unique_ptr<fabric::Listener>> VerbsPoller::Listen(const SocketAddress& local,
                                                                      std::uint64_t context) {
  return VerbsListener::Create(*this, local, context);
}

}  // namespace ibnbd::verbs
