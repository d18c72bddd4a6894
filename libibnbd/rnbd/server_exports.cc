// SPDX-License-Identifier: Apache-2.0
#include "rnbd/server_exports.h"

#include <utility>

#include "reactor/reactor.h"

namespace ibnbd::rnbd {

OpenExports::OpenExports(std::vector<Reactor*> reactors, std::uint32_t io_count_max,
                         absl::AnyInvocable<void()> on_empty)
    : reactors_(std::move(reactors)), io_count_max_(io_count_max), on_empty_(std::move(on_empty)) {}

void OpenExports::Acquire(std::shared_ptr<Export> exported, OpenExport::Done done) {
  std::unique_ptr<OpenExport>& entry = exports_[exported.get()];
  if (entry == nullptr) {
    entry = std::make_unique<OpenExport>();
    entry->exported_ = std::move(exported);
    entry->waiters_.push_back(std::move(done));
    return CreateNextQueue(*entry);
  }
  if (entry->state_ != OpenExport::State::kReady) return entry->waiters_.push_back(std::move(done));
  ++entry->user_count_;
  done(entry.get());
}

// One after the other: a backend need not expect two reactors at once.
void OpenExports::CreateNextQueue(OpenExport& open) {
  open.state_ = OpenExport::State::kCreating;
  Reactor& reactor = *reactors_[open.queues_.size()];
  reactor.Post([this, &open, &reactor] {
    auto queue = open.exported_->backend->CreateQueue(reactor, io_count_max_);
    reactors_[0]->Post([this, &open, queue = std::move(queue)]() mutable {
      OnQueueCreated(open, std::move(queue));
    });
  });
}

void OpenExports::OnQueueCreated(OpenExport& open,
                                 absl::StatusOr<std::unique_ptr<BackendQueue>> queue) {
  if (!queue.ok()) {
    open.error_ = queue.status();
    open.state_ = OpenExport::State::kDestroying;
    return DestroyLastQueue(open);
  }
  open.queues_.push_back(*std::move(queue));
  if (open.queues_.size() < reactors_.size()) return CreateNextQueue(open);
  open.state_ = OpenExport::State::kReady;
  for (OpenExport::Done& waiter : std::exchange(open.waiters_, {})) {
    ++open.user_count_;
    waiter(&open);
  }
}

void OpenExports::Release(OpenExport& open) {
  CHECK(open.state_ == OpenExport::State::kReady && open.user_count_ > 0);
  if (--open.user_count_ > 0) return;
  open.state_ = OpenExport::State::kDestroying;
  DestroyLastQueue(open);
}

void OpenExports::DestroyLastQueue(OpenExport& open) {
  if (open.queues_.empty()) return OnAllDestroyed(open);
  const std::size_t index = open.queues_.size() - 1;
  std::unique_ptr<BackendQueue> queue = std::move(open.queues_[index]);
  reactors_[index]->Post([this, &open, queue = std::move(queue)]() mutable {
    queue.reset();
    reactors_[0]->Post([this, &open] {
      open.queues_.pop_back();
      DestroyLastQueue(open);
    });
  });
}

void OpenExports::OnAllDestroyed(OpenExport& open) {
  const absl::Status error = std::exchange(open.error_, absl::OkStatus());
  if (error.ok() && !open.waiters_.empty()) return CreateNextQueue(open);
  std::vector<OpenExport::Done> waiters = std::exchange(open.waiters_, {});
  exports_.erase(open.exported_.get());
  for (OpenExport::Done& waiter : waiters) waiter(error);
  if (exports_.empty()) on_empty_();
}

}  // namespace ibnbd::rnbd
