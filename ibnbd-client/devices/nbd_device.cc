// SPDX-License-Identifier: Apache-2.0
// /dev/nbdN: pairs of sockets, one per loop; one end is the kernel's, the other is served by the
// transmission half of nbd-bridge.  See kernel_device.h.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "ibnbd-client/devices/kernel_device.h"
#include "ibnbd-client/devices/nbd_netlink.h"
#include "ibnbd-client/text.h"
#include "nbd-bridge/connection_memory.h"
#include "nbd-bridge/nbd_connection.h"
#include "nbd-bridge/volume_table.h"

namespace ibnbd::client {
namespace {

// What a connection may have in flight; the kernel waits in its socket when that is used up.
constexpr std::uint32_t kConnectionMemory = 16u << 20;
constexpr int kSocketBuffer = 1 << 20;
// IOs wait this long for the next process.  Somebody should have looked by then.
constexpr std::uint64_t kDeadConnectionS = 24 * 3600;
constexpr absl::Duration kEndTime = absl::Seconds(5);

// Connections end on their loops, some of them perhaps after the device was given up.
class ConnectionCount {
 public:
  void Add(int change) {
    absl::MutexLock lock(&mutex_);
    count_ += change;
  }
  bool WaitForNone(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return count_ == 0; };
    return mutex_.AwaitWithDeadline(absl::Condition(&none), deadline);
  }

 private:
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

class NbdDevice final : public KernelDevice {
 public:
  NbdDevice(DeviceLoops& loops, const OpenVolume& volume)
      : loops_(loops),
        volume_(volume),
        identifier_(absl::StrCat("ibnbd-", VolumeIdText(volume.info.volume_id))) {}

  absl::Status Connect(const KernelDeviceOptions& options);
  absl::Status Adopt(int index);

  [[nodiscard]] std::string node() const override { return absl::StrCat("/dev/nbd", index_); }
  [[nodiscard]] int index() const override { return index_; }
  absl::Status Resize(std::uint64_t size_bytes) override { return NbdSetSize(index_, size_bytes); }
  absl::Status Stop(std::int64_t timeout_ms) override;
  void Abandon() override {}  // The sockets close with the process: the kernel waits for new ones.

 private:
  absl::Status Serve(std::vector<UniqueFd>* kernel_ends);
  absl::Status Refused(const absl::Status& status, std::vector<UniqueFd>* kernel_ends);

  DeviceLoops& loops_;
  const OpenVolume volume_;
  const std::string identifier_;
  int index_ = -1;
  const std::shared_ptr<ConnectionCount> connections_ = std::make_shared<ConnectionCount>();
};

// Both ends of a socket per loop; ours are served from now on.
absl::Status NbdDevice::Serve(std::vector<UniqueFd>* kernel_ends) {
  const bridge::NbdExport facts = bridge::ExportOf(volume_.info, kConnectionMemory);
  for (std::uint32_t i = 0; i < loops_.count(); ++i) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
      return ErrnoStatus(errno, "socketpair");
    }
    UniqueFd ours(pair[0]);
    kernel_ends->emplace_back(pair[1]);
    for (const int fd : pair) {  // As far as the system lets us.
      (void)::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof(kSocketBuffer));
    }
    bridge::NbdAttachment attachment;
    attachment.device = volume_.device;
    attachment.queue = ibnbd_session_queue(volume_.session, i);
    ASSIGN_OR_RETURN(attachment.memory,
                     bridge::ConnectionMemory::Create(volume_.session, kConnectionMemory));
    // The size is the kernel's to keep, and the library's: it may grow.
    attachment.limits = {.size = std::numeric_limits<std::int64_t>::max(),
                         .block_size_min = facts.block_size_min,
                         .payload_size_max = facts.block_size_max,
                         .flags = facts.flags};
    connections_->Add(1);
    attachment.on_end = [connections = connections_] { connections->Add(-1); };
    loops_.Call(i, [&] {
      bridge::NbdConnection::Attach(loops_.loop(i), std::move(ours), std::move(attachment));
    });
  }
  return absl::OkStatus();
}

// Our ends see that the kernel's are closed, and end.
absl::Status NbdDevice::Refused(const absl::Status& status, std::vector<UniqueFd>* kernel_ends) {
  kernel_ends->clear();
  if (!connections_->WaitForNone(absl::Now() + kEndTime)) {
    LOG_ERROR(node(), ": connections of an attachment that failed are left behind");
  }
  return status;
}

std::vector<int> Numbers(const std::vector<UniqueFd>& sockets) {
  std::vector<int> numbers;
  for (const UniqueFd& socket : sockets) numbers.push_back(socket.get());
  return numbers;
}

absl::Status NbdDevice::Connect(const KernelDeviceOptions& options) {
  const bridge::NbdExport facts = bridge::ExportOf(volume_.info, kConnectionMemory);
  std::vector<UniqueFd> kernel_ends;
  absl::Status status = Serve(&kernel_ends);
  if (status.ok()) {
    NbdConnectOptions connect;
    connect.index = options.index;
    connect.size_bytes = volume_.info.size;
    connect.block_size = volume_.info.logical_block_size;
    connect.server_flags = facts.flags & ~std::uint64_t{proto::kNbdSendFastZero};
    connect.dead_connection_s = options.survives_us ? kDeadConnectionS : 0;
    connect.identifier = identifier_.c_str();
    const auto index = NbdConnect(connect, Numbers(kernel_ends));
    if (index.ok()) {
      index_ = *index;
      return absl::OkStatus();
    }
    status = index.status();
  }
  return Refused(status, &kernel_ends);
}

absl::Status NbdDevice::Adopt(int index) {
  index_ = index;
  std::vector<UniqueFd> kernel_ends;
  absl::Status status = Serve(&kernel_ends);
  if (status.ok()) status = NbdReconfigure(index, identifier_.c_str(), Numbers(kernel_ends));
  return status.ok() ? status : Refused(status, &kernel_ends);
}

absl::Status NbdDevice::Stop(std::int64_t timeout_ms) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(timeout_ms);
  RETURN_IF_ERROR(NbdDisconnect(index_));
  if (!connections_->WaitForNone(deadline)) {
    return absl::DeadlineExceededError(
        absl::StrCat("detach ", node(), ": the kernel has not closed its sockets"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KernelDevice>> StartNbdDevice(DeviceLoops& loops,
                                                             const OpenVolume& volume,
                                                             const KernelDeviceOptions& options) {
  auto device = std::make_unique<NbdDevice>(loops, volume);
  RETURN_IF_ERROR(device->Connect(options));
  return device;
}

absl::StatusOr<std::unique_ptr<KernelDevice>> AdoptNbdDevice(DeviceLoops& loops,
                                                             const OpenVolume& volume,
                                                             const KernelDeviceOptions& options) {
  auto device = std::make_unique<NbdDevice>(loops, volume);
  RETURN_IF_ERROR(device->Adopt(options.index));
  return device;
}

absl::StatusOr<bool> NbdDeviceIsThere(int index) {
  const auto connected = NbdIsConnected(index);
  return absl::IsNotFound(connected.status()) ? false : connected;  // Nor is the module.
}

absl::Status RemoveLeftNbdDevice(int index) {
  ASSIGN_OR_RETURN(const bool there, NbdDeviceIsThere(index));
  return there ? NbdDisconnect(index) : absl::OkStatus();
}

}  // namespace ibnbd::client
