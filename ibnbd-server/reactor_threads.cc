// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/reactor_threads.h"

#include <pthread.h>

#include <future>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ibnbd {

absl::StatusOr<std::unique_ptr<ReactorThreads>> ReactorThreads::Create(std::uint32_t count) {
  std::unique_ptr<ReactorThreads> self(new ReactorThreads);
  for (std::uint32_t i = 0; i < count; ++i) {
    auto reactor = Reactor::Create(self->clock_, ReactorOptions{});
    if (!reactor.ok()) return reactor.status();
    self->reactors_.push_back(*std::move(reactor));
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    Reactor* reactor = self->reactors_[i].get();
    self->threads_.emplace_back([reactor] { reactor->Run(); });
    const std::string name = absl::StrCat("reactor", i);
    (void)pthread_setname_np(self->threads_.back().native_handle(), name.c_str());
  }
  return self;
}

ReactorThreads::~ReactorThreads() {
  for (const auto& reactor : reactors_) reactor->Stop();
  for (std::thread& thread : threads_) thread.join();
}

void ReactorThreads::RunOn(std::size_t index, absl::AnyInvocable<void()> task) {
  std::promise<void> done;
  std::future<void> finished = done.get_future();
  reactors_[index]->Post([&task, &done] {
    task();
    done.set_value();
  });
  finished.wait();
}

bool ReactorThreads::AllAlive() {
  if (unanswered_.load() != 0) return false;
  unanswered_.store(static_cast<std::uint32_t>(reactors_.size()));
  for (const auto& reactor : reactors_) {
    reactor->Post([this] { unanswered_.fetch_sub(1); });
  }
  return true;
}

}  // namespace ibnbd
