// SPDX-License-Identifier: Apache-2.0
// The running server, put together: exports, reactors, one network per address scheme, and the RNBD
// servers on top.  Called by the main thread, which may block for some seconds, but for no file
// system that hangs: it has a watchdog to feed.  The work happens on the reactors.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "fabric/fabric.h"
#include "ibnbd-server/bounded_call.h"
#include "ibnbd-server/export_opener.h"
#include "ibnbd-server/export_table.h"
#include "ibnbd-server/instance_id.h"
#include "ibnbd-server/listen_sockets.h"
#include "ibnbd-server/options.h"
#include "ibnbd-server/reactor_threads.h"
#include "rnbd/server.h"
#include "rtrs/port.h"

namespace ibnbd {

class ServerProcess {
 public:
  // In this order: Create, maybe Check, OpenExports (may wait for locks; no thread runs yet),
  // Start.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Create(const Options& options);
  // What can be told of exports and addresses while another server has them: for a successor, which
  // leaves nobody serving if it fails later.
  [[nodiscard]] absl::Status Check() const;
  // Whose clients wait for it already serves what can be served, says what is missing, and tries
  // that again; others would rather know at once.
  enum class Missing : std::uint8_t { kFails, kIsTriedAgain };
  absl::Status OpenExports(Missing missing);
  // `listening` outlives the process object.
  absl::Status Start(ListenSockets& listening, Missing missing);
  ~ServerProcess();  // Requires: never started, or stopped within the deadline.

  [[nodiscard]] const std::vector<std::string>& addresses() const { return addresses_; }
  [[nodiscard]] std::uint16_t first_port() const { return first_port_; }
  [[nodiscard]] bool AllAlive() { return threads_->AllAlive(); }
  [[nodiscard]] std::string MemoryBill() const;

  // Exports and addresses that are not served yet.
  [[nodiscard]] std::size_t missing_count() const { return missing_.size(); }
  // Tries them again, for little more than a second: what it does not come to is first next time.
  void RetryMissing();

  // Reads the configuration file again.  An error changes nothing.
  absl::Status Reload();
  void LogStats();
  // Begins to stop; `done` is called on some reactor's thread, at the latest when `deadline_ns` is
  // over.
  void StartStop(std::int64_t deadline_ns, std::function<void()> done);

 private:
  struct Network {  // One address scheme.
    std::string scheme;
    std::unique_ptr<fabric::Fabric> fabric;
    std::vector<std::unique_ptr<rtrs::Port>> ports;
    std::unique_ptr<rnbd::Server> server;
  };

  // An export, or an address to listen on.
  struct MissingPart {
    std::optional<ExportSpec> spec;
    std::string address;
    std::string why;  // Said once.
  };

  ServerProcess(const Options& options, Settings settings);
  // How long openings may take: each waits for locks and answers until then, and after `begin_ns`
  // none is begun any more.
  struct Deadline {
    std::int64_t locks_ns;
    std::int64_t answers_ns;
    std::int64_t begin_ns;
  };
  static Deadline DeadlineIn(std::int64_t lock_wait_ns, std::int64_t patience_ns);
  absl::StatusOr<std::unique_ptr<rnbd::Backend>> OpenBackend(const ExportSpec& spec,
                                                             const Deadline& deadline);
  absl::Status Open(const ExportSpec& spec, const Deadline& deadline);
  void Add(const ExportSpec& spec, std::unique_ptr<rnbd::Backend> backend);
  bool Retry(MissingPart& part, const Deadline& deadline);
  [[nodiscard]] bool IsUnderWay(const MissingPart& part) const;
  void MissIfLate(const ExportSpec& spec, const absl::Status& status);
  absl::Status Miss(Missing missing, MissingPart part, const absl::Status& why);
  absl::StatusOr<Network*> NetworkFor(const std::string& scheme);
  absl::Status CreateServer(Network& network);
  absl::Status Listen(const std::string& text, std::int64_t wait_ns, std::int64_t patience_ns);
  void DropPorts(Network& network);
  [[nodiscard]] rnbd::ServerOptions ServerOptionsFromSettings() const;
  void ApplyRemovals(const ExportTable::Plan& plan);
  void OpenAndAdd(const ExportSpec& spec, const ExportSpec* instead, const Deadline& deadline);

  const Options options_;
  ListenSockets* listening_ = nullptr;
  Settings settings_;  // Merged; exports as they were last asked for.
  const InstanceId instance_id_;
  BoundedCall config_;
  // By the address whose host is looked up: what comes late for one is not lost to it.
  std::map<std::string, LateCall<SocketAddress>> names_;
  ExportOpener opener_;
  std::unique_ptr<ExportTable> exports_;  // Of reactor 0 once it runs.
  std::unique_ptr<ReactorThreads> threads_;
  std::vector<std::unique_ptr<Network>> networks_;
  std::vector<MissingPart> missing_;
  std::vector<std::string> addresses_;
  std::uint16_t first_port_ = 0;
};

}  // namespace ibnbd
