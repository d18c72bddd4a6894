// SPDX-License-Identifier: Apache-2.0
// nbd-bridge's side of the NBD negotiation: the same stream is fed whole and in arbitrary pieces,
// and must be answered the same; answers to one option are bounded.  Input: {seed of the pieces: 1
// byte; stream}.
#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/prng.h"
#include "nbd-bridge/nbd_handshake.h"
#include "tests/fuzz/fuzz_input.h"

namespace ibnbd::bridge {
namespace {

class TwoExports final : public NbdExports {
 public:
  [[nodiscard]] std::size_t count() const override { return 2; }
  [[nodiscard]] NbdExport Describe(std::size_t index) const override {
    return {.name = index == 0 ? "vol0" : "vol1",
            .description = "a volume",
            .size = 1u << 20,
            .flags = proto::kNbdHasFlags | proto::kNbdSendFlush,
            .block_size_max = 1u << 20};
  }
  [[nodiscard]] std::optional<std::size_t> Find(std::string_view name) const override {
    if (name.empty() || name == "vol0") return 0;
    return name == "vol1" ? std::optional<std::size_t>(1) : std::nullopt;
  }
};

// All that was sent, then how it ended.
std::string Negotiate(std::span<const std::byte> stream, std::uint64_t seed) {
  const TwoExports exports;
  Prng prng(seed);
  std::string sent;
  NbdHandshake handshake(exports, &sent);
  while (!stream.empty() && !handshake.finished()) {
    const std::size_t piece = seed == 0 ? stream.size() : 1 + prng.Below(40);
    std::string out;
    const std::size_t used = handshake.Feed(stream.first(std::min(piece, stream.size())), &out);
    CHECK(used > 0 && used <= stream.size());
    CHECK_LE(out.size(), 1000u);
    sent += out;
    stream = stream.subspan(used);
  }
  const char* reason = handshake.reason();
  if (handshake.state() == NbdHandshake::State::kTransmission) {
    CHECK_LT(handshake.export_index(), exports.count());
    CHECK_EQ(handshake.limits().size, exports.Describe(0).size);
  }
  return sent + (reason == nullptr ? "" : reason) + std::to_string(stream.size()) +
         std::to_string(static_cast<int>(handshake.state()));
}

}  // namespace
}  // namespace ibnbd::bridge

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ibnbd::fuzz::FuzzInput input(data, size);
  const std::uint8_t seed = input.U8();
  CHECK(ibnbd::bridge::Negotiate(input.rest(), 0) ==
        ibnbd::bridge::Negotiate(input.rest(), seed + 1u));
  return 0;
}
