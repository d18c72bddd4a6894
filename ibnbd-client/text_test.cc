// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ibnbd::client {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

TEST(SizeText, PicksTheUnitThatKeepsTheNumberShort) {
  EXPECT_EQ(SizeText(0), "0 B");
  EXPECT_EQ(SizeText(1023), "1023 B");
  EXPECT_EQ(SizeText(1024), "1.0 KiB");
  EXPECT_EQ(SizeText(17301504), "16.5 MiB");
  EXPECT_EQ(SizeText(std::uint64_t{5} << 40), "5.0 TiB");
}

TEST(SizeText, NeverSays1024OfAUnit) {
  EXPECT_EQ(SizeText((1u << 20) - 1), "1.0 MiB");
  EXPECT_EQ(SizeText(~std::uint64_t{0}), "16.0 EiB");
}

TEST(DurationText, PicksTheUnit) {
  EXPECT_EQ(DurationText(950), "950 ns");
  EXPECT_EQ(DurationText(81'300), "81.3 us");
  EXPECT_EQ(DurationText(12'500'000), "12.5 ms");
  EXPECT_EQ(DurationText(3'200'000'000), "3.2 s");
}

TEST(ClockText, ShowsHoursOnlyWhenThereAreSome) {
  EXPECT_EQ(ClockText(8 * kSecond), "0:08");
  EXPECT_EQ(ClockText(3723 * kSecond), "1:02:03");
}

TEST(VolumeIdText, KeepsAllOf64Bits) {
  EXPECT_EQ(VolumeIdText(0xfe00000000000001), "fe00000000000001");
  EXPECT_EQ(VolumeIdText(0x2a), "000000000000002a");
}

TEST(Printable, LetsNoEscapeSequenceThrough) {
  EXPECT_EQ(Printable("vol\x1b[2J\n\x7f"), "vol?[2J??");
  EXPECT_EQ(Printable("b\xc3\xbc"
                      "cher"),
            "b\xc3\xbc"
            "cher");
}

TEST(ProgressLine, ShowsPercentRateAndTimeLeft) {
  EXPECT_EQ(ProgressLine(1u << 30, std::uint64_t{4} << 30, 4 * kSecond),
            "25.0 %  1.0 GiB of 4.0 GiB  256.0 MiB/s  ETA 0:12");
}

TEST(ProgressLine, SaysNothingOfTheEndOfAPipe) {
  EXPECT_EQ(ProgressLine(1u << 30, std::nullopt, 2 * kSecond), "1.0 GiB  512.0 MiB/s");
}

TEST(ProgressLine, DoesNotGuessBeforeAnythingHappened) {
  EXPECT_EQ(ProgressLine(0, 1024, 0), "0.0 %  0 B of 1.0 KiB  0 B/s  ETA ?");
  EXPECT_THAT(ProgressLine(0, 0, kSecond), testing::StartsWith("100.0 %"));
}

}  // namespace
}  // namespace ibnbd::client
