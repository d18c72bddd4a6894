// SPDX-License-Identifier: Apache-2.0
// Answers what comes in on the control socket: a thread accepts, a worker per client reads one
// request, runs it on the device table, and answers.  The number of workers is bounded, and so is
// the time of each: that of the request, and a few seconds for talking.
#pragma once

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

  // Takes over `listening`; `table` outlives the server.
  static std::unique_ptr<ControlServer> Start(UniqueFd listening, DeviceTable& table);
  ~ControlServer();  // Requires: Stop() returned.

  // Takes no more requests, and waits for those that run.  False: some are still running after
  // `timeout_ms`; the process can only end then.
  bool Stop(std::int64_t timeout_ms);

 private:
  ControlServer(UniqueFd listening, DeviceTable& table);
  void Accept();
  void Serve(UniqueFd client);
  std::string Answer(const std::string& line);
  absl::StatusOr<Json> Run(const ControlRequest& request);
  absl::StatusOr<Json> RunOnSession(const ControlRequest& request);
  absl::StatusOr<Json> Set(const ControlRequest& request);

  const UniqueFd listening_;
  const UniqueFd stop_;  // An eventfd.
  DeviceTable& table_;
  absl::Mutex mutex_;
  int workers_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread acceptor_;
};

}  // namespace ibnbd::client
