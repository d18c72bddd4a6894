// SPDX-License-Identifier: Apache-2.0
// A client in the simulated world: the real rnbd::Client on a host of its own, one volume, and a
// workload whose every answer is judged by the volume's oracle.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/arena.h"
#include "fabric/sim/sim_world.h"
#include "rnbd/client.h"
#include "rtrs/port.h"
#include "tests/sim/oracle.h"

namespace ibnbd::sim {

struct WorkloadOptions {
  std::uint32_t volume = 0;
  std::uint64_t sector_count = 96;
  std::uint32_t io_depth = 8;
  std::uint32_t io_sectors_max =
      32;  // Larger than one chunk carries: splitting is part of the game.
  std::uint32_t lanes = 2;
  std::int64_t fail_after_ns = -1;  // Loss policy.
  std::int64_t think_ns_max = 200 * kNsPerUs;
  std::int64_t heartbeat_ns = kNsPerSecond;
  std::vector<SocketAddress> more_servers;  // Where its other paths lead.
  rtrs::PathPolicyKind policy = rtrs::PathPolicyKind::kAdaptive;
  bool backend_may_fail = false;  // EIO is then an answer, not a finding.
};

struct WorkloadCounts {
  std::uint64_t submitted = 0, completed = 0, reads = 0, writes = 0, flushes = 0, zeroes = 0,
                discards = 0;
  std::uint64_t errors = 0, timeouts = 0, opens_refused = 0;
};

class ClientActor {
 public:
  ClientActor(World& world, std::string name, SocketAddress server, const WorkloadOptions& options,
              VolumeOracle& oracle);
  ~ClientActor();  // Requires: closed().

  void Start();
  // No more IOs are submitted; idle() once all have completed.
  void StopSubmitting() { submitting_ = false; }
  [[nodiscard]] bool idle() const { return outstanding_ == 0; }
  [[nodiscard]] bool opened() const { return device_ != nullptr; }
  [[nodiscard]] bool device_open() const {
    return device_ != nullptr && device_->state() == rnbd::DeviceState::kOpen;
  }
  void StartClose();
  [[nodiscard]] bool closed() const { return closed_; }
  [[nodiscard]] const WorkloadCounts& counts() const { return counts_; }
  [[nodiscard]] std::string Describe() const;
  [[nodiscard]] Host& host() { return host_; }

 private:
  // One of io_depth workers: thinks, submits, judges the answer, thinks again.
  class Worker final : public rnbd::Io {
   public:
    void OnIoDone(int error) override { actor->OnDone(*this, error); }
    ClientActor* actor = nullptr;
    std::uint32_t index = 0;
    std::uint32_t lane = 0;
    bool outstanding = false;
    WriteId write_id = 0;
    std::int64_t started_ns = 0;
    std::span<std::byte> buffer;  // Between guard bytes.
  };

  void OpenDevice();
  void Think(Worker& worker, std::int64_t think_ns_max);
  void Submit(Worker& worker);
  void DrawIo(Worker& worker);
  void OnDone(Worker& worker, int error);
  void Judge(Worker& worker, int error);
  void EndWrite(Worker& worker, int error);
  bool TakeLossReport(const Worker& worker);
  void CheckGuards(const Worker& worker);

  World& world_;
  const WorkloadOptions options_;
  VolumeOracle& oracle_;
  Prng prng_;
  Host& host_;
  const SocketAddress server_;
  std::vector<Reactor*> reactors_;  // 0: control.
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  std::unique_ptr<rnbd::Client> client_;
  rnbd::Device* device_ = nullptr;
  Arena arena_;
  std::unique_ptr<fabric::Region> region_;
  std::vector<std::unique_ptr<Worker>> workers_;
  // Writes whose fate the workload was not told.  They may still take effect until the device is
  // open again, which the first later success proves.
  struct InDoubt {
    WriteId id;
    std::uint64_t sector, count;
    std::int64_t since_ns;
  };
  std::vector<InDoubt> in_doubt_;
  // What each lane was told of power losses: once each, to all that were under way at that time.
  struct LossReports {
    std::uint32_t count = 0;
    std::int64_t last_ns = -1;
  };
  std::vector<LossReports> loss_reports_;
  WriteId next_write_id_ = 1;
  std::uint32_t outstanding_ = 0;
  bool submitting_ = true;
  bool closed_ = false;
  WorkloadCounts counts_;
};

}  // namespace ibnbd::sim
