// SPDX-License-Identifier: Apache-2.0
// A hostile RTRS/RNBD server.  At every point where a server acts it asks the input what to change;
// an input that is used up changes nothing: the empty input is an honest server of a volume of
// zeros.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/arena.h"
#include "proto/rnbd.h"
#include "proto/rtrs.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/raw_peer.h"

namespace ibnbd::fuzz {

class HostileServer {
 public:
  HostileServer(FuzzInput& input, sim::World& world);

  [[nodiscard]] const SocketAddress& address() const { return address_; }

 private:
  void OnIncoming(std::unique_ptr<fabric::Incoming> incoming);
  void OnMessage(std::size_t slot, const fabric::Completion& completion,
                 std::span<const std::byte> message);
  void AnswerInfo(std::size_t slot);
  void AnswerRequest(std::size_t slot, std::uint32_t imm);
  // What an honest server would write for this request.
  [[nodiscard]] std::vector<std::byte> ReplyTo(const proto::IoRequest& request) const;
  // Something that no honest server does, now and then.
  void Mischief(std::size_t slot);
  void SendImm(std::size_t slot, std::uint32_t imm);

  FuzzInput& input_;
  RawPeer peer_;
  SocketAddress address_;
  fabric::RemoteAddress chunks_;  // Of queue depth times chunk size bytes.
  fabric::RemoteAddress seen_;    // The last place that a client said we may write to.
};

}  // namespace ibnbd::fuzz
