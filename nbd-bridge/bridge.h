// SPDX-License-Identifier: Apache-2.0
// The program without its command line: volumes, loops with a thread each, and the sockets that
// bring clients, which are dealt to the loops in turn.  Everything here is called by the main
// thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/handover.h"
#include "nbd-bridge/listener.h"
#include "nbd-bridge/nbd_connection.h"
#include "nbd-bridge/predecessor.h"
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

// What others have opened.
struct Inheritance {
  std::vector<UniqueFd> activated;  // Listened on whatever the options say.
  HandedOver before;                // Of the process before us.
  // Called when its clients are about to be served.  Until then this process may fail, or be told
  // to end, and whoever keeps them for that case can give them to another.
  absl::AnyInvocable<void()> on_serve;
  std::unique_ptr<VolumeTable> volumes;  // Null: nobody has opened them.
};

class Bridge {
 public:
  // Connects to the servers, opens the volumes, listens, goes on with inherited clients, starts
  // serving.
  static absl::StatusOr<std::unique_ptr<Bridge>> Start(const BridgeOptions& options,
                                                       Inheritance inheritance = {});
  ~Bridge();
  static VolumeTableOptions VolumeOptionsOf(const BridgeOptions& options);

  // Takes no more clients, finishes what executes (at most `stop_timeout_ms`), sends the answers,
  // closes.  Returns false if something had to be given up.
  bool Stop();
  // Likewise, but clients and sockets stay as they are, for the next process: when this returns,
  // nothing of ours executes any more, what clients were told is done is flushed, and the volumes
  // are closed.  `clients` gets those that could be taken from; others are closed, and so are those
  // of a volume whose flush failed.  A thread that hangs is not waited for: its clients go down
  // with the process, which must end soon, and this object must not be destroyed if the result is
  // false.
  bool StopFor(std::vector<HandedClient>* clients);

  // For a watchdog: asks every loop, and every session's thread, for a sign of life; true if all
  // have answered the question before.  Never waits.
  bool AllAlive();
  // For one that would succeed us.  Waits for the loops, at most a second or so; of one that does
  // not answer nothing is known.
  Predecessor Describe();

  [[nodiscard]] const std::vector<ListenSocket>& sockets() const { return sockets_; }
  [[nodiscard]] const VolumeTable& volumes() const { return *volumes_; }

 private:
  class Acceptor;
  struct Loop {
    std::unique_ptr<EventLoop> events;
    std::unique_ptr<ConnectionMemoryCache> memory;
    std::unique_ptr<LoopContext> context;
    std::unique_ptr<std::binary_semaphore> ended;  // Released by the thread, as its last act.
    std::thread thread;
    bool hangs = false;  // Whatever it has, it has for good.
  };
  explicit Bridge(const BridgeOptions& options);
  absl::Status Listen(Inheritance* inheritance);
  void StartLoops();
  void Resume(std::vector<HandedClient> clients);
  void StopAccepting();
  bool JoinLoops();
  [[nodiscard]] bool AnyHangs() const;
  bool FlushFor(std::vector<HandedClient>* clients);
  bool CloseAll(bool clean);
  void TakeClient(UniqueFd socket);   // On the first loop's thread.
  void HandOverNew(UniqueFd socket);  // Likewise.

  const BridgeOptions options_;
  MonotonicClock clock_;
  std::vector<ListenSocket> sockets_;
  std::unique_ptr<VolumeTable> volumes_;
  std::atomic<int> connection_count_{0};
  std::vector<Loop> loops_;
  std::vector<std::unique_ptr<Acceptor>> acceptors_;
  std::counting_semaphore<> acceptors_gone_{0};  // Released by each that has.
  std::atomic<std::uint32_t> unanswered_{0};     // Of AllAlive().
  std::size_t next_loop_ = 0;                    // First loop's thread.
  std::size_t next_of_resumed_ = 0;
  bool stopped_ = false;
};

}  // namespace ibnbd::bridge
