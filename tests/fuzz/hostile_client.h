// SPDX-License-Identifier: Apache-2.0
// The moves of a hostile RTRS client.  Most are well formed but for what the input changes: pure
// noise would never pass the first check.  Each takes its operands from the input.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "proto/rnbd.h"
#include "proto/rtrs.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/raw_peer.h"

namespace ibnbd::fuzz {

// Whom it torments.
struct HostileTarget {
  SocketAddress server;
  std::uint32_t queue_depth = 0;
  std::uint32_t chunk_size = 0;
  // Of the sessions that it claims to be.
  std::array<std::string_view, 4> names{"evil", "evil2", "honest", ""};
};

class HostileClient {
 public:
  HostileClient(sim::World& world, sim::Host& host, const HostileTarget& target);

  [[nodiscard]] RawPeer& peer() { return peer_; }

  static constexpr unsigned kMoves = 10;
  // One of those below; `which` < kMoves.
  void Move(unsigned which, FuzzInput& input);
  void Connect(FuzzInput& input, std::size_t slot);
  // INFO_REQ.
  void Introduce(FuzzInput& input, std::size_t slot);
  // SESS_INFO, OPEN, CLOSE, LIST or a heartbeat.
  void ControlMessage(FuzzInput& input, std::size_t slot);
  // A block IO of any kind.
  void Io(FuzzInput& input, std::size_t slot);
  // Anything, anywhere.
  void RawWrite(FuzzInput& input, std::size_t slot, fabric::Opcode opcode);
  void RawSend(FuzzInput& input, std::size_t slot, fabric::Opcode opcode);

 private:
  // Sends a user message as RTRS does, then mutated: data, user message, header into a chunk.
  void SendRequest(FuzzInput& input, std::size_t slot, std::span<const std::byte> user,
                   std::uint32_t data_len, bool is_read);
  // The chunk's address, as INFO_RSP said; before that a guess.
  [[nodiscard]] fabric::RemoteAddress Chunk(std::uint32_t chunk) const;
  void OnMessage(std::span<const std::byte> message);

  const HostileTarget target_;
  RawPeer peer_;
  std::vector<proto::ChunkAddress> chunks_;
};

}  // namespace ibnbd::fuzz
