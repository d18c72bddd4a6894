// SPDX-License-Identifier: Apache-2.0
// The 32-bit immediate: what every message of an established RTRS path is announced by.
//
//     31   28 27                                                     0
//    +-------+--------------------------------------------------------+
//    | type  |                        payload                         |
//    +-------+--------------------------------------------------------+
//    IO_REQ  | mem_id: clog2(qd) bits | off: 28 - clog2(qd) bits      |  client to server
//    IO_RSP* | errno: 9 bits          | msg_id: 19 bits               |  server to client
//    HB_*    | 0                                                      |  both ways, connection 0
//
// Values here are in host order; fabrics put them on the wire big-endian.  Used on the data path of
// both sides, on any thread: constexpr, no branches but those of the caller.
#pragma once

#include <bit>
#include <cstdint>

#include "proto/wire_errno.h"

namespace ibnbd::proto {

inline constexpr std::uint32_t kImmTypeBits = 4;
inline constexpr std::uint32_t kImmPayloadBits = 28;
inline constexpr std::uint32_t kImmMsgIdBits = 19;
static_assert(kImmTypeBits + kImmPayloadBits == 32);
static_assert(kImmMsgIdBits + kWireErrnoBits == kImmPayloadBits);

enum class ImmType : std::uint8_t {
  kIoReq = 0,
  kIoRsp = 1,
  kIoRspInvalidated = 2,  // As kIoRsp; a SEND_WITH_INV for the request's rkey came just before.
  kHbMsg = 8,
  kHbAck = 9,
  // The others are unused: a receiver ignores them.
};

inline constexpr std::uint32_t kImmHbMsg = 0x80000000u;
inline constexpr std::uint32_t kImmHbAck = 0x90000000u;

// The bits that are needed to number n things.
[[nodiscard]] constexpr std::uint32_t CeilLog2(std::uint32_t n) {
  return n <= 1 ? 0 : static_cast<std::uint32_t>(std::bit_width(n - 1));
}

// Whether IO_REQ can name every byte of every chunk.  A server must not offer what does not fit.
[[nodiscard]] constexpr bool ImmBudgetFits(std::uint32_t queue_depth, std::uint32_t chunk_size) {
  return CeilLog2(queue_depth) + CeilLog2(chunk_size) <= kImmPayloadBits;
}

[[nodiscard]] constexpr ImmType ImmTypeOf(std::uint32_t imm) {
  return static_cast<ImmType>(imm >> kImmPayloadBits);
}

struct IoReqImm {
  std::uint32_t mem_id = 0;  // The chunk.
  std::uint32_t off = 0;     // Of the RTRS header in the chunk: data_len + usr_len.
  friend constexpr bool operator==(const IoReqImm&, const IoReqImm&) = default;
};

// How IO_REQ splits its payload; fixed for a path by its queue depth (1 .. 65535).
class IoReqImmLayout {
 public:
  constexpr explicit IoReqImmLayout(std::uint32_t queue_depth)
      : off_bits_(kImmPayloadBits - CeilLog2(queue_depth)) {}

  // Requires mem_id < queue_depth and off < chunk size, which ImmBudgetFits() makes room for.
  [[nodiscard]] constexpr std::uint32_t Pack(IoReqImm fields) const {
    return (fields.mem_id << off_bits_) | fields.off;
  }
  // What a peer sent: mem_id may still be >= queue_depth, off >= the chunk size.
  [[nodiscard]] constexpr IoReqImm Unpack(std::uint32_t imm) const {
    const std::uint32_t payload = imm & ((1u << kImmPayloadBits) - 1);
    return {.mem_id = payload >> off_bits_, .off = payload & ((1u << off_bits_) - 1)};
  }
  [[nodiscard]] constexpr std::uint32_t off_bits() const { return off_bits_; }

 private:
  std::uint32_t off_bits_;
};

struct IoRspImm {
  std::uint32_t msg_id = 0;  // The mem_id of the request.
  int error = 0;             // 0 or a negative errno.
  friend constexpr bool operator==(const IoRspImm&, const IoRspImm&) = default;
};

// Requires msg_id < 2^19 and type kIoRsp or kIoRspInvalidated.
[[nodiscard]] constexpr std::uint32_t PackIoRsp(ImmType type, IoRspImm fields) {
  return (static_cast<std::uint32_t>(type) << kImmPayloadBits) |
         (WireFromErrno(fields.error) << kImmMsgIdBits) | fields.msg_id;
}
// What a peer sent: msg_id may still be >= queue_depth; error is 0 or an errno that exists here.
[[nodiscard]] constexpr IoRspImm UnpackIoRsp(std::uint32_t imm) {
  return {.msg_id = imm & ((1u << kImmMsgIdBits) - 1),
          .error = ErrnoFromWire((imm >> kImmMsgIdBits) & kWireErrnoMax)};
}

// The examples of the specification.
static_assert(kImmHbMsg >> kImmPayloadBits == static_cast<std::uint32_t>(ImmType::kHbMsg));
static_assert(kImmHbAck >> kImmPayloadBits == static_cast<std::uint32_t>(ImmType::kHbAck));
static_assert(IoReqImmLayout(512).Pack({.mem_id = 3, .off = 0x1020}) == 0x00181020);
static_assert(PackIoRsp(ImmType::kIoRsp, {.msg_id = 3, .error = -EIO}) == 0x10280003);
static_assert(ImmBudgetFits(512, 135168) && !ImmBudgetFits(512, 524289) &&
              ImmBudgetFits(1, 1 << 28));

}  // namespace ibnbd::proto
