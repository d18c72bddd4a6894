// SPDX-License-Identifier: Apache-2.0
// A simulated world with the real rnbd::Server on two reactors and an honest client of it, and the
// judges of a hostile one: the honest client reads back what it wrote, the server keeps within its
// limits, and once the hostile client has gone nothing of it is left.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fabric/sim/sim_world.h"
#include "rnbd/server.h"
#include "rtrs/port.h"
#include "tests/fuzz/honest_client.h"
#include "tests/fuzz/hostile_client.h"
#include "tests/support/fake_backend.h"

namespace ibnbd::fuzz {

class ServerWorld final : public rnbd::ExportProvider {
 public:
  static constexpr std::uint32_t kQueueDepth = 16;
  static constexpr std::uint32_t kIoSizeMax = 8 << 10;
  static constexpr std::uint32_t kChunkSize = kIoSizeMax + 4096;
  static constexpr std::uint64_t kChunkMemoryMax = std::uint64_t{3} * kQueueDepth * kChunkSize;

  explicit ServerWorld(std::uint64_t seed);
  ~ServerWorld() override;  // Everybody else has gone.  Judges, then stops the server.

  [[nodiscard]] sim::World& world() { return world_; }
  [[nodiscard]] sim::Host& AddHost(const std::string& name) { return world_.AddHost(name); }
  [[nodiscard]] const SocketAddress& address() const { return address_; }
  [[nodiscard]] HostileTarget target() const { return {address_, kQueueDepth, kChunkSize}; }
  // What must hold at every moment.
  void JudgeNow();
  // The honest client writes and reads.
  void JudgeNeighbour();

  // rnbd::ExportProvider.  The honest client owns "vol0"; others may read the same volume, and
  // write "vol1".
  absl::StatusOr<std::shared_ptr<rnbd::Export>> Find(const std::string& session_name,
                                                     const std::string& export_name) override;
  std::vector<std::shared_ptr<rnbd::Export>> List(const std::string& session_name) override;

 private:
  sim::World world_;
  sim::Host& server_host_;
  sim::Host& honest_host_;
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  std::shared_ptr<rnbd::Export> own_, read_only_, other_;
  std::unique_ptr<rnbd::Server> server_;
  SocketAddress address_;
  std::unique_ptr<HonestClient> honest_;
  std::uint8_t rounds_ = 0;
};

}  // namespace ibnbd::fuzz
