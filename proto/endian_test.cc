// SPDX-License-Identifier: Apache-2.0
#include "proto/endian.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/golden.h"
#include "proto/names.h"

namespace ibnbd::proto {
namespace {

using ::testing::ElementsAre;

static_assert(!std::is_convertible_v<std::uint16_t, le16>);
static_assert(!std::is_convertible_v<le16, std::uint16_t>);
static_assert(std::is_trivially_copyable_v<be64> && alignof(be64) == 1 && sizeof(be64) == 8);
static_assert(le32(0x12345678).get() == 0x12345678 && be32(0x12345678).get() == 0x12345678);

template <typename T>
std::vector<int> BytesOf(const T& value) {
  std::vector<int> bytes;
  for (const std::byte byte : AsBytes(value)) bytes.push_back(std::to_integer<int>(byte));
  return bytes;
}

TEST(Endian, LittleEndianPutsTheLowByteFirst) {
  EXPECT_THAT(BytesOf(le16(0x0102)), ElementsAre(2, 1));
  EXPECT_THAT(BytesOf(le32(0x01020304)), ElementsAre(4, 3, 2, 1));
  EXPECT_THAT(BytesOf(le64(0x0102030405060708)), ElementsAre(8, 7, 6, 5, 4, 3, 2, 1));
}

TEST(Endian, BigEndianPutsTheHighByteFirst) {
  EXPECT_THAT(BytesOf(be16(0x0102)), ElementsAre(1, 2));
  EXPECT_THAT(BytesOf(be32(0x01020304)), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(BytesOf(be64(0x0102030405060708)), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
}

TEST(Endian, AnIntegerIsCopiedOutOfAnyAddress) {
  Bytes bytes(16, std::byte{0xee});
  for (std::size_t at = 0; at + 8 <= bytes.size(); ++at) {
    ASSERT_EQ(Encode(std::span(bytes).subspan(at), le64(0x0102030405060708 + at)), 8u);
    le64 value;
    ASSERT_TRUE(CopyOut(std::span<const std::byte>(bytes).subspan(at), &value));
    EXPECT_EQ(value.get(), 0x0102030405060708 + at);
  }
}

TEST(Endian, WhatDoesNotFitIsNeitherWrittenNorRead) {
  Bytes bytes(3, std::byte{0xee});
  EXPECT_EQ(Encode(std::span(bytes), le32(1)), 0u);
  EXPECT_EQ(bytes, Bytes(3, std::byte{0xee}));
  le32 value(7);
  EXPECT_FALSE(CopyOut(std::span<const std::byte>(bytes), &value));
  EXPECT_EQ(value.get(), 7u);
}

TEST(Names, ANameNeedsRoomForItsNul) {
  std::array<char, 4> field;
  field.fill('x');
  EXPECT_FALSE(SetName(&field, "abcd"));
  EXPECT_EQ(NameOf(field), "xxxx");
  EXPECT_TRUE(SetName(&field, "a"));
  EXPECT_THAT(field, ElementsAre('a', '\0', '\0', '\0'));
  EXPECT_TRUE(SetName(&field, "abc"));
  EXPECT_EQ(NameOf(field), "abc");
  EXPECT_TRUE(SetName(&field, ""));
  EXPECT_EQ(NameOf(field), "");
  EXPECT_FALSE(SetName(&field, std::string_view("a\0b", 3)));
}

TEST(Names, ControlCharactersAreFoundAndUtf8IsNone) {
  EXPECT_TRUE(HasControlCharacter("a\nb"));
  EXPECT_TRUE(HasControlCharacter("a\x7f"));
  EXPECT_FALSE(HasControlCharacter("vol-0/\xc3\xa4 b"));
}

}  // namespace
}  // namespace ibnbd::proto
