// SPDX-License-Identifier: Apache-2.0
// Exports that somebody has open, and their backend queues: one per export and reactor, made when
// the first session opens the export and destroyed when the last has closed it.  Control thread;
// the queues are made, used and destroyed on their reactors.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "rnbd/block_backend.h"
#include "rnbd/server.h"

namespace ibnbd::rnbd {

class OpenExport {
 public:
  [[nodiscard]] Export& exported() const { return *exported_; }
  // Of reactor `index`.  Stays until the last Release().
  [[nodiscard]] BackendQueue* queue(std::uint32_t index) const { return queues_[index].get(); }

 private:
  friend class OpenExports;
  using Done = absl::AnyInvocable<void(absl::StatusOr<OpenExport*>)>;
  enum class State : std::uint8_t {
    kCreating,   // Waits for the queues, made one reactor after the other.
    kReady,      // Can be used.
    kDestroying  // Waits for the queues' end; who asks now waits for the next round.
  };
  State state_ = State::kCreating;
  std::shared_ptr<Export> exported_;
  std::vector<std::unique_ptr<BackendQueue>> queues_;  // By reactor.
  std::uint32_t user_count_ = 0;
  absl::Status error_;  // Why creation failed; told when what was created is gone.
  std::vector<Done> waiters_;
};

class OpenExports {
 public:
  // `reactors[0]` is the control reactor.  `on_empty` is called whenever the last export is gone.
  OpenExports(std::vector<Reactor*> reactors, std::uint32_t io_count_max,
              absl::AnyInvocable<void()> on_empty);

  // `done` gets an export that may be used until Release(), now or later.
  void Acquire(std::shared_ptr<Export> exported, OpenExport::Done done);
  // Requires: no IO of this user is with a queue.
  void Release(OpenExport& open);
  [[nodiscard]] bool empty() const { return exports_.empty(); }

 private:
  void CreateNextQueue(OpenExport& open);
  void OnQueueCreated(OpenExport& open, absl::StatusOr<std::unique_ptr<BackendQueue>> queue);
  void DestroyLastQueue(OpenExport& open);
  void OnAllDestroyed(OpenExport& open);

  const std::vector<Reactor*> reactors_;
  const std::uint32_t io_count_max_;
  absl::AnyInvocable<void()> on_empty_;
  // Looked up, never iterated: the order of addresses does not matter.
  std::map<const Export*, std::unique_ptr<OpenExport>> exports_;
};

}  // namespace ibnbd::rnbd
