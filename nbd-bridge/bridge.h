// SPDX-License-Identifier: Apache-2.0
// The program without its command line: volumes, loops with a thread each, and the sockets that
// bring clients, which are dealt to the loops in turn.  Everything here is called by the main
// thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "nbd-bridge/listener.h"
#include "nbd-bridge/nbd_connection.h"
#include "nbd-bridge/volume_table.h"

namespace ibnbd::bridge {

struct BridgeOptions {
  VolumeTableOptions volumes;
  std::vector<std::string>
      listen;  // For ListenSocket::Open(); may be empty with socket activation.
  std::uint32_t thread_count = 1;
  int connections_max = 256;
  std::uint32_t connection_memory = 32u << 20;  // A multiple of 1 MiB.
  std::uint32_t handshake_timeout_ms = 30'000;
  std::uint32_t stop_timeout_ms = 10'000;
};

class Bridge {
 public:
  // Connects to the servers, opens the volumes, listens, starts serving.
  static absl::StatusOr<std::unique_ptr<Bridge>> Start(const BridgeOptions& options);
  ~Bridge();

  // Takes no more clients, finishes what executes (at most `stop_timeout_ms`), sends the answers,
  // closes.  Returns false if something had to be given up.
  bool Stop();

  [[nodiscard]] const std::vector<ListenSocket>& sockets() const { return sockets_; }
  [[nodiscard]] const VolumeTable& volumes() const { return *volumes_; }

 private:
  class Acceptor;
  struct Loop {
    std::unique_ptr<EventLoop> events;
    std::unique_ptr<ConnectionMemoryCache> memory;
    std::unique_ptr<LoopContext> context;
    std::thread thread;
  };
  explicit Bridge(const BridgeOptions& options);
  absl::Status Listen();
  void StartLoops();
  void TakeClient(UniqueFd socket);  // On the first loop's thread.

  const BridgeOptions options_;
  MonotonicClock clock_;
  std::vector<ListenSocket> sockets_;
  std::unique_ptr<VolumeTable> volumes_;
  std::atomic<int> connection_count_{0};
  std::vector<Loop> loops_;
  std::vector<std::unique_ptr<Acceptor>> acceptors_;
  std::size_t next_loop_ = 0;  // First loop's thread.
  bool stopped_ = false;
};

}  // namespace ibnbd::bridge
