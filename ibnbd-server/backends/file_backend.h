// SPDX-License-Identifier: Apache-2.0
// The backend that stands on a regular file or a block device.  Opened on a control thread; its
// queues (file_queue.h) run on the reactors' rings.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "ibnbd-server/backends/volume.h"
#include "ibnbd-server/bounded_call.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

class FileBackend final : public rnbd::Backend {
 public:
  explicit FileBackend(std::unique_ptr<Volume> volume) : volume_(std::move(volume)) {}
  ~FileBackend() override;  // Waits for the volume's end, but not for a file system that hangs.

  [[nodiscard]] const rnbd::Geometry& geometry() const override { return volume_->geometry(); }
  [[nodiscard]] std::string Describe() const override;
  void RefreshSize() override;
  // EBUSY, too: the file system does not answer.
  [[nodiscard]] absl::Status CheckPlace() const override;
  [[nodiscard]] std::shared_ptr<rnbd::SyncErrors> sync_errors() override {
    return volume_->sync_errors();
  }
  absl::StatusOr<std::unique_ptr<rnbd::BackendQueue>> CreateQueue(
      Reactor& reactor, std::uint32_t io_count_max) override;
  [[nodiscard]] const Volume& volume() const { return *volume_; }

 private:
  std::shared_ptr<Volume> volume_;  // Until the end.  Shared with a call that does not return.
  mutable BoundedCall looks_;
};

// Errors begin with "attach PATH: ".
absl::Status CheckFileBackend(const std::string& path);  // As Volume::Check().
absl::StatusOr<std::unique_ptr<rnbd::Backend>> OpenFileBackend(const std::string& path,
                                                               const VolumeOptions& options);

}  // namespace ibnbd
