// SPDX-License-Identifier: Apache-2.0
// What is malformed about RNBD messages, reason by reason.
#include "proto/reasons.h"
#include "proto/rnbd.h"

namespace ibnbd::proto {
namespace {

template <typename T>
using Decoder = const char* (*)(std::span<const std::byte>, T*);

template <typename T>
std::function<const char*()> Decode(Decoder<T> decoder, const T& message) {
  return [=] {
    T out;
    return decoder(AsBytes(message), &out);
  };
}
template <typename T>
std::function<const char*()> DecodeShort(Decoder<T> decoder) {
  return [=] {
    T out;
    return decoder(Short(T{}), &out);
  };
}

Open Named(std::string_view name) {
  Open open;
  (void)SetName(&open.dev_name, name);  // Test names fit.
  return open;
}

std::function<const char*()> Rw(std::uint32_t rw, std::uint32_t bi_size, IoCarrier carrier,
                                std::uint64_t sector = 0) {
  return [=] {
    const Io io{
        .device_id{}, .sector = le64(sector), .rw = le32(rw), .bi_size = le32(bi_size), .prio{}};
    Io out;
    return DecodeIo(AsBytes(io), carrier, &out);
  };
}
std::function<const char*()> IoBytes(const Bytes& bytes) {
  return [bytes] {
    Io out;
    return DecodeIo(bytes, {}, &out);
  };
}

std::function<const char*()> ListAnswer(const ListRsp& head, std::uint32_t start_index) {
  return [=] {
    ListRsp out;
    return DecodeListRsp(AsBytes(head), start_index, &out);
  };
}
std::function<const char*()> Entry(std::string_view name, std::uint64_t nsectors = 0,
                                   std::uint32_t index = 0, bool terminated = true) {
  return [=, name = std::string(name)] {
    ListEntry entry{.nsectors = le64(nsectors)};
    (void)SetName(&entry.name, name);  // Test names fit.
    if (!terminated) entry.name.fill('a');
    const Bytes bytes = Concat(ToBytes(AsBytes(ListRsp{.count = le32(1)})), AsBytes(entry));
    ListEntry out;
    return DecodeListEntry(bytes, index, &out);
  };
}

const OpenRsp kOpenRsp{.nsectors = le64(8), .logical_block_size = le16(512)};
constexpr IoCarrier kWrite4K{.data_len = 4096, .is_read = false};
constexpr IoCarrier kRead4K{.data_len = 4096, .is_read = true};
constexpr RnbdHeader kOther = HeaderOf(RnbdType::kListRsp);

std::vector<ReasonCase> ControlReasons() {
  return {
      {"message: too short for its type",
       [] {
         RnbdType out{};
         return DecodeType(Bytes(3), &out);
       }},
      {"sess_info: too short", DecodeShort<SessInfo>(DecodeSessInfo)},
      {"sess_info: bad type", Decode<SessInfo>(DecodeSessInfo, {.header = kOther})},
      {"sess_info: ver is 0", Decode<SessInfo>(DecodeSessInfo, {.ver = 0})},
      {"sess_info_rsp: too short", DecodeShort<SessInfo>(DecodeSessInfoRsp)},
      {"sess_info_rsp: bad type", Decode<SessInfo>(DecodeSessInfoRsp, {})},
      {"sess_info_rsp: ver is 0",
       Decode<SessInfo>(DecodeSessInfoRsp, {.header = HeaderOf(RnbdType::kSessInfoRsp), .ver = 0})},
      {"sess_info_rsp: ver is higher than ours",
       Decode<SessInfo>(DecodeSessInfoRsp, {.header = HeaderOf(RnbdType::kSessInfoRsp), .ver = 3})},
      {"open: too short", DecodeShort<Open>(DecodeOpen)},
      {"open: bad type",
       Decode<Open>(DecodeOpen, With(Named("a"), [](auto& m) { m.header = kOther; }))},
      {"open: unknown access mode",
       Decode<Open>(DecodeOpen,
                    With(Named("a"), [](auto& m) { m.access_mode = static_cast<AccessMode>(3); }))},
      {"open: name is not NUL-terminated",
       Decode<Open>(DecodeOpen, With(Named("a"), [](auto& m) { m.dev_name.fill('a'); }))},
      {"open: name is empty", Decode<Open>(DecodeOpen, Named(""))},
      {"open: name has '..'", Decode<Open>(DecodeOpen, Named("a/../b"))},
      {"open: name has a control character", Decode<Open>(DecodeOpen, Named("a\x1b[2J"))},
      {"open_rsp: too short", DecodeShort<OpenRsp>(DecodeOpenRsp)},
      {"open_rsp: bad type",
       Decode<OpenRsp>(DecodeOpenRsp, With(kOpenRsp, [](auto& m) { m.header = kOther; }))},
      {"open_rsp: nsectors > 2^54",
       Decode<OpenRsp>(DecodeOpenRsp,
                       With(kOpenRsp, [](auto& m) { m.nsectors = le64(kSectorsMax + 1); }))},
      {"open_rsp: logical_block_size is 0",
       Decode<OpenRsp>(DecodeOpenRsp,
                       With(kOpenRsp, [](auto& m) { m.logical_block_size = le16(0); }))},
      {"open_rsp: logical_block_size is less than a sector",
       Decode<OpenRsp>(DecodeOpenRsp,
                       With(kOpenRsp, [](auto& m) { m.logical_block_size = le16(256); }))},
      {"open_rsp: logical_block_size is not a power of two",
       Decode<OpenRsp>(DecodeOpenRsp,
                       With(kOpenRsp, [](auto& m) { m.logical_block_size = le16(520); }))},
      {"close: too short", DecodeShort<Close>(DecodeClose)},
      {"close: bad type", Decode<Close>(DecodeClose, {.header = kOther})},
      {"fence_path: too short", DecodeShort<FencePath>(DecodeFencePath)},
      {"fence_path: bad type", Decode<FencePath>(DecodeFencePath, {.header = kOther})},
  };
}

std::vector<ReasonCase> IoReasons() {
  return {
      {"io: too short", IoBytes(Bytes(kIoSizeMin - 1))},
      {"io: bad type", IoBytes(ToBytes(AsBytes(Io{.header = kOther})))},
      {"io: unknown operation", Rw(6, 4096, kWrite4K)},
      {"io: unknown operation", Rw(0xff, 4096, kWrite4K)},
      {"io: FLUSH with data", Rw(2, 0, kRead4K, kFlushSector)},
      {"io: bi_size is 0", Rw(0, 0, {.data_len = 0, .is_read = true})},
      {"io: bi_size is 0", Rw(3, 0, {})},
      {"io: bi_size is not a multiple of 512", Rw(1, 4095, {.data_len = 4095})},
      {"io: sector >= 2^54", Rw(1, 4096, kWrite4K, kSectorsMax)},
      {"io: sector >= 2^54", Rw(0, 4096, kRead4K, kFlushSector)},
      {"io: bi_size != data_len", Rw(1, 8192, kWrite4K)},
      {"io: bi_size != data_len", Rw(0, 512, {.data_len = 0, .is_read = true})},
      {"io: READ in an RTRS write", Rw(0, 4096, kWrite4K)},
      {"io: WRITE in an RTRS read", Rw(1, 4096, kRead4K)},
      {"io: DISCARD, SECURE_ERASE or WRITE_ZEROES with data", Rw(3, 4096, kWrite4K)},
      {"io: DISCARD, SECURE_ERASE or WRITE_ZEROES with data", Rw(4, 4096, kWrite4K)},
      {"io: DISCARD, SECURE_ERASE or WRITE_ZEROES with data", Rw(5, 4096, kWrite4K)},
  };
}

std::vector<ReasonCase> ListReasons() {
  return {
      {"list: too short", DecodeShort<List>(DecodeList)},
      {"list: bad type", Decode<List>(DecodeList, {.header = kOther})},
      {"list_rsp: too short",
       [] {
         ListRsp out;
         return DecodeListRsp(Short(ListRsp{}), 0, &out);
       }},
      {"list_rsp: bad type", ListAnswer({.header = HeaderOf(RnbdType::kList)}, 0)},
      {"list_rsp: too short for its count", ListAnswer({.count = le32(1)}, 0)},
      {"list_rsp: too short for its count", ListAnswer({.count = le32(0xffffffff)}, 0)},
      {"list_rsp: next_index does not advance", ListAnswer({.next_index = le32(5)}, 5)},
      {"list_entry: too short", Entry("a", 0, 1)},
      {"list_entry: too short", Entry("a", 0, 0xffffffff)},
      {"list_entry: name is not NUL-terminated", Entry("a", 0, 0, false)},
      {"list_entry: name is empty", Entry("")},
      {"list_entry: name has a control character", Entry("a\tb")},
      {"list_entry: nsectors > 2^54", Entry("a", kSectorsMax + 1)},
  };
}

}  // namespace

std::vector<ReasonCase> RnbdReasons() {
  std::vector<ReasonCase> cases = ControlReasons();
  for (auto* more : {&IoReasons, &ListReasons}) {
    for (ReasonCase& one : more()) cases.push_back(std::move(one));
  }
  return cases;
}

}  // namespace ibnbd::proto
