// SPDX-License-Identifier: Apache-2.0
// Codecs of the RTRS messages of one IO: the request as it lies in a chunk, and the rkey response.
// Include "proto/rtrs.h".  Data path of both sides, on the connection's thread: no allocation.
//
// A chunk belongs to the server but the client can write to it at any moment.  DecodeIoRequest()
// therefore reads each byte of header and user message once, checks the copy, and returns the copy;
// nothing after it may look at those bytes of the chunk again.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include "proto/rtrs.h"

namespace ibnbd::proto {

// What a server granted and holds a request to.
struct IoRequestLimits {
  std::uint32_t max_io_size = 0;
};

struct IoRequest {
  std::uint32_t data_len;  // The data area is the first data_len bytes of the chunk.
  std::uint16_t usr_len;
  bool is_read;     // The server writes data_len bytes to desc; else the chunk holds them.
  bool has_desc;    // A read with data; desc.len == data_len then.
  bool need_inval;  // desc.key is to be invalidated with the response.
  std::uint64_t desc_addr;
  std::uint32_t desc_key;
  std::array<std::byte, kUserMessageMax> usr;  // Only the first usr_len bytes mean something.

  [[nodiscard]] std::span<const std::byte> user_message() const { return {usr.data(), usr_len}; }
};

namespace internal {
struct RequestHeader {
  ReadHeader read;  // Its first half is a WriteHeader.
  SgDesc desc;
};
static_assert(sizeof(RequestHeader) == kReadHeaderWithDescSize);

[[nodiscard]] inline const char* CheckReadRequest(const RequestHeader& header, std::size_t room,
                                                  const IoRequestLimits& limits, IoRequest* out) {
  if (room < sizeof(ReadHeader)) return "read: header crosses the end of the chunk";
  const std::uint32_t sg_cnt = header.read.sg_cnt.get();
  if (sg_cnt > 1) return "read: sg_cnt > 1";
  out->has_desc = sg_cnt == 1;
  if (sg_cnt == 0) {
    return out->data_len == 0 ? nullptr : "read: data_len is not 0 but there is no desc";
  }
  if (room < sizeof(RequestHeader)) return "read: desc crosses the end of the chunk";
  const std::uint32_t len = header.desc.len.get();
  if (len == 0) return "read: desc len is 0";
  if (len > limits.max_io_size) return "read: desc len > max_io_size";
  if (len != out->data_len) return "read: desc len != data_len";
  out->desc_addr = header.desc.addr.get();
  out->desc_key = header.desc.key.get();
  if (len - 1 > std::numeric_limits<std::uint64_t>::max() - out->desc_addr) {
    return "read: desc wraps around the address space";
  }
  out->need_inval = (header.read.flags.get() & kReadNeedInval) != 0;
  return nullptr;
}
}  // namespace internal

// Server: the request in `chunk` whose header the immediate said is at `off`.  Null, or the reason.
[[nodiscard]] inline const char* DecodeIoRequest(std::span<const std::byte> chunk,
                                                 std::uint32_t off, const IoRequestLimits& limits,
                                                 IoRequest* out) {
  if (off >= chunk.size()) return "request: off is beyond the chunk";
  const std::size_t room = chunk.size() - off;
  internal::RequestHeader header;
  if (room >= sizeof(header)) [[likely]] {
    std::memcpy(&header, chunk.data() + off, sizeof(header));
  } else {
    if (room < sizeof(WriteHeader)) return "request: header crosses the end of the chunk";
    std::memcpy(&header, chunk.data() + off, room);
  }
  // The client may be writing: without this the compiler could load a field from the chunk again.
  std::atomic_signal_fence(std::memory_order_acq_rel);
  const std::uint32_t usr_len = header.read.usr_len.get();
  if (usr_len > off) return "request: usr_len > off";
  if (usr_len > kUserMessageMax) return "request: usr_len > 264";
  out->usr_len = static_cast<std::uint16_t>(usr_len);
  out->data_len = off - usr_len;
  if (out->data_len > limits.max_io_size) return "request: data_len > max_io_size";
  out->has_desc = out->need_inval = false;
  out->desc_addr = out->desc_key = 0;
  const std::uint32_t type = header.read.type.get();
  out->is_read = type == static_cast<std::uint32_t>(RtrsType::kRead);
  if (out->is_read) {
    const char* reason = internal::CheckReadRequest(header, room, limits, out);
    if (reason != nullptr) return reason;
  } else if (type != static_cast<std::uint32_t>(RtrsType::kWrite)) {
    return "request: unknown type";
  }
  std::memcpy(out->usr.data(), chunk.data() + out->data_len, usr_len);
  std::atomic_signal_fence(std::memory_order_acq_rel);  // The same for the user message.
  return nullptr;
}

// Client: user message and header of a write, to be put at chunk + data_len.  Returns the size of
// both, or 0 when `out` is too small.  The immediate's off is data_len + user_message.size().
[[nodiscard]] inline std::size_t EncodeWriteRequest(std::span<std::byte> out,
                                                    std::span<const std::byte> user_message) {
  const WriteHeader header{.usr_len = le16(static_cast<std::uint16_t>(user_message.size()))};
  const std::size_t size = user_message.size() + sizeof(header);
  if (out.size() < size || user_message.size() > kUserMessageMax) return 0;
  std::memcpy(out.data(), user_message.data(), user_message.size());
  std::memcpy(out.data() + user_message.size(), &header, sizeof(header));
  return size;
}

// Client: the same for a read.  `desc` null: a read without data, as FLUSH is.  need_inval only if
// the fabric can invalidate desc->key, else the peer's SEND_WITH_INV breaks the connection.
[[nodiscard]] inline std::size_t EncodeReadRequest(std::span<std::byte> out,
                                                   std::span<const std::byte> user_message,
                                                   const SgDesc* desc, bool need_inval = false) {
  const bool has_desc = desc != nullptr;
  const ReadHeader header{.usr_len = le16(static_cast<std::uint16_t>(user_message.size())),
                          .flags = le16(has_desc && need_inval ? kReadNeedInval : std::uint16_t{0}),
                          .sg_cnt = le16(has_desc ? 1 : 0)};
  const std::size_t size =
      user_message.size() + sizeof(header) + (has_desc ? sizeof(SgDesc) : std::size_t{0});
  if (out.size() < size || user_message.size() > kUserMessageMax) return 0;
  std::byte* at = out.data();
  std::memcpy(at, user_message.data(), user_message.size());
  at += user_message.size();
  std::memcpy(at, &header, sizeof(header));
  if (has_desc) std::memcpy(at + sizeof(header), desc, sizeof(*desc));
  return size;
}

// Client of a server with kConnRspNewRkey: `msg_id` is what the immediate of the same message said.
[[nodiscard]] inline const char* DecodeRkeyRsp(std::span<const std::byte> in, std::uint32_t msg_id,
                                               RkeyRsp* out) {
  if (!CopyOut(in, out)) return "rkey_rsp: too short";
  if (out->type.get() != static_cast<std::uint16_t>(RtrsType::kRkeyRsp)) {
    return "rkey_rsp: bad type";
  }
  if (out->buf_id.get() != msg_id) return "rkey_rsp: buf_id is not the msg_id of the immediate";
  return nullptr;
}

}  // namespace ibnbd::proto
