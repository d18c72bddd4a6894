// SPDX-License-Identifier: Apache-2.0
// RTRS, the transport: its constants and the structs of its messages, byte for byte.  The codecs
// are in rtrs_control.h (connect, info: once per connection or path) and rtrs_io.h (one per IO);
// this header includes both, so that users say #include "proto/rtrs.h".  The specification is
// README.md.
//
// Every struct opens with the values that never vary, so that a message is made with designated
// initializers and sent with Encode() or AsBytes():
//     ConnReq request{.cid = le16(1), .cid_num = le16(4), ...};
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "proto/endian.h"

namespace ibnbd::proto {

inline constexpr std::uint16_t kRtrsMagic = 0x1bbd;
inline constexpr std::uint8_t kRtrsMajor = 2;        // A peer of another major version is refused.
inline constexpr std::uint8_t kRtrsMinorKernel = 0;  // Nothing beyond what the Linux driver speaks.
inline constexpr std::uint8_t kRtrsMinorIbnbd = 1;   // Our extensions (README.md, section 9).
inline constexpr std::uint8_t kRtrsMinorFence = 2;   // And FENCE_PATH.
inline constexpr std::uint8_t kRtrsMinor = kRtrsMinorFence;  // What we speak.
inline constexpr std::uint16_t kRtrsVersionKernel = kRtrsMajor << 8 | kRtrsMinorKernel;
inline constexpr std::uint16_t kRtrsVersion = kRtrsMajor << 8 | kRtrsMinor;
inline constexpr std::uint16_t kRtrsPort = 1234;

inline constexpr std::uint32_t kServiceConQueueDepth = 512;
inline constexpr std::uint32_t kPathsMax = 128;  // Per session.
inline constexpr std::uint32_t kConsMax = 4096;  // Per path.
inline constexpr std::uint32_t kQueueDepthMax = 65535;
inline constexpr std::uint32_t kChunkSizeMin = 8192;
inline constexpr std::uint32_t kDefaultQueueDepth = 512;
inline constexpr std::uint32_t kDefaultIoSizeMax = 131072;
inline constexpr std::uint32_t kDefaultHdrSizeMax = 4096;
inline constexpr std::uint32_t kHdrSizeMaxForKernel = 2088;  // A kernel client wants at least this:
static_assert(kHdrSizeMaxForKernel == 32 + 8 + 16 * 128);  // IO, header, 128 segments it may count.
inline constexpr std::uint32_t kHbIntervalMs = 5000;
inline constexpr std::uint32_t kHbMissedMax = 5;
inline constexpr std::uint32_t kConnectTimeoutMs = 30000;
inline constexpr std::uint32_t kReconnectBackoffMs = 1000;
inline constexpr std::size_t kSessionNameMax = 254;  // Without the NUL.
inline constexpr std::size_t kUserMessageMax = 264;  // RNBD's OPEN is the longest user message.

enum class RtrsType : std::uint16_t {
  kInfoReq = 0,
  kInfoRsp = 1,
  kWrite = 2,
  kRead = 3,
  kRkeyRsp = 4,
};

using Uuid = std::array<std::uint8_t, 16>;  // Opaque; only equality matters.

inline constexpr std::uint8_t kConnReqFirstConn = 1;  // ConnReq::flags: may create the session.
inline constexpr std::uint16_t kReadNeedInval = 1;    // ReadHeader::flags.
inline constexpr std::uint32_t kConnRspNewRkey = 2;   // ConnRsp::flags.

struct ConnReq {
  std::uint8_t cma_version = 0;
  std::uint8_t ip_version = 0;
  le16 magic{kRtrsMagic};
  le16 version{kRtrsVersion};
  le16 cid{};
  le16 cid_num{};
  le16 recon_cnt{};
  Uuid sess_uuid{};   // Of the path; the name is historical.
  Uuid paths_uuid{};  // Of the session, the group of paths.
  std::uint8_t flags = 0;
  std::array<std::uint8_t, 11> reserved{};

  [[nodiscard]] std::uint8_t minor() const { return static_cast<std::uint8_t>(version.get()); }
  [[nodiscard]] bool first_conn() const { return (flags & kConnReqFirstConn) != 0; }
};
static_assert(kIsWireStruct<ConnReq> && sizeof(ConnReq) == 56);
static_assert(offsetof(ConnReq, magic) == 2 && offsetof(ConnReq, version) == 4);
static_assert(offsetof(ConnReq, cid) == 6 && offsetof(ConnReq, cid_num) == 8);
static_assert(offsetof(ConnReq, recon_cnt) == 10 && offsetof(ConnReq, sess_uuid) == 12);
static_assert(offsetof(ConnReq, paths_uuid) == 28 && offsetof(ConnReq, flags) == 44);

struct ConnRsp {
  le16 magic{kRtrsMagic};
  le16 version{kRtrsVersion};
  le16 error{};  // 0 accepts; a negative errno, as int16, rejects.
  le16 queue_depth{};
  le32 max_io_size{};
  le32 max_hdr_size{};
  le32 flags{};
  std::array<std::uint8_t, 36> reserved{};

  [[nodiscard]] std::uint8_t minor() const { return static_cast<std::uint8_t>(version.get()); }
  [[nodiscard]] bool new_rkey() const { return (flags.get() & kConnRspNewRkey) != 0; }
  // DecodeConnRsp() has seen to it that this does not wrap.
  [[nodiscard]] std::uint32_t chunk_size() const { return max_io_size.get() + max_hdr_size.get(); }
};
static_assert(kIsWireStruct<ConnRsp> && sizeof(ConnRsp) == 56);
static_assert(offsetof(ConnRsp, version) == 2 && offsetof(ConnRsp, error) == 4);
static_assert(offsetof(ConnRsp, queue_depth) == 6 && offsetof(ConnRsp, max_io_size) == 8);
static_assert(offsetof(ConnRsp, max_hdr_size) == 12 && offsetof(ConnRsp, flags) == 16);

struct InfoReq {
  le16 type{static_cast<std::uint16_t>(RtrsType::kInfoReq)};
  std::array<char, 255> name{};  // Of the session, NUL-terminated.
  // Extensions, for a server that announced minor 1: whose session it is, over restarts of the
  // client's process; 0: nobody's in particular.  And which of its processes this is: a later one
  // has no smaller number.
  le64 client_id{};
  le32 incarnation{};
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(kIsWireStruct<InfoReq> && sizeof(InfoReq) == 272);
static_assert(offsetof(InfoReq, name) == 2 && offsetof(InfoReq, client_id) == 257);
static_assert(offsetof(InfoReq, incarnation) == 265 && offsetof(InfoReq, reserved) == 269);

struct InfoRspHeader {  // sg_cnt SgDesc follow.
  le16 type{static_cast<std::uint16_t>(RtrsType::kInfoRsp)};
  le16 sg_cnt{};
  le32 reserved{};
};
static_assert(kIsWireStruct<InfoRspHeader> && sizeof(InfoRspHeader) == 8);
static_assert(offsetof(InfoRspHeader, sg_cnt) == 2);

struct SgDesc {
  le64 addr{};
  le32 key{};
  le32 len{};
};
static_assert(kIsWireStruct<SgDesc> && sizeof(SgDesc) == 16);
static_assert(offsetof(SgDesc, key) == 8 && offsetof(SgDesc, len) == 12);

struct WriteHeader {
  le16 type{static_cast<std::uint16_t>(RtrsType::kWrite)};
  le16 usr_len{};
};
static_assert(kIsWireStruct<WriteHeader> && sizeof(WriteHeader) == 4);
static_assert(offsetof(WriteHeader, usr_len) == 2);

struct ReadHeader {  // 0 or 1 SgDesc follow.
  le16 type{static_cast<std::uint16_t>(RtrsType::kRead)};
  le16 usr_len{};
  le16 flags{};
  le16 sg_cnt{};
};
static_assert(kIsWireStruct<ReadHeader> && sizeof(ReadHeader) == 8);
static_assert(offsetof(ReadHeader, usr_len) == 2 && offsetof(ReadHeader, flags) == 4);
static_assert(offsetof(ReadHeader, sg_cnt) == 6);

struct RkeyRsp {
  le16 type{static_cast<std::uint16_t>(RtrsType::kRkeyRsp)};
  le16 buf_id{};
  le32 rkey{};
};
static_assert(kIsWireStruct<RkeyRsp> && sizeof(RkeyRsp) == 8);
static_assert(offsetof(RkeyRsp, buf_id) == 2 && offsetof(RkeyRsp, rkey) == 4);

inline constexpr std::size_t kReadHeaderWithDescSize = sizeof(ReadHeader) + sizeof(SgDesc);
inline constexpr std::size_t kRequestTailMax = kUserMessageMax + kReadHeaderWithDescSize;  // 288.
[[nodiscard]] constexpr std::size_t InfoRspSizeMax(std::uint32_t queue_depth) {
  return sizeof(InfoRspHeader) + sizeof(SgDesc) * queue_depth;
}

}  // namespace ibnbd::proto

#include "proto/rtrs_control.h"  // IWYU pragma: export
#include "proto/rtrs_io.h"       // IWYU pragma: export
