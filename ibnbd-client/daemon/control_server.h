// SPDX-License-Identifier: Apache-2.0
// Answers what comes in on the control socket: a thread accepts, a worker per client reads one
// request, runs it on the device table, and answers.  The number of workers is bounded, and so is
// the time of each: a few times that of the request, and a few seconds for talking.  Commands that
// wait for a server before there is a device leave some workers to the others: more of them than
// that are parked, until it is their turn or who asked has left.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/unique_fd.h"
#include "ibnbd-client/daemon/protocol.h"
#include "ibnbd-client/mapping/device_table.h"

namespace ibnbd::client {

class ControlServer {
 public:
  static constexpr int kWorkersMax = 64;
  static constexpr int kMappingMax = 48;  // Among them.
  static constexpr std::size_t kParkedMax = 1024;

  // Takes over `listening`; `table` outlives the server.
  static std::unique_ptr<ControlServer> Start(UniqueFd listening, DeviceTable& table);
  ~ControlServer();  // Requires: Stop() returned.

  // Takes no more requests, drops what is parked, and waits for those that run.  False: some are
  // still running after `timeout_ms`; the process can only end then, or call it again.
  bool Stop(std::int64_t timeout_ms);

 private:
  struct Asker {
    UniqueFd client;
    ControlRequest request;
  };
  ControlServer(UniqueFd listening, DeviceTable& table);
  void Accept();
  void Serve(UniqueFd client);
  void ServeMapping(Asker asker);
  void Answer(const Asker& asker);
  absl::StatusOr<Json> Run(const Asker& asker);
  absl::StatusOr<Json> Map(const Asker& asker);
  absl::StatusOr<Json> RunOnSession(const ControlRequest& request);
  absl::StatusOr<Json> Set(const ControlRequest& request);

  const UniqueFd listening_;
  const UniqueFd stop_;  // An eventfd.
  DeviceTable& table_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int workers_ ABSL_GUARDED_BY(mutex_) = 0;
  int mapping_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the workers.
  std::deque<Asker> parked_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

}  // namespace ibnbd::client
