// SPDX-License-Identifier: Apache-2.0
// LIST, our own extension of RNBD: what does the server export?  Only for peers that announced
// kRtrsMinorIbnbd; a kernel server answers EINVAL.  Include "proto/rnbd.h".  Control path.
//
// The client asks, as an RTRS read with room for the answer, for the exports from start_index on.
// The answer is a ListRsp and as many ListEntry as fit; next_index says where to go on, 0 that it
// is the end.  Exports may come and go between two requests: an index is a position, not an
// identity.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "proto/rnbd.h"

namespace ibnbd::proto {

struct List {
  RnbdHeader header = HeaderOf(RnbdType::kList);
  le32 start_index{};
};
static_assert(kIsWireStruct<List> && sizeof(List) == 8 && offsetof(List, start_index) == 4);

struct ListRsp {
  RnbdHeader header = HeaderOf(RnbdType::kListRsp);
  le32 count{};
  le32 next_index{};  // 0: this is the end.
  le32 reserved{};
};
static_assert(kIsWireStruct<ListRsp> && sizeof(ListRsp) == 16);
static_assert(offsetof(ListRsp, count) == 4 && offsetof(ListRsp, next_index) == 8);

inline constexpr std::uint32_t kListReadOnly = 1;
inline constexpr std::uint32_t kListWriteCache = 2;
inline constexpr std::uint32_t kListOpenForWriting = 4;

struct ListEntry {
  std::array<char, 256> name{};
  le64 nsectors{};
  le32 logical_block_size{};
  le32 flags{};  // kList*; a reader ignores those it does not know.
  le32 reader_count{};
  le32 writer_count{};
  std::array<std::uint8_t, 24> reserved{};
};
static_assert(kIsWireStruct<ListEntry> && sizeof(ListEntry) == 304);
static_assert(offsetof(ListEntry, nsectors) == 256 && offsetof(ListEntry, flags) == 268);
static_assert(offsetof(ListEntry, logical_block_size) == 264);
static_assert(offsetof(ListEntry, reader_count) == 272 && offsetof(ListEntry, writer_count) == 276);

[[nodiscard]] constexpr std::size_t ListEntriesThatFit(std::size_t size) {
  return size < sizeof(ListRsp) ? 0 : (size - sizeof(ListRsp)) / sizeof(ListEntry);
}

[[nodiscard]] inline const char* DecodeList(std::span<const std::byte> in, List* out) {
  if (!CopyOut(in, out)) return "list: too short";
  if (out->header.type.get() != static_cast<std::uint16_t>(RnbdType::kList)) {
    return "list: bad type";
  }
  return nullptr;
}

// `start_index` is what was asked for; `in` is the whole answer, entries included.
[[nodiscard]] inline const char* DecodeListRsp(std::span<const std::byte> in,
                                               std::uint32_t start_index, ListRsp* out) {
  if (!CopyOut(in, out)) return "list_rsp: too short";
  if (out->header.type.get() != static_cast<std::uint16_t>(RnbdType::kListRsp)) {
    return "list_rsp: bad type";
  }
  if (out->count.get() > ListEntriesThatFit(in.size())) return "list_rsp: too short for its count";
  const std::uint32_t next = out->next_index.get();
  if (next != 0 && next <= start_index) return "list_rsp: next_index does not advance";
  return nullptr;
}

// Requires `index` < count of a ListRsp that DecodeListRsp() has found valid for the same `in`.
[[nodiscard]] inline const char* DecodeListEntry(std::span<const std::byte> in, std::uint32_t index,
                                                 ListEntry* out) {
  const std::size_t offset = sizeof(ListRsp) + std::size_t{index} * sizeof(ListEntry);
  if (offset > in.size() || !CopyOut(in.subspan(offset), out)) return "list_entry: too short";
  const std::string_view name = NameOf(out->name);
  if (name.size() == out->name.size()) return "list_entry: name is not NUL-terminated";
  if (name.empty()) return "list_entry: name is empty";
  if (HasControlCharacter(name)) return "list_entry: name has a control character";
  if (out->nsectors.get() > kSectorsMax) return "list_entry: nsectors > 2^54";
  return nullptr;
}

// Puts entry `index` into an answer that is being made in `out`; false when it does not fit.
inline bool EncodeListEntry(std::span<std::byte> out, std::uint32_t index, const ListEntry& entry) {
  const std::size_t offset = sizeof(ListRsp) + std::size_t{index} * sizeof(ListEntry);
  return offset <= out.size() && Encode(out.subspan(offset), entry) != 0;
}

}  // namespace ibnbd::proto
