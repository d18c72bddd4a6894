// SPDX-License-Identifier: Apache-2.0
// What is malformed about the request in a chunk, reason by reason.
#include "proto/reasons.h"
#include "proto/rtrs.h"

namespace ibnbd::proto {
namespace {

constexpr std::uint32_t kChunk = 8192;
constexpr std::uint32_t kIoMax = 4096;

// A chunk that holds `header` (and what follows it) at `off`, of which `size` bytes exist.
struct Request {
  Bytes header = {};
  std::uint32_t off = 4096 + 32;
  std::size_t size = kChunk;
};

std::function<const char*()> Decode(const Request& in) {
  return [in] {
    Bytes chunk(in.size, std::byte{0xdd});
    for (std::size_t i = 0; i < in.header.size() && in.off + i < chunk.size(); ++i) {
      chunk[in.off + i] = in.header[i];
    }
    IoRequest out;
    return DecodeIoRequest(chunk, in.off, {.max_io_size = kIoMax}, &out);
  };
}

Bytes Write(std::uint16_t usr_len, std::uint16_t type = 2) {
  return ToBytes(AsBytes(WriteHeader{.type = le16(type), .usr_len = le16(usr_len)}));
}
Bytes Read(std::uint16_t sg_cnt, std::uint32_t len, std::uint64_t addr = 0x1000) {
  const ReadHeader header{.usr_len = le16(32), .sg_cnt = le16(sg_cnt)};
  const SgDesc desc{.addr = le64(addr), .key = le32(7), .len = le32(len)};
  return Concat(ToBytes(AsBytes(header)), AsBytes(desc));
}

std::function<const char*()> Rkey(const RkeyRsp& response) {
  return [response] {
    RkeyRsp out;
    return DecodeRkeyRsp(AsBytes(response), 3, &out);
  };
}

}  // namespace

std::vector<ReasonCase> RtrsIoReasons() {
  return {
      {"request: off is beyond the chunk", Decode({.header = Write(32), .off = kChunk})},
      {"request: off is beyond the chunk", Decode({.header = Write(32), .off = 0xffffffff})},
      {"request: header crosses the end of the chunk",
       Decode({.header = Write(32), .off = kChunk - 3})},
      {"request: usr_len > off", Decode({.header = Write(32), .off = 31})},
      {"request: usr_len > 264", Decode({.header = Write(265)})},
      {"request: usr_len > off", Decode({.header = Write(0xffff), .off = kChunk - 4})},
      {"request: data_len > max_io_size", Decode({.header = Write(32), .off = 4096 + 33})},
      {"request: unknown type", Decode({.header = Write(32, 0)})},
      {"request: unknown type", Decode({.header = Write(32, 0x0202)})},
      {"read: header crosses the end of the chunk",
       Decode({.header = Read(0, 0), .size = 4096 + 32 + 7})},
      {"read: sg_cnt > 1", Decode({.header = Read(2, 4096)})},
      {"read: data_len is not 0 but there is no desc", Decode({.header = Read(0, 0)})},
      {"read: desc crosses the end of the chunk",
       Decode({.header = Read(1, 4096), .size = 4096 + 32 + 23})},
      {"read: desc len is 0", Decode({.header = Read(1, 0)})},
      {"read: desc len > max_io_size", Decode({.header = Read(1, 200000)})},
      {"read: desc len != data_len", Decode({.header = Read(1, 2048)})},
      {"read: desc wraps around the address space",
       Decode({.header = Read(1, 4096, ~0ull - 4094)})},
      {"rkey_rsp: too short",
       [] {
         RkeyRsp out;
         return DecodeRkeyRsp(Short(RkeyRsp{.buf_id = le16(3)}), 3, &out);
       }},
      {"rkey_rsp: bad type", Rkey({.type = le16(3), .buf_id = le16(3)})},
      {"rkey_rsp: buf_id is not the msg_id of the immediate", Rkey({.buf_id = le16(4)})},
  };
}

}  // namespace ibnbd::proto
