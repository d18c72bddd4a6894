// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/size_text.h"

#include <gtest/gtest.h>

namespace ibnbd {
namespace {

TEST(SizeText, ReadsPlainNumbersAndPowersOf1024) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("4K"), 4096u);
  EXPECT_EQ(*ParseSize("4k"), 4096u);
  EXPECT_EQ(*ParseSize("1M"), 1u << 20);
  EXPECT_EQ(*ParseSize("2G"), std::uint64_t{2} << 30);
  EXPECT_EQ(*ParseSize("5T"), std::uint64_t{5} << 40);
  EXPECT_EQ(*ParseSize("1P"), std::uint64_t{1} << 50);
}

TEST(SizeText, RefusesWhatIsNotASizeAndNamesIt) {
  for (const char* text : {"", "K", "-1", "+1", "1.5G", "4KB", "4KiB", " 4", "4 K", "0x10", "12Q",
                           "9223372036854775808", "8388608T", "99999999999999999999999"}) {
    const auto size = ParseSize(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_NE(size.status().message().find(text), absl::string_view::npos) << size.status();
  }
}

TEST(SizeText, AVolumeIsAWholeNumberOfBlocks) {
  EXPECT_EQ(*ParseVolumeSize("8K", 4096), 8192u);
  EXPECT_EQ(ParseVolumeSize("0", 512).status().message(), "is empty");
  EXPECT_EQ(ParseVolumeSize("4608", 4096).status().message(),
            "is not a whole number of 4096-byte blocks");
}

TEST(SizeText, WritesSizesForPeople) {
  EXPECT_EQ(SizeText(512), "512 B");
  EXPECT_EQ(SizeText(4096), "4 KiB");
  EXPECT_EQ(SizeText(17301504), "16.5 MiB");
  EXPECT_EQ(SizeText(std::uint64_t{4} << 40), "4 TiB");
}

}  // namespace
}  // namespace ibnbd
