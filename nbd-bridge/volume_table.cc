// SPDX-License-Identifier: Apache-2.0
// See volume_table.h.
#include "nbd-bridge/volume_table.h"

#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "proto/nbd.h"

namespace ibnbd::bridge {
namespace {

constexpr std::uint32_t kConnectTimeoutMs = 10'000;
constexpr std::uint32_t kIoDepthMax = 4096;  // Per queue; connections have 256 each at most.

// The library's text where there is one: it names what was attempted, and on what.
absl::Status LibraryError(int result, absl::string_view what) {
  const std::string text = ibnbd_error_message();
  absl::string_view rest = text;
  if (!absl::StartsWith(rest, "ibnbd_")) return ErrnoStatus(result, what);
  rest.remove_prefix(std::min(rest.find(": "), rest.size() - 2) + 2);
  return absl::Status(ErrnoStatus(result, what).code(), rest);
}

// What the server says of it.  A kernel server cannot tell.
std::optional<bool> IsReadOnlyExport(ibnbd_session* session, const char* name) {
  struct Search {
    const char* name;
    std::optional<bool> read_only;
  } search{name, std::nullopt};
  const auto visit = [](void* opaque, const ibnbd_export_info* info) {
    auto& wanted = *static_cast<Search*>(opaque);
    if (std::strcmp(info->name, wanted.name) != 0) return 0;
    wanted.read_only = (info->flags & IBNBD_EXPORT_READ_ONLY) != 0;
    return 1;
  };
  // A list that fails finds nothing.
  (void)ibnbd_session_list(session, kConnectTimeoutMs, visit, &search);
  return search.read_only;
}

}  // namespace

NbdExport ExportOf(const ibnbd_device_info& info, std::uint32_t payload_size_max) {
  NbdExport result;
  result.size = info.size;
  result.block_size_min = info.logical_block_size;
  result.block_size_preferred =
      std::max({std::uint32_t{4096}, info.physical_block_size, info.logical_block_size});
  result.block_size_max = payload_size_max;
  // Every connection reaches the same volume of one server, and its FLUSH covers every write that
  // was answered before, by whatever connection: what CAN_MULTI_CONN promises.
  std::uint32_t flags = proto::kNbdHasFlags | proto::kNbdCanMultiConn;
  if ((info.flags & IBNBD_DEVICE_READ_ONLY) != 0) flags |= proto::kNbdReadOnly;
  if ((info.flags & IBNBD_DEVICE_WRITE_CACHE) != 0) flags |= proto::kNbdSendFlush;
  if ((info.flags & IBNBD_DEVICE_FUA) != 0) flags |= proto::kNbdSendFua;
  if ((info.flags & IBNBD_DEVICE_READ_ONLY) == 0) {
    if (info.discard_max != 0) flags |= proto::kNbdSendTrim;
    // FAST_ZERO is understood wherever zeroes are; where they are not fast it is answered so.
    if (info.write_zeroes_max != 0) flags |= proto::kNbdSendWriteZeroes | proto::kNbdSendFastZero;
  }
  result.flags = static_cast<std::uint16_t>(flags);
  return result;
}

VolumeTable::VolumeTable(const VolumeTableOptions& options) : options_(options) {}

VolumeTable::~VolumeTable() { Close(0); }

absl::StatusOr<std::unique_ptr<VolumeTable>> VolumeTable::Open(const VolumeTableOptions& options) {
  std::unique_ptr<VolumeTable> table(new VolumeTable(options));
  for (const VolumeSpec& spec : options.volumes) {
    for (const Volume& other : table->volumes_) {
      if (other.export_name == spec.export_name) {
        return absl::InvalidArgumentError(
            absl::StrCat("two volumes are called \"", spec.export_name, "\"; use NAME=URI"));
      }
    }
    RETURN_IF_ERROR(table->OpenVolume(spec));
  }
  return table;
}

absl::StatusOr<std::size_t> VolumeTable::SessionFor(const Uri& uri) {
  Uri server = uri;
  server.export_name.clear();
  const std::string address = server.ToString();
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    if (servers_[i] == address) return i;
  }
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  if (!options_.session_name.empty()) options.name = options_.session_name.c_str();
  if (!options_.memory.empty()) options.memory = options_.memory.c_str();
  if (!options_.paths.empty()) options.paths = options_.paths.c_str();
  options.dead_after_ms = options_.dead_after_ms;
  options.queue_count = options_.queue_count;
  options.io_depth_max = kIoDepthMax;
  options.bounce_bytes = 0;
  options.connect_timeout_ms = kConnectTimeoutMs;
  if (options_.wait_for_servers) {
    options.flags |= IBNBD_SESSION_RETRY;
    options.connect_timeout_ms = std::numeric_limits<std::int32_t>::max();
  }
  ibnbd_session* session = nullptr;
  if (const int result = ibnbd_session_open(address.c_str(), &options, &session); result != 0) {
    return LibraryError(result, absl::StrCat("connect to ", address));
  }
  if (const int result = ibnbd_session_set_policy(session, options_.path_policy); result != 0) {
    LOG_WARN("path policy: ", ibnbd_error_message());  // The default holds.
  }
  servers_.push_back(address);
  sessions_.push_back(session);
  return sessions_.size() - 1;
}

absl::Status VolumeTable::OpenVolume(const VolumeSpec& spec) {
  Volume volume;
  ASSIGN_OR_RETURN(volume.session_index, SessionFor(spec.uri));
  volume.session = sessions_[volume.session_index];
  volume.export_name = spec.export_name;
  const std::string what =
      absl::StrCat("open ", spec.uri.export_name, " on ", servers_[volume.session_index]);
  ibnbd_device_options options = IBNBD_DEVICE_OPTIONS_INIT;
  options.access = options_.read_only ? IBNBD_READ_ONLY : IBNBD_READ_WRITE;
  options.open_timeout_ms = kConnectTimeoutMs;
  options.fail_after_ms = options_.fail_after_ms;
  const char* name = spec.uri.export_name.c_str();
  int result = ibnbd_device_open(volume.session, name, &options, &volume.device);
  absl::Status refusal = result == 0 ? absl::OkStatus() : LibraryError(result, what);
  // EPERM may also mean that somebody else writes.
  if ((result == -EPERM || result == -EROFS) &&
      IsReadOnlyExport(volume.session, name).value_or(false)) {
    LOG_INFO(what, ": the export is read-only");
    options.access = IBNBD_READ_ONLY;
    result = ibnbd_device_open(volume.session, name, &options, &volume.device);
    refusal = result == 0 ? absl::OkStatus() : LibraryError(result, what);
  }
  RETURN_IF_ERROR(refusal);
  volume.opened.struct_size = sizeof(volume.opened);
  result = ibnbd_device_get_info(volume.device, &volume.opened);
  if (result != 0) return LibraryError(result, what);
  volume.read_only = options.access == IBNBD_READ_ONLY;
  volume.description = spec.uri.ToString();
  volume.server_name = spec.uri.export_name;
  volumes_.push_back(std::move(volume));
  return absl::OkStatus();
}

bool VolumeTable::AllAlive() const {
  bool all = true;
  for (ibnbd_session* session : sessions_) all = ibnbd_session_is_alive(session) == 1 && all;
  return all;
}

bool VolumeTable::Answer() const {
  constexpr timespec kPause{0, 10'000'000};
  const MonotonicClock clock;
  const std::int64_t deadline_ns = clock.NowNs() + kNsPerSecond;
  (void)AllAlive();  // Of the time before.
  while (!AllAlive()) {
    if (clock.NowNs() >= deadline_ns) return false;
    (void)::nanosleep(&kPause, nullptr);
  }
  return true;
}

std::vector<bool> VolumeTable::Flush(std::uint32_t timeout_ms, const std::vector<bool>& usable) {
  for (std::size_t i = 0; i < volumes_.size(); ++i) {
    if (volumes_[i].read_only) continue;
    for (std::uint32_t q = 0; q < options_.queue_count; ++q) {
      if (!usable[q]) continue;
      FlushIo flush{};
      flush.volume = i;
      flush.queue = ibnbd_session_queue(volumes_[i].session, q);
      flushes_.push_back(flush);
    }
  }
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + timeout_ms * kNsPerMs;
  while (!AdvanceFlushes(deadline_ns)) {
  }
  std::vector<bool> flushed(volumes_.size(), true);
  for (const FlushIo& flush : flushes_) {
    const int result = flush.done ? flush.result : -ETIMEDOUT;
    if (result == 0 || !flushed[flush.volume]) continue;
    flushed[flush.volume] = false;
    LOG_WARN(
        ErrnoStatus(result, absl::StrCat("flush ", volumes_[flush.volume].export_name)).message());
  }
  return flushed;
}

// One round; true: all have ended, or it is too late.
bool VolumeTable::AdvanceFlushes(std::int64_t deadline_ns) {
  constexpr int kWaitMs = 5;  // For one of the queues, while others may have something, too.
  for (FlushIo& flush : flushes_) {
    if (flush.submitted || flush.done) continue;
    flush.io.op = IBNBD_OP_FLUSH;
    flush.io.opaque = &flush;
    flush.io.done = [](ibnbd_io* io, int result) {
      auto& ended = *static_cast<FlushIo*>(io->opaque);
      ended.done = true;
      ended.result = result;
    };
    const int result = ibnbd_submit(flush.queue, volumes_[flush.volume].device, &flush.io);
    flush.submitted = result == 0;
    if (result == 0 || result == -EAGAIN) continue;  // Full: others finish first.
    flush.done = true;
    flush.result = result;
  }
  bool all_done = true;
  for (FlushIo& flush : flushes_) {
    if (flush.done) continue;
    if (MonotonicClock().NowNs() >= deadline_ns) return true;
    (void)ibnbd_queue_wait(flush.queue, kWaitMs);
    all_done = all_done && flush.done;
  }
  return all_done;
}

void VolumeTable::Close(std::uint32_t timeout_ms) {
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + timeout_ms * kNsPerMs;
  // Closing a session closes its devices.
  for (ibnbd_session* session : sessions_) {
    const std::int64_t left_ns = std::max<std::int64_t>(deadline_ns - MonotonicClock().NowNs(), 0);
    const int result = ibnbd_session_close(session, static_cast<std::uint32_t>(left_ns / kNsPerMs));
    if (result != 0) LOG_WARN("close a session: ", ibnbd_error_message());
  }
  sessions_.clear();
  servers_.clear();
  volumes_.clear();
  flushes_.clear();
}

std::vector<ibnbd_queue*> VolumeTable::QueuesOf(std::uint32_t index) const {
  std::vector<ibnbd_queue*> queues;
  for (ibnbd_session* session : sessions_) queues.push_back(ibnbd_session_queue(session, index));
  return queues;
}

NbdExport VolumeTable::Describe(std::size_t index) const {
  const Volume& volume = volumes_[index];
  ibnbd_device_info info{};
  info.struct_size = sizeof(info);
  // It may have grown; if that cannot be said now, it is at least what it was.
  if (ibnbd_device_get_info(volume.device, &info) != 0) info = volume.opened;
  if (volume.read_only) info.flags |= IBNBD_DEVICE_READ_ONLY;
  NbdExport result = ExportOf(info, options_.payload_size_max);
  result.name = volume.export_name;
  result.description = volume.description;
  return result;
}

std::optional<bool> VolumeTable::IsReadOnlyAtServer(std::size_t index) const {
  return IsReadOnlyExport(volumes_[index].session, volumes_[index].server_name.c_str());
}

std::optional<std::size_t> VolumeTable::Find(std::string_view name) const {
  for (std::size_t i = 0; i < volumes_.size(); ++i) {
    if (volumes_[i].export_name == name) return i;
  }
  if (name.empty() && volumes_.size() == 1) return 0;
  return std::nullopt;
}

}  // namespace ibnbd::bridge
