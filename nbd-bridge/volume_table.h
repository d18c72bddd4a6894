// SPDX-License-Identifier: Apache-2.0
// The volumes that the bridge offers, and the sessions they share: one session per server, with one
// queue per loop.  Built at start by the main thread, which also takes it down; read by all loops.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "ibnbd/ibnbd.h"
#include "nbd-bridge/nbd_handshake.h"

namespace ibnbd::bridge {

struct VolumeSpec {
  std::string export_name;  // As NBD clients call it.
  Uri uri;                  // The server and the volume's name there.
};

struct VolumeTableOptions {
  std::vector<VolumeSpec> volumes;
  bool read_only = false;
  bool wait_for_servers = false;
  std::string session_name;  // Empty: the library makes one up.
  std::string memory;        // As ibnbd_session_options has it; empty: the default.
  std::string paths;         // Likewise: more ways to the one server.
  std::uint32_t path_policy = IBNBD_POLICY_ADAPTIVE;
  std::uint32_t dead_after_ms = 0;  // As ibnbd_session_options has it.
  std::int64_t fail_after_ms = -1;  // Loss policy; -1: hold for ever.
  std::uint32_t queue_count = 1;    // One per loop.
  std::uint32_t payload_size_max = 32u << 20;
};

struct Volume {
  std::string export_name;
  std::string description;
  std::string server_name;  // What the server calls it.
  ibnbd_session* session = nullptr;
  std::size_t session_index = 0;
  ibnbd_device* device = nullptr;
  bool read_only = false;
  // As it was opened: another id or other abilities are another volume, which is held, not served.
  ibnbd_device_info opened{};

  [[nodiscard]] std::uint64_t id() const { return opened.volume_id; }  // 0: the server has none.
};

class VolumeTable final : public NbdExports {
 public:
  // "open vol0 on tcp://host:1234: No such file or directory".
  static absl::StatusOr<std::unique_ptr<VolumeTable>> Open(const VolumeTableOptions& options);
  ~VolumeTable() override;  // Close(), if that was not called.

  // What clients were told is done, is so for good: who comes after us cannot know what was not.
  // On every queue that is `usable`, since what a lost server has lost is told once by each. Before
  // Close(); no loop polls those any more.  Returns within about `timeout_ms`; false for each
  // volume that is not known to be flushed, and the log says why.
  std::vector<bool> Flush(std::uint32_t timeout_ms, const std::vector<bool>& usable);
  // Fences off what is outstanding; returns within about `timeout_ms`.
  void Close(std::uint32_t timeout_ms);

  // Of the sessions' threads, as Bridge::AllAlive().
  [[nodiscard]] bool AllAlive() const;
  // Likewise, but waits a moment for the answers.
  [[nodiscard]] bool Answer() const;

  [[nodiscard]] const Volume& volume(std::size_t index) const { return volumes_[index]; }
  [[nodiscard]] const std::vector<ibnbd_session*>& sessions() const { return sessions_; }
  // The queues of loop `index`, in the order of sessions().
  [[nodiscard]] std::vector<ibnbd_queue*> QueuesOf(std::uint32_t index) const;

  // What the server says of the export, asked now; nothing if it cannot tell.
  [[nodiscard]] std::optional<bool> IsReadOnlyAtServer(std::size_t index) const;

  // NbdExports.  The default export is the only one, or one that was given an empty name.
  [[nodiscard]] std::size_t count() const override { return volumes_.size(); }
  [[nodiscard]] NbdExport Describe(std::size_t index) const override;
  [[nodiscard]] std::optional<std::size_t> Find(std::string_view name) const override;

 private:
  struct FlushIo {
    ibnbd_io io;
    std::size_t volume;
    ibnbd_queue* queue;
    bool submitted;
    bool done;
    int result;
  };
  explicit VolumeTable(const VolumeTableOptions& options);
  absl::Status OpenVolume(const VolumeSpec& spec);
  absl::StatusOr<std::size_t> SessionFor(const Uri& uri);
  bool AdvanceFlushes(std::int64_t deadline_ns);

  const VolumeTableOptions options_;
  std::vector<std::string> servers_;  // Of sessions_, as URIs.
  std::vector<ibnbd_session*> sessions_;
  std::vector<Volume> volumes_;
  std::vector<FlushIo> flushes_;  // Of Flush(); those that were given up end in Close().
};

// What NBD clients are told of a device; exposed for tests.
NbdExport ExportOf(const ibnbd_device_info& info, std::uint32_t payload_size_max);

}  // namespace ibnbd::bridge
