// SPDX-License-Identifier: Apache-2.0
// RNBD, the block protocol: the user messages that RTRS carries.  Structs, constants and the codecs
// of SESS_INFO, OPEN, IO and CLOSE; our own extension LIST is in rnbd_list.h.  Used by both sides
// on any thread; DecodeIo() is on the data path.  The specification is README.md.
//
// A decoder copies the message out of `in` and returns null, or the reason why it is malformed;
// *out is then unspecified.  A malformed user message is answered with EINVAL; it breaks nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "proto/endian.h"
#include "proto/names.h"

namespace ibnbd::proto {

inline constexpr std::uint8_t kRnbdMajor = 2;  // SessInfo::ver; the minor is not on the wire.
inline constexpr std::uint64_t kSectorSize = 512;
inline constexpr std::uint64_t kSectorsMax = 1ull << 54;  // So that bytes fit in 63 bits.
inline constexpr std::uint64_t kFlushSector = ~std::uint64_t{0};
inline constexpr std::size_t kDeviceNameMax = 254;  // Without the NUL.

enum class RnbdType : std::uint16_t {
  kSessInfo = 0,
  kSessInfoRsp = 1,
  kOpen = 2,
  kOpenRsp = 3,
  kIo = 4,
  kClose = 5,
  kList = 64,  // From here on: only between peers that announce kRtrsMinorIbnbd.
  kListRsp = 65,
  kFencePath = 66,  // kRtrsMinorFence.
};

enum class AccessMode : std::uint8_t { kReadOnly = 0, kReadWrite = 1, kMigration = 2 };

enum class IoOp : std::uint8_t {
  kRead = 0,
  kWrite = 1,
  kFlush = 2,
  kDiscard = 3,
  kSecureErase = 4,
  kWriteZeroes = 5,
};

inline constexpr std::uint32_t kIoOpMask = 0xff;
inline constexpr std::uint32_t kIoSync = 0x100;
inline constexpr std::uint32_t kIoFua = 0x200;       // Linux sets it for PREFLUSH, too.
inline constexpr std::uint32_t kIoPreflush = 0x400;  // Since 2.1.
inline constexpr std::uint32_t kIoNoUnmap = 0x800;   // Since 2.2; WRITE_ZEROES only.

// The flags that mean something in revision 2.`minor`.  The others are ignored, never refused.
[[nodiscard]] constexpr std::uint32_t KnownIoFlags(int minor) {
  return kIoSync | kIoFua | (minor >= 1 ? kIoPreflush : 0) | (minor >= 2 ? kIoNoUnmap : 0);
}
inline constexpr int kRnbdMinor = 2;  // What we speak.

inline constexpr std::uint8_t kCacheFua = 1;  // OpenRsp::cache_policy.
inline constexpr std::uint8_t kCacheWriteback = 2;

struct RnbdHeader {
  le16 type{};
  std::array<std::uint8_t, 2> padding{};  // Linux sends what it finds on its stack.
};
static_assert(kIsWireStruct<RnbdHeader> && sizeof(RnbdHeader) == 4);
[[nodiscard]] constexpr RnbdHeader HeaderOf(RnbdType type) {
  return {.type = le16(static_cast<std::uint16_t>(type))};
}

// Which life of the server's machine answers: it changes exactly when what was acknowledged and not
// flushed may have been lost.  All zero: not known.
using InstanceId = std::array<std::uint8_t, 16>;

struct SessInfo {  // The response is the same, with another type.
  RnbdHeader header = HeaderOf(RnbdType::kSessInfo);
  std::uint8_t ver = kRnbdMajor;
  std::array<std::uint8_t, 3> reserved1{};
  InstanceId instance_id{};  // Extension; the response only.
  std::array<std::uint8_t, 12> reserved2{};
};
static_assert(kIsWireStruct<SessInfo> && sizeof(SessInfo) == 36 && offsetof(SessInfo, ver) == 4);
static_assert(offsetof(SessInfo, instance_id) == 8);

struct Open {
  RnbdHeader header = HeaderOf(RnbdType::kOpen);
  AccessMode access_mode = AccessMode::kReadWrite;
  std::uint8_t resv1 = 0;
  std::array<char, 255> dev_name{};
  le16 writer_epoch{};  // Extension: OpenRsp's of an earlier opening that goes on.  0: a new one.
  std::uint8_t reserved = 0;
};
static_assert(kIsWireStruct<Open> && sizeof(Open) == 264);
static_assert(offsetof(Open, access_mode) == 4 && offsetof(Open, dev_name) == 6);
static_assert(offsetof(Open, writer_epoch) == 261);

struct OpenRsp {
  RnbdHeader header = HeaderOf(RnbdType::kOpenRsp);
  le32 device_id{};
  le64 nsectors{};
  le32 max_hw_sectors{};
  le32 max_write_zeroes_sectors{};  // 0: unsupported.
  le32 max_discard_sectors{};       // 0: unsupported.
  le32 discard_granularity{};       // Bytes, as the next three.
  le32 discard_alignment{};
  le16 physical_block_size{};
  le16 logical_block_size{};
  le16 max_segments{};
  le16 secure_discard{};  // Keep 0: a kernel client crashes when it is used.
  std::uint8_t obsolete_rotational = 0;
  std::uint8_t cache_policy = 0;
  le64 volume_id{};     // Extension: which volume this is, whatever its name.  0: not known.
  le16 writer_epoch{};  // Extension: another one when somebody else has written.  0: not known.
};
static_assert(kIsWireStruct<OpenRsp> && sizeof(OpenRsp) == 56);
static_assert(offsetof(OpenRsp, device_id) == 4 && offsetof(OpenRsp, nsectors) == 8);
static_assert(offsetof(OpenRsp, max_hw_sectors) == 16);
static_assert(offsetof(OpenRsp, max_write_zeroes_sectors) == 20);
static_assert(offsetof(OpenRsp, max_discard_sectors) == 24);
static_assert(offsetof(OpenRsp, discard_granularity) == 28);
static_assert(offsetof(OpenRsp, discard_alignment) == 32);
static_assert(offsetof(OpenRsp, physical_block_size) == 36);
static_assert(offsetof(OpenRsp, logical_block_size) == 38);
static_assert(offsetof(OpenRsp, max_segments) == 40 && offsetof(OpenRsp, secure_discard) == 42);
static_assert(offsetof(OpenRsp, cache_policy) == 45 && offsetof(OpenRsp, volume_id) == 46);
static_assert(offsetof(OpenRsp, writer_epoch) == 54);
// Of volume_id: the rest is the place, this is which content it has.
inline constexpr std::uint64_t kVolumeGenerationMask = 0xffff;

struct Io {
  RnbdHeader header = HeaderOf(RnbdType::kIo);
  le32 device_id{};
  le64 sector{};  // Of 512 bytes, always.
  le32 rw{};      // IoOp | flags.
  le32 bi_size{};
  le16 prio{};
  std::array<std::uint8_t, 6> padding{};

  [[nodiscard]] IoOp op() const { return static_cast<IoOp>(rw.get() & kIoOpMask); }
  [[nodiscard]] std::uint32_t flags() const { return rw.get() & KnownIoFlags(kRnbdMinor); }
};
static_assert(kIsWireStruct<Io> && sizeof(Io) == 32);
static_assert(offsetof(Io, device_id) == 4 && offsetof(Io, sector) == 8 && offsetof(Io, rw) == 16);
static_assert(offsetof(Io, bi_size) == 20 && offsetof(Io, prio) == 24);
inline constexpr std::size_t kIoSizeMin = 24;  // Old clients stop before prio.

struct Close {
  RnbdHeader header = HeaderOf(RnbdType::kClose);
  le32 device_id{};
};
static_assert(kIsWireStruct<Close> && sizeof(Close) == 8 && offsetof(Close, device_id) == 4);

// Extension: the client has given a path of its session up, and wants to know when nothing of it
// can execute any more.
struct FencePath {
  RnbdHeader header = HeaderOf(RnbdType::kFencePath);
  le16 recon_cnt{};  // ConnReq's, of the round that has ended.
  std::array<std::uint8_t, 2> reserved{};
  std::array<std::uint8_t, 16> sess_uuid{};  // ConnReq's: of the path.
};
static_assert(kIsWireStruct<FencePath> && sizeof(FencePath) == 24);
static_assert(offsetof(FencePath, recon_cnt) == 4 && offsetof(FencePath, sess_uuid) == 8);

// The type of a user message, to choose the decoder by; *out may be a number that RnbdType lacks.
[[nodiscard]] inline const char* DecodeType(std::span<const std::byte> in, RnbdType* out) {
  RnbdHeader header{};
  if (!CopyOut(in, &header)) return "message: too short for its type";
  *out = static_cast<RnbdType>(header.type.get());
  return nullptr;
}

}  // namespace ibnbd::proto

#include "proto/rnbd_codec.h"  // IWYU pragma: export
#include "proto/rnbd_list.h"   // IWYU pragma: export
