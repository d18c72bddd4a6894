// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/backends/file_backend.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-server/backends/file_queue.h"
#include "reactor/reactor.h"

namespace ibnbd {
namespace {

int OpenAt(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags);
  return fd >= 0 ? fd : -errno;
}

}  // namespace

// Closing asks the file system as well.  A call that has not returned holds the volume itself.
FileBackend::~FileBackend() {
  (void)looks_.Run([volume = std::move(volume_)] {});
}

std::string FileBackend::Describe() const {
  return absl::StrCat(volume_->is_block_device() ? "device " : "file ", volume_->path(),
                      volume_->direct() ? ", O_DIRECT" : ", buffered",
                      volume_->geometry().read_only ? ", read-only" : "");
}

void FileBackend::RefreshSize() {
  const auto found = std::make_shared<absl::StatusOr<std::uint64_t>>(std::uint64_t{0});
  if (looks_.Run([volume = volume_, found] {
        volume->CheckSize();
        *found = volume->SizeNow();
      })) {
    volume_->TakeSize(*found);
  }
}

absl::Status FileBackend::CheckPlace() const {
  const auto found = std::make_shared<absl::Status>();
  if (looks_.Run([volume = volume_, found] { *found = volume->CheckPlace(); })) return *found;
  return ErrnoStatus(EBUSY, absl::StrCat(volume_->path(), ": its file system does not answer"));
}

absl::StatusOr<std::unique_ptr<rnbd::BackendQueue>> FileBackend::CreateQueue(Reactor& reactor,
                                                                             std::uint32_t) {
  if (reactor.ring() == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("attach ", volume_->path(), ": this reactor has no IO ring"));
  }
  return std::make_unique<FileQueue>(
      *volume_, reactor,
      volume_->is_remote() ? FileSizeLook::Create(volume_, *reactor.ring()) : nullptr);
}

absl::Status CheckFileBackend(const std::string& path) {
  return Volume::Check(path, [&path](int flags) { return OpenAt(path, flags); });
}

absl::StatusOr<std::unique_ptr<rnbd::Backend>> OpenFileBackend(const std::string& path,
                                                               const VolumeOptions& options) {
  const auto opener = [&path](int flags) { return OpenAt(path, flags); };
  VolumeOptions with_path = options;
  with_path.path_is_real = true;
  absl::StatusOr<std::unique_ptr<Volume>> volume = Volume::Open(path, opener, with_path);
  if (!volume.ok()) return volume.status();
  return std::make_unique<FileBackend>(*std::move(volume));
}

}  // namespace ibnbd
