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
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

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

// What a connection may have in flight; the kernel waits in its socket when that is used up.  As
// much as the largest request that it can be told to make (queue/max_sectors_kb).
constexpr std::uint32_t kConnectionMemory = 32u << 20;
constexpr int kSocketBuffer = 1 << 20;
// IOs wait this long for the next process.  Somebody should have looked by then.
constexpr std::uint64_t kDeadConnectionS = 24 * 3600;
constexpr absl::Duration kEndTime = absl::Seconds(5);

// How the kernel knows the devices of `owner`; the volume's follows.
std::string IdentifierOf(std::uint64_t owner) {
  return absl::StrCat("ibnbd-", VolumeIdText(owner), "-");
}

std::string IdentifierOf(const DeviceMark& mark) {
  return absl::StrCat(IdentifierOf(mark.owner), VolumeIdText(mark.volume));
}

// What its maker told the kernel to know it by; "": nothing, or it is not there.  An error must not
// be taken for that.
absl::StatusOr<std::string> IdentifierAt(int index) {
  constexpr const char* kDevices = "/sys/block";
  const std::string path = absl::StrCat(kDevices, "/nbd", index, "/backend");
  std::string text;
  std::ifstream file(path);
  if (file.is_open() && (file >> text || !file.bad())) return text;
  if (::access(path.c_str(), F_OK) == 0) errno = EIO;  // There, but it could not be read.
  if (errno == ENOENT && ::access(kDevices, F_OK) == 0) return std::string();
  return ErrnoStatus(errno, absl::StrCat("ask whose /dev/nbd", index, " is: ", path));
}

// Daemons before this one did not tell the volumes of kernel servers apart: they had number 0.
bool IsOf(const DeviceMark& mark, const std::string& identifier) {
  if (mark.volume == 0) return absl::StartsWith(identifier, IdentifierOf(mark.owner));
  return identifier == IdentifierOf(mark) || identifier == IdentifierOf(DeviceMark{mark.owner, 0});
}

absl::StatusOr<bool> IsMarked(int index, const DeviceMark& mark) {
  ASSIGN_OR_RETURN(const std::string identifier, IdentifierAt(index));
  return IsOf(mark, identifier);
}

// The other end, or ours, was closed or shut down.
bool HasEnded(int socket) {
  pollfd poll{.fd = socket, .events = POLLRDHUP, .revents = 0};
  return ::poll(&poll, 1, 0) != 0;
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
  NbdDevice(DeviceLoops& loops, const OpenVolume& volume, const DeviceMark& mark)
      : loops_(loops), volume_(volume), mark_(mark) {}

  absl::Status Connect(const KernelDeviceOptions& options);
  absl::Status Adopt(const KernelDeviceOptions& options);

  [[nodiscard]] std::string node() const override { return absl::StrCat("/dev/nbd", index_); }
  [[nodiscard]] int index() const override { return index_; }
  absl::Status Resize(std::uint64_t size_bytes) override;
  [[nodiscard]] bool IsConnected() const override { return !HasEnded(our_end_.get()); }
  absl::Status Reconnect() override;
  absl::Status Stop(std::int64_t timeout_ms) override;

 private:
  absl::Status Serve(UniqueFd* kernel_end);
  absl::Status Refused(const absl::Status& status, UniqueFd* kernel_end);
  absl::Status Attach();
  absl::StatusOr<std::string> OurIdentifier() const;

  DeviceLoops& loops_;
  const OpenVolume volume_;
  const DeviceMark mark_;
  int index_ = -1;
  UniqueFd our_end_;           // Of the last connection, to look at.
  absl::Status lost_forever_;  // Not OK: it is not our device any more.
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
  our_end_.Reset(::fcntl(ours.get(), F_DUPFD_CLOEXEC, 0));
  if (!our_end_.valid()) return ErrnoStatus(errno, "duplicate a socket");
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
  const std::string identifier = IdentifierOf(mark_);
  connect.identifier = identifier.c_str();
  const int socket = kernel_end.get();
  const auto index = NbdConnect(connect, {&socket, 1});
  if (!index.ok()) return Refused(index.status(), &kernel_end);
  index_ = *index;
  // It is there, and nobody has been told.  Who could not know it again could not take it away.
  const auto is_ours = IsMarked(index_, mark_);
  status = is_ours.status();
  if (status.ok() && !*is_ours) {
    status = absl::FailedPreconditionError(
        absl::StrCat("this kernel does not say whose ", node(), " is (Linux 5.14 does)"));
  }
  if (status.ok() && options.before_use) status = options.before_use(index_);
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
  return Attach();
}

absl::StatusOr<std::string> NbdDevice::OurIdentifier() const {
  ASSIGN_OR_RETURN(std::string identifier, IdentifierAt(index_));
  if (IsOf(mark_, identifier)) return identifier;
  return absl::FailedPreconditionError(
      absl::StrCat(node(), " was detached by another program: unmap it"));
}

// Of a device that is there, and whose connection has ended.
absl::Status NbdDevice::Attach() {
  ASSIGN_OR_RETURN(const std::string identifier, OurIdentifier());
  UniqueFd kernel_end;
  absl::Status status = Serve(&kernel_end);
  if (!status.ok()) return Refused(status, &kernel_end);
  const int socket = kernel_end.get();
  status = NbdReconfigure(index_, identifier.c_str(), {&socket, 1});
  kernel_end.Reset();
  // A kernel whose connection is alive, or looks so yet, drops the new one without a word.
  if (status.ok() && !IsConnected()) {
    status = absl::UnavailableError(absl::StrCat(
        "take over ", node(), ": the kernel still has the connection of another process"));
  }
  return status.ok() ? status : Refused(status, &kernel_end);
}

// The kernel sends again what it has sent to the connection that has ended, and that must not
// overtake what we have of it.
absl::Status NbdDevice::Reconnect() {
  if (IsConnected()) return absl::OkStatus();
  RETURN_IF_ERROR(lost_forever_);
  RETURN_IF_ERROR(OurIdentifier().status());
  if (!connections_->WaitForNone(absl::Now())) {
    return absl::UnavailableError(absl::StrCat(
        node(),
        ": the kernel has closed its connection, and gets a new one when what was sent over "
        "the old one has ended"));
  }
  const absl::Status status = Attach();
  if (absl::IsFailedPrecondition(status)) lost_forever_ = status;
  if (status.ok()) LOG_WARN(node(), ": its connection had ended, it has a new one");
  return status;
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
  ASSIGN_OR_RETURN(const bool is_ours, IsMarked(index_, mark_));
  if (is_ours) {
    RETURN_IF_ERROR(NbdDisconnect(index_));
  } else {
    LOG_WARN(node(), " was detached by another program before");
  }
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
  auto device = std::make_unique<NbdDevice>(loops, volume, options.mark);
  RETURN_IF_ERROR(device->Connect(options));
  return device;
}

absl::StatusOr<std::unique_ptr<KernelDevice>> AdoptNbdDevice(DeviceLoops& loops,
                                                             const OpenVolume& volume,
                                                             const KernelDeviceOptions& options) {
  auto device = std::make_unique<NbdDevice>(loops, volume, options.mark);
  RETURN_IF_ERROR(device->Adopt(options));
  return device;
}

absl::StatusOr<bool> NbdDeviceIsLeft(int index, const DeviceMark& mark) {
  return IsMarked(index, mark);
}

void RemoveUnknownNbdDevices(std::uint64_t owner, std::span<const int> known) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", none)) {
    const std::string name = entry.path().filename();
    int index = -1;
    if (!absl::StartsWith(name, "nbd") || !absl::SimpleAtoi(name.substr(3), &index)) continue;
    if (std::find(known.begin(), known.end(), index) != known.end()) continue;
    const auto is_ours = IsMarked(index, {owner, 0});
    if (!is_ours.ok() || !*is_ours) continue;
    const absl::Status removed = RemoveLeftNbdDevice(index, {owner, 0});
    LOG_WARN(name, " was being made when the daemon ended: detached",
             removed.ok() ? "" : absl::StrCat(", but ", removed.message()));
  }
}

absl::Status RemoveLeftNbdDevice(int index, const DeviceMark& mark) {
  ASSIGN_OR_RETURN(const bool is_ours, IsMarked(index, mark));
  return is_ours ? NbdDisconnect(index) : absl::OkStatus();
}

}  // namespace ibnbd::client
