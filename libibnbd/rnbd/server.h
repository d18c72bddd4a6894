// SPDX-License-Identifier: Apache-2.0
// The RNBD server: sessions over RTRS on one side, exports on the other.  Owned and driven by a
// program (ibnbd-server), the simulator or a test; it never makes threads.  Its control plane lives
// on reactor 0; connection i of a session on one of the reactors.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/memory_provider.h"
#include "base/socket_address.h"
#include "rnbd/block_backend.h"
#include "rnbd/server_writers.h"
#include "rtrs/port.h"

namespace ibnbd::rnbd {

// One volume on offer.  Shared by the table that names it and the sessions that have it open; all
// members are the control thread's.
struct Export {
  std::string name;
  std::unique_ptr<Backend> backend;
  bool read_only = false;  // By configuration or because the volume is.
  std::uint32_t reader_count = 0;
  std::uint32_t writer_count = 0;     // At most 1, or 2 while one of them is migrating.
  std::uint32_t migrating_count = 0;  // Of the writers.
  std::shared_ptr<WriterRecord> writers = std::make_shared<WriterRecord>();
};

// Where names become exports: the program's table, or the search path.  Control thread.
class ExportProvider {
 public:
  virtual ~ExportProvider() = default;
  // kNotFound names the export in its text.  Opening a backend may block briefly (control plane).
  virtual absl::StatusOr<std::shared_ptr<Export>> Find(const std::string& session_name,
                                                       const std::string& export_name) = 0;
  // What LIST shows to this session, in a stable order.
  virtual std::vector<std::shared_ptr<Export>> List(const std::string& session_name) = 0;
};

struct ServerOptions {
  std::uint32_t queue_depth = 128;  // Chunks per session; constant over restarts (wire.md 1.4).
  std::uint32_t io_size_max =
      128 << 10;  // Data bytes per chunk; a multiple of 4096.  A page of header follows.
  // A fresh key for a chunk with each answer, and none while a write executes (NEW_RKEY); else keys
  // hold as long as their path.  Only on fabrics with memory windows.
  bool keys_per_io = false;
  std::uint32_t sessions_max = 1024;
  std::uint32_t connections_per_session_max = 256;
  std::uint32_t devices_per_session_max = 1024;
  std::uint64_t chunk_memory_max = std::uint64_t{4}
                                   << 30;           // Over all sessions; more are refused (ENOMEM).
  const MemoryProvider* memory = &OrdinaryPages();  // Of the chunks.
  std::uint32_t handshakes_max = 256;  // Clients between their first connect and INFO_REQ.
  std::uint32_t handshake_connections_max = 512;  // Theirs; at least connections_per_session_max.
  std::int64_t handshake_timeout_ns = 30 * kNsPerSecond;  // From the first connect to INFO_REQ.
  std::int64_t heartbeat_interval_ns = 5 * kNsPerSecond;
  std::uint32_t heartbeat_missed_max = 5;
  // Changes exactly when what was acknowledged and not flushed may have been lost: with the boot of
  // the machine, not with the process.  All zero: not known; then clients cannot tell.
  std::array<std::uint8_t, 16> instance_id{};
};

struct ServerStats {
  std::uint64_t sessions = 0, sessions_total = 0, connects_refused = 0, paths_broken = 0;
  std::uint64_t reads = 0, writes = 0, flushes = 0, discards = 0, zeroes = 0, errors = 0;
  std::uint64_t read_bytes = 0, write_bytes = 0;
  std::uint64_t chunk_memory = 0;  // Now.
};

class Server {
 public:
  // `ports`: one per reactor; ports[0] is the control plane's.  They outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Create(std::vector<rtrs::Port*> ports,
                                                        const ServerOptions& options,
                                                        ExportProvider& exports);
  ~Server();  // Requires: stopped.

  // --- On the control thread. ---
  // Returns the address with the port that was bound.  May be called for several addresses.
  absl::StatusOr<SocketAddress> Listen(const SocketAddress& address);
  // Stops listening, lets executing IOs finish and answer, then closes every session and calls
  // `done`, at the latest `deadline_ns` from now (the rest is abandoned, its memory kept).
  void Stop(std::int64_t deadline_ns, std::function<void()> done);
  // Closes every open device of an export (it is removed from the configuration): their IOs get
  // ENOTCONN.
  void Revoke(const Export& exported);
  [[nodiscard]] ServerStats stats() const;  // Sums over reactors may lag by a turn.
  struct SessionInfo {
    std::string name, peer;
    std::uint32_t connections = 0, devices = 0, executing = 0;
  };
  [[nodiscard]] std::vector<SessionInfo> sessions() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ibnbd::rnbd
