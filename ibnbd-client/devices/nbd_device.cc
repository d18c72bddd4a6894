// SPDX-License-Identifier: Apache-2.0
// /dev/nbdN: a pair of sockets; one end is the kernel's, the other is served by the transmission
// half of nbd-bridge on one of the loops.  See kernel_device.h.
//
// One pair, although the kernel could have several: a device with several sockets takes an IO that
// waits for longer than the request time-out away from its socket and sends it again over another,
// while we still hold the first one, which may then take effect after the second, or after what
// came later.  With one it waits.  An IO that was sent to the socket of a process that is no more
// is sent again when its request time-out is over: 30 s, or what our udev rule sets.  We must not
// set it ourselves: that waits for IO, in a way that cannot be killed, so that a process killed in
// it would keep the device from the next one, which alone could serve that IO.
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
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

// How the kernel knows the devices of `owner`; the volume's id follows.
std::string IdentifierOf(std::uint64_t owner) {
  return absl::StrCat("ibnbd-", VolumeIdText(owner), "-");
}

std::string IdentifierAt(int index) {
  std::string text;
  std::ifstream(absl::StrCat("/sys/block/nbd", index, "/backend")) >> text;
  return text;
}

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
  NbdDevice(DeviceLoops& loops, const OpenVolume& volume, std::uint64_t owner)
      : loops_(loops),
        volume_(volume),
        identifier_(absl::StrCat(IdentifierOf(owner), VolumeIdText(volume.info.volume_id))) {}

  absl::Status Connect(const KernelDeviceOptions& options);
  absl::Status Adopt(const KernelDeviceOptions& options);

  [[nodiscard]] std::string node() const override { return absl::StrCat("/dev/nbd", index_); }
  [[nodiscard]] int index() const override { return index_; }
  absl::Status Resize(std::uint64_t size_bytes) override;
  absl::Status Stop(std::int64_t timeout_ms) override;

 private:
  absl::Status Serve(UniqueFd* kernel_end);
  absl::Status Refused(const absl::Status& status, UniqueFd* kernel_end);

  DeviceLoops& loops_;
  const OpenVolume volume_;
  const std::string identifier_;
  int index_ = -1;
  const std::shared_ptr<ConnectionCount> connections_ = std::make_shared<ConnectionCount>();
};

// Both ends of the socket; ours is served from now on.
absl::Status NbdDevice::Serve(UniqueFd* kernel_end) {
  const bridge::NbdExport facts = bridge::ExportOf(volume_.info, kConnectionMemory);
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return ErrnoStatus(errno, "socketpair");
  }
  UniqueFd ours(pair[0]);
  kernel_end->Reset(pair[1]);
  for (const int fd : pair) {  // As far as the system lets us.
    (void)::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof(kSocketBuffer));
  }
  // Devices are spread over the loops.
  static std::atomic<std::uint32_t> next{0};
  const std::uint32_t place = next.fetch_add(1) % loops_.count();
  bridge::NbdAttachment attachment;
  attachment.device = volume_.device;
  attachment.queue = ibnbd_session_queue(volume_.session, place);
  ASSIGN_OR_RETURN(attachment.memory,
                   bridge::ConnectionMemory::Create(volume_.session, kConnectionMemory));
  // The size is the kernel's to keep, and the library's: it may grow.
  attachment.limits = {.size = std::numeric_limits<std::int64_t>::max(),
                       .block_size_min = facts.block_size_min,
                       .payload_size_max = facts.block_size_max,
                       .flags = facts.flags};
  connections_->Add(1);
  attachment.on_end = [connections = connections_] { connections->Add(-1); };
  loops_.Call(place, [&] {
    bridge::NbdConnection::Attach(loops_.loop(place), std::move(ours), std::move(attachment));
  });
  return absl::OkStatus();
}

// Our end sees that the kernel's is closed, and ends.
absl::Status NbdDevice::Refused(const absl::Status& status, UniqueFd* kernel_end) {
  kernel_end->Reset();
  if (!connections_->WaitForNone(absl::Now() + kEndTime)) {
    LOG_ERROR(node(), ": the connection of an attachment that failed is left behind");
  }
  return status;
}

absl::Status NbdDevice::Connect(const KernelDeviceOptions& options) {
  const bridge::NbdExport facts = bridge::ExportOf(volume_.info, kConnectionMemory);
  UniqueFd kernel_end;
  absl::Status status = Serve(&kernel_end);
  if (!status.ok()) return Refused(status, &kernel_end);
  NbdConnectOptions connect;
  connect.index = options.index;
  connect.size_bytes = volume_.info.size;
  connect.block_size = volume_.info.logical_block_size;
  connect.server_flags =
      facts.flags & ~std::uint64_t{proto::kNbdSendFastZero | proto::kNbdCanMultiConn};
  connect.dead_connection_s = options.survives_us ? kDeadConnectionS : 0;
  connect.identifier = identifier_.c_str();
  const int socket = kernel_end.get();
  const auto index = NbdConnect(connect, {&socket, 1});
  if (!index.ok()) return Refused(index.status(), &kernel_end);
  index_ = *index;
  // It is there, and nobody has been told.
  status = options.before_use ? options.before_use(index_) : absl::OkStatus();
  if (status.ok()) return status;
  (void)NbdDisconnect(index_);
  return Refused(status, &kernel_end);
}

absl::Status NbdDevice::Adopt(const KernelDeviceOptions& options) {
  index_ = options.index;
  if (const std::uint64_t size = SizeOfBlockDevice(node()); size > volume_.info.size) {
    return absl::FailedPreconditionError(absl::StrCat(
        "take over ", node(), ": it has ", size, " bytes, the volume only ", volume_.info.size));
  }
  UniqueFd kernel_end;
  absl::Status status = Serve(&kernel_end);
  if (!status.ok()) return Refused(status, &kernel_end);
  const int socket = kernel_end.get();
  status = NbdReconfigure(index_, identifier_.c_str(), {&socket, 1});
  return status.ok() ? status : Refused(status, &kernel_end);
}

// Linux 6.12 lets what is in flight end before it changes the size, with the locks of this device
// and of all generic netlink held, and not to be killed.  Only we can end it; if the server is lost
// meanwhile and we are killed, we stay, our successor cannot reconnect the device, and whoever uses
// generic netlink on this host waits with us, until a reboot.
absl::Status NbdDevice::Resize(std::uint64_t /*size_bytes*/) {
  return absl::UnimplementedError(
      absl::StrCat("resize ", node(),
                   ": /dev/nbdN cannot while it is there; 'ibnbd-client remap' adopts the new size "
                   "when it is not in use"));
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
  auto device = std::make_unique<NbdDevice>(loops, volume, options.mark.owner);
  RETURN_IF_ERROR(device->Connect(options));
  return device;
}

absl::StatusOr<std::unique_ptr<KernelDevice>> AdoptNbdDevice(DeviceLoops& loops,
                                                             const OpenVolume& volume,
                                                             const KernelDeviceOptions& options) {
  auto device = std::make_unique<NbdDevice>(loops, volume, options.mark.owner);
  RETURN_IF_ERROR(device->Adopt(options));
  return device;
}

absl::StatusOr<bool> NbdDeviceIsLeft(int index, const DeviceMark& mark) {
  const auto connected = NbdIsConnected(index);
  if (absl::IsNotFound(connected.status())) return false;  // Nor is the module.
  RETURN_IF_ERROR(connected.status());
  return *connected && absl::StartsWith(IdentifierAt(index), IdentifierOf(mark.owner));
}

void RemoveUnknownNbdDevices(std::uint64_t owner, std::span<const int> known) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", none)) {
    const std::string name = entry.path().filename();
    int index = -1;
    if (!absl::StartsWith(name, "nbd") || !absl::SimpleAtoi(name.substr(3), &index)) continue;
    if (std::find(known.begin(), known.end(), index) != known.end()) continue;
    if (!absl::StartsWith(IdentifierAt(index), IdentifierOf(owner))) continue;
    const absl::Status removed = RemoveLeftNbdDevice(index, {owner, 0});
    LOG_WARN(name, " was being made when the daemon ended: detached",
             removed.ok() ? "" : absl::StrCat(", but ", removed.message()));
  }
}

absl::Status RemoveLeftNbdDevice(int index, const DeviceMark& /*mark*/) {
  const auto connected = NbdIsConnected(index);
  if (absl::IsNotFound(connected.status())) return absl::OkStatus();  // Nor is the module.
  RETURN_IF_ERROR(connected.status());
  return *connected ? NbdDisconnect(index) : absl::OkStatus();
}

}  // namespace ibnbd::client
