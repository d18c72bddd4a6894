// SPDX-License-Identifier: Apache-2.0
// The moves of a hostile RTRS client.  Most are well formed but for what the input changes: pure
// noise would never pass the first check.  Each takes its operands from the input.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "proto/rnbd.h"
#include "proto/rtrs.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/raw_peer.h"
#include "tests/fuzz/server_world.h"

namespace ibnbd::fuzz {

class HostileClient {
 public:
  explicit HostileClient(ServerWorld& server);

  [[nodiscard]] RawPeer& peer() { return peer_; }

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

  ServerWorld& server_;
  sim::Host& host_;
  RawPeer peer_;
  std::vector<proto::ChunkAddress> chunks_;
};

}  // namespace ibnbd::fuzz
