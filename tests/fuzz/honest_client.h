// SPDX-License-Identifier: Apache-2.0
// The real rnbd::Client on a host of the simulated world, with one device and one IO at a time, for
// the fuzz targets: either the honest neighbour of a hostile client, or the victim of a hostile
// server.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/arena.h"
#include "fabric/sim/sim_world.h"
#include "rnbd/client.h"
#include "rtrs/port.h"

namespace ibnbd::fuzz {

class HonestClient {
 public:
  HonestClient(sim::World& world, sim::Host& host, const SocketAddress& server,
               const rtrs::ClientSessionOptions& session);
  ~HonestClient();  // Closes; CHECKs that it does so within its deadline.

  // Connects and opens "vol0", within `virtual_ns_max`.  False if it could not.
  bool Open(std::int64_t virtual_ns_max, std::int64_t fail_after_ns);
  // Runs the world until the IO is done; its error, or 1 if it was not done in time.
  int Do(rnbd::IoOp op, std::uint64_t offset, std::uint32_t length, std::int64_t virtual_ns_max);
  // Writes a pattern of `seed` and CHECKs that it can be read back.
  void WriteAndReadBack(std::uint8_t seed);
  void ListExports();

  static constexpr std::uint32_t kBufferSize = 16 << 10;
  // What reads fill, and what writes take.  The server may write to the first only: a change of the
  // other while it is being sent is the client's fault (F9).
  [[nodiscard]] std::span<std::byte> read_buffer() {
    return arena_.bytes().subspan(kGuardSize, kBufferSize);
  }
  [[nodiscard]] std::span<std::byte> write_buffer() {
    return arena_.bytes().subspan(2 * kGuardSize + kBufferSize, kBufferSize);
  }
  [[nodiscard]] rnbd::Device* device() { return device_; }

 private:
  static constexpr std::size_t kGuardSize = 4096;
  class OneIo final : public rnbd::Io {
   public:
    void OnIoDone(int io_error) override;
    bool outstanding = false;
    int error = 0;
  };
  void CheckGuards() const;

  sim::World& world_;
  std::vector<Reactor*> reactors_;  // Control, lane.
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  Arena arena_;  // Guard, buffer, guard, buffer.
  std::unique_ptr<fabric::Region> read_region_, write_region_;
  std::unique_ptr<rnbd::Client> client_;
  rnbd::Device* device_ = nullptr;
  OneIo io_;
};

}  // namespace ibnbd::fuzz
