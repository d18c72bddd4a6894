// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/prng.h"

namespace ibnbd::tcp {
namespace {

using proto::le16;
using proto::le32;
using proto::tcp::FrameHeader;
using proto::tcp::FrameOpcode;

// A stream of frames, fed through windows in pieces; everything lands in one region.
class Feeder {
 public:
  explicit Feeder(std::size_t region_size) : region(region_size) {}

  void Append(FrameOpcode opcode, std::uint32_t length, int value) {
    FrameHeader header;
    header.opcode = opcode;
    header.magic = le16(proto::tcp::kFrameMagic);
    header.length = le32(length);
    header.sequence = le32(sequence_);
    if (proto::tcp::IsData(opcode)) ++sequence_;
    const auto* bytes = reinterpret_cast<const std::byte*>(&header);
    stream.insert(stream.end(), bytes, bytes + sizeof header);
    stream.insert(stream.end(), length, static_cast<std::byte>(value));
  }
  // Feeds at most `count` bytes; false when the decoder takes no more.
  bool Feed(std::size_t count) {
    if (!Drain()) return false;
    std::array<iovec, FrameDecoder::kWindowPiecesMax> window;
    const std::size_t pieces = decoder.Window(window);
    std::size_t fed = 0;
    for (std::size_t i = 0; i < pieces && count > 0 && fed_ < stream.size(); ++i) {
      const std::size_t part = std::min({count, window[i].iov_len, stream.size() - fed_});
      std::memcpy(window[i].iov_base, &stream[fed_], part);
      const auto* target = static_cast<const std::byte*>(window[i].iov_base);
      if (target >= region.data() && target < region.data() + region.size()) direct_bytes += part;
      fed_ += part;
      fed += part;
      count -= part;
    }
    decoder.Advance(fed);
    ++feeds;
    return Drain();
  }
  bool Drain() {
    for (;;) {
      switch (decoder.Next()) {
        case FrameDecoder::Step::kNeedBytes:
          return true;
        case FrameDecoder::Step::kHeader:
          Place();
          break;
        case FrameDecoder::Step::kFrame:
          frames.push_back(decoder.header().opcode);
          break;
        case FrameDecoder::Step::kMalformed:
          return false;
      }
    }
  }
  void Place() {
    const std::uint32_t length = decoder.header().length.get();
    if (pieces_per_message == 0) {
      decoder.PlaceAt(region.data() + next_);
    } else {
      targets.clear();
      for (std::uint32_t i = 0, left = length; left > 0 || i == 0; ++i) {
        const std::uint32_t part =
            i + 1 == pieces_per_message ? left : std::min(left, length / pieces_per_message);
        targets.push_back({region.data() + next_ + (length - left), part, 0});
        left -= part;
      }
      decoder.Place(targets);
    }
    next_ += length;
  }
  bool fed_all() const { return fed_ == stream.size(); }

  FrameDecoder decoder;
  std::vector<std::byte> stream, region;
  std::vector<FrameOpcode> frames;
  std::vector<fabric::Sge> targets;
  std::uint32_t pieces_per_message = 0;
  std::size_t direct_bytes = 0;
  std::size_t feeds = 0;

 private:
  std::uint32_t sequence_ = 0;
  std::size_t fed_ = 0;
  std::size_t next_ = 0;
};

TEST(FrameDecoder, PlacesTheSameInWhateverPiecesTheBytesArrive) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Prng prng(seed);
    Feeder feeder(4 << 20);
    feeder.pieces_per_message = static_cast<std::uint32_t>(prng.Below(12));
    std::vector<std::byte> expected;
    const int count = 30;
    for (int i = 0; i < count; ++i) {
      const bool control = prng.Below(5) == 0;
      static constexpr std::uint64_t kSizes[] = {0, 1, 40, 4096, 20'000, 130'000};
      const auto length =
          static_cast<std::uint32_t>(control ? 0 : prng.Below(kSizes[prng.Below(6)] + 1));
      feeder.Append(control ? FrameOpcode::kAck : FrameOpcode::kSend, length, i + 1);
      expected.insert(expected.end(), length, static_cast<std::byte>(i + 1));
    }
    const std::uint64_t piece_max = 1 + prng.Below(200'000);
    while (!feeder.fed_all()) ASSERT_TRUE(feeder.Feed(1 + prng.Below(piece_max))) << seed;
    EXPECT_EQ(feeder.frames.size(), static_cast<std::size_t>(count)) << seed;
    ASSERT_TRUE(std::equal(expected.begin(), expected.end(), feeder.region.begin())) << seed;
  }
}

TEST(FrameDecoder, OneByteAtATimeWorks) {
  Feeder feeder(4096);
  feeder.Append(FrameOpcode::kSend, 100, 1);
  feeder.Append(FrameOpcode::kAck, 0, 0);
  feeder.Append(FrameOpcode::kWrite, 7, 2);
  while (!feeder.fed_all()) ASSERT_TRUE(feeder.Feed(1));
  EXPECT_EQ(feeder.frames.size(), 3u);
  EXPECT_EQ(feeder.region[99], std::byte{1});
  EXPECT_EQ(feeder.region[106], std::byte{2});
  EXPECT_EQ(feeder.region[107], std::byte{0});
}

TEST(FrameDecoder, AStreamOfLargePayloadsIsHardlyCopied) {
  constexpr std::uint32_t kLength = 128 * 1024;
  Feeder feeder(64 * kLength);
  for (int i = 0; i < 64; ++i) feeder.Append(FrameOpcode::kWrite, kLength, i);
  while (!feeder.fed_all()) ASSERT_TRUE(feeder.Feed(1 << 20));
  EXPECT_GT(feeder.direct_bytes, 63u * kLength);
  EXPECT_LE(feeder.feeds, 70u);
}

TEST(FrameDecoder, SmallFramesShareAReceive) {
  Feeder feeder(256 * 4096);
  for (int i = 0; i < 256; ++i) feeder.Append(FrameOpcode::kWrite, 4096, i);
  while (!feeder.fed_all()) ASSERT_TRUE(feeder.Feed(1 << 20));
  EXPECT_LE(feeder.feeds, 20u);
}

TEST(FrameDecoder, NothingIsPlacedBeforeTheCallerAgrees) {
  Feeder feeder(4096);
  feeder.Append(FrameOpcode::kWrite, 1000, 5);
  std::array<iovec, FrameDecoder::kWindowPiecesMax> window;
  ASSERT_EQ(feeder.decoder.Next(), FrameDecoder::Step::kNeedBytes);
  ASSERT_EQ(feeder.decoder.Window(window), 1u);
  std::memcpy(window[0].iov_base, feeder.stream.data(), feeder.stream.size());
  feeder.decoder.Advance(feeder.stream.size());
  EXPECT_EQ(feeder.decoder.Next(), FrameDecoder::Step::kHeader);
  EXPECT_EQ(feeder.decoder.Next(), FrameDecoder::Step::kHeader);
  EXPECT_EQ(feeder.region[0], std::byte{0});
  feeder.decoder.PlaceAt(feeder.region.data());
  EXPECT_EQ(feeder.decoder.Next(), FrameDecoder::Step::kFrame);
  EXPECT_EQ(feeder.region[999], std::byte{5});
  EXPECT_EQ(feeder.decoder.data_frame_count(), 1u);
}

TEST(FrameDecoder, AMalformedHeaderIsTheEnd) {
  Feeder feeder(4096);
  feeder.Append(FrameOpcode::kSend, 10, 1);
  feeder.stream[2] ^= std::byte{1};
  EXPECT_FALSE(feeder.Feed(1000));
  EXPECT_STREQ(feeder.decoder.reason(), "frame: bad magic, the stream lost its place");
  EXPECT_EQ(feeder.decoder.Next(), FrameDecoder::Step::kMalformed);
}

}  // namespace
}  // namespace ibnbd::tcp
