// SPDX-License-Identifier: Apache-2.0
// The receiving half of the tcp fabric's framing: the same stream is fed whole and in arbitrary
// pieces, and must mean the same.  Payloads go to memory of exactly their size, in one target or
// two.  Input: {seed of the pieces: 1 byte; stream}.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "base/check.h"
#include "base/prng.h"
#include "fabric/tcp/tcp_codec.h"
#include "tests/fuzz/fuzz_input.h"

namespace ibnbd::tcp {
namespace {

constexpr std::uint32_t kPayloadMax = 1u << 20;  // What a caller would refuse is not placed.

// What the stream meant: headers and whole payloads, then how it ended.
std::string Decode(std::span<const std::byte> stream, std::uint64_t seed) {
  Prng prng(seed);
  FrameDecoder decoder;
  std::string meaning;
  std::unique_ptr<std::byte[]> payload;
  std::array<fabric::Sge, 2> targets;
  for (;;) {
    const FrameDecoder::Step step = decoder.Next();
    const std::uint32_t length = decoder.header().length.get();
    if (step == FrameDecoder::Step::kMalformed) return meaning + decoder.reason();
    if (step == FrameDecoder::Step::kHeader) {
      if (length > kPayloadMax) return meaning + "refused";
      meaning.append(reinterpret_cast<const char*>(&decoder.header()), sizeof decoder.header());
      payload = std::make_unique<std::byte[]>(length);
      const auto first = static_cast<std::uint32_t>(prng.Below(length + 1));
      targets = {{{payload.get(), first, 0}, {payload.get() + first, length - first, 0}}};
      decoder.Place(targets);
    } else if (step == FrameDecoder::Step::kFrame) {
      meaning.append(reinterpret_cast<const char*>(payload.get()), length);
    } else {
      if (stream.empty()) return meaning;
      std::array<iovec, FrameDecoder::kWindowPiecesMax> window;
      const std::size_t pieces = decoder.Window(window);
      CHECK(pieces > 0 && window[0].iov_len > 0);
      std::size_t left = seed == 0 ? stream.size() : 1 + prng.Below(prng.Chance(200'000) ? 9 : 999);
      std::size_t fed = 0;
      for (std::size_t i = 0; i < pieces; ++i) {
        const std::size_t count = std::min({window[i].iov_len, stream.size(), left});
        if (count > 0) std::memcpy(window[i].iov_base, stream.data(), count);
        stream = stream.subspan(count);
        fed += count;
        left -= count;
      }
      decoder.Advance(fed);
    }
  }
}

}  // namespace
}  // namespace ibnbd::tcp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ibnbd::fuzz::FuzzInput input(data, size);
  const std::uint8_t seed = input.U8();
  CHECK(ibnbd::tcp::Decode(input.rest(), 0) == ibnbd::tcp::Decode(input.rest(), seed + 1u));
  ibnbd::proto::tcp::Greeting greeting;
  if (ibnbd::proto::CopyOut(input.rest(), &greeting) &&
      ibnbd::proto::tcp::WhyInvalid(greeting) == nullptr) {
    CHECK_LE(greeting.private_data_size.get(), ibnbd::proto::tcp::kPrivateDataSizeMax);
  }
  return 0;
}
