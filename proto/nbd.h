// SPDX-License-Identifier: Apache-2.0
// The subset of the NBD protocol that nbd-bridge speaks: fixed newstyle negotiation, simple and
// structured replies, block size constraints.  Constants and structs here, the decoders in
// nbd_codec.h (included at the end).  All integers are big-endian.  After the public document "The
// NBD protocol"; names follow it, so that it can be read beside this file.  Depends on nothing of
// RTRS.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "proto/endian.h"

namespace ibnbd::proto {

inline constexpr std::uint64_t kNbdMagic = 0x4e42444d41474943;        // "NBDMAGIC"
inline constexpr std::uint64_t kNbdOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr std::uint64_t kNbdOptionReplyMagic = 0x0003e889045565a9;
inline constexpr std::uint32_t kNbdRequestMagic = 0x25609513;
inline constexpr std::uint32_t kNbdSimpleReplyMagic = 0x67446698;
inline constexpr std::uint32_t kNbdStructuredReplyMagic = 0x668e33ef;
inline constexpr std::uint16_t kNbdPort = 10809;

inline constexpr std::size_t kNbdNameMax = 4096;            // The protocol's limit for any string.
inline constexpr std::uint32_t kNbdOptionLengthMax = 8192;  // Ours: a name, and infos in plenty.

// Handshake flags of the server, and of the client: the bits are the same.
inline constexpr std::uint16_t kNbdFixedNewstyle = 1;
inline constexpr std::uint16_t kNbdNoZeroes = 2;

enum class NbdOption : std::uint32_t {
  kExportName = 1,
  kAbort = 2,
  kList = 3,
  kStartTls = 5,
  kInfo = 6,
  kGo = 7,
  kStructuredReply = 8,
  kListMetaContext = 9,
  kSetMetaContext = 10,
  kExtendedHeaders = 11,
};

enum class NbdRep : std::uint32_t {
  kAck = 1,
  kServer = 2,
  kInfo = 3,
  kMetaContext = 4,
  kErrUnsup = 0x80000001,
  kErrPolicy = 0x80000002,
  kErrInvalid = 0x80000003,
  kErrPlatform = 0x80000004,
  kErrTlsReqd = 0x80000005,
  kErrUnknown = 0x80000006,
  kErrShutdown = 0x80000007,
  kErrBlockSizeReqd = 0x80000008,
  kErrTooBig = 0x80000009,
};

enum class NbdInfo : std::uint16_t { kExport = 0, kName = 1, kDescription = 2, kBlockSize = 3 };

// Transmission flags: what an export can do.
inline constexpr std::uint16_t kNbdHasFlags = 0x001;
inline constexpr std::uint16_t kNbdReadOnly = 0x002;
inline constexpr std::uint16_t kNbdSendFlush = 0x004;
inline constexpr std::uint16_t kNbdSendFua = 0x008;
inline constexpr std::uint16_t kNbdRotational = 0x010;
inline constexpr std::uint16_t kNbdSendTrim = 0x020;
inline constexpr std::uint16_t kNbdSendWriteZeroes = 0x040;
inline constexpr std::uint16_t kNbdSendDf = 0x080;
inline constexpr std::uint16_t kNbdCanMultiConn = 0x100;
inline constexpr std::uint16_t kNbdSendCache = 0x400;
inline constexpr std::uint16_t kNbdSendFastZero = 0x800;

enum class NbdCmd : std::uint16_t {
  kRead = 0,
  kWrite = 1,
  kDisc = 2,
  kFlush = 3,
  kTrim = 4,
  kCache = 5,
  kWriteZeroes = 6,
  kBlockStatus = 7,
};

inline constexpr std::uint16_t kNbdCmdFua = 0x01;
inline constexpr std::uint16_t kNbdCmdNoHole = 0x02;
inline constexpr std::uint16_t kNbdCmdDf = 0x04;
inline constexpr std::uint16_t kNbdCmdReqOne = 0x08;
inline constexpr std::uint16_t kNbdCmdFastZero = 0x10;

inline constexpr std::uint16_t kNbdReplyDone = 1;  // Flag of a structured reply chunk.

enum class NbdReplyType : std::uint16_t {
  kNone = 0,
  kOffsetData = 1,
  kOffsetHole = 2,
  kBlockStatus = 5,
  kError = 0x8001,
  kErrorOffset = 0x8002,
};

struct NbdServerGreeting {
  be64 magic{kNbdMagic};
  be64 option_magic{kNbdOptionMagic};
  be16 flags{std::uint16_t{kNbdFixedNewstyle | kNbdNoZeroes}};
};
static_assert(kIsWireStruct<NbdServerGreeting> && sizeof(NbdServerGreeting) == 18);

struct NbdClientFlags {
  be32 flags{std::uint32_t{kNbdFixedNewstyle | kNbdNoZeroes}};
};
static_assert(kIsWireStruct<NbdClientFlags> && sizeof(NbdClientFlags) == 4);

struct NbdOptionHeader {  // `length` bytes follow.
  be64 magic{kNbdOptionMagic};
  be32 option{};
  be32 length{};
};
static_assert(kIsWireStruct<NbdOptionHeader> && sizeof(NbdOptionHeader) == 16);

struct NbdOptionReply {  // `length` bytes follow.
  be64 magic{kNbdOptionReplyMagic};
  be32 option{};
  be32 type{};
  be32 length{};
};
static_assert(kIsWireStruct<NbdOptionReply> && sizeof(NbdOptionReply) == 20);

struct NbdExportNameReply {  // 124 zeros follow, unless both sides set kNbdNoZeroes.
  be64 size{};
  be16 flags{};
};
static_assert(kIsWireStruct<NbdExportNameReply> && sizeof(NbdExportNameReply) == 10);
inline constexpr std::size_t kNbdExportNameZeroes = 124;

struct NbdInfoExport {  // Payload of kInfo.
  be16 type{static_cast<std::uint16_t>(NbdInfo::kExport)};
  be64 size{};
  be16 flags{};
};
static_assert(kIsWireStruct<NbdInfoExport> && sizeof(NbdInfoExport) == 12);

struct NbdInfoBlockSize {  // Payload of kInfo.
  be16 type{static_cast<std::uint16_t>(NbdInfo::kBlockSize)};
  be32 minimum{};
  be32 preferred{};
  be32 maximum{};  // Of a payload: READ and WRITE only.
};
static_assert(kIsWireStruct<NbdInfoBlockSize> && sizeof(NbdInfoBlockSize) == 14);

struct NbdRequest {  // A WRITE's `length` bytes follow.
  be32 magic{kNbdRequestMagic};
  be16 flags{};
  be16 type{};
  be64 cookie{};
  be64 offset{};
  be32 length{};

  [[nodiscard]] NbdCmd cmd() const { return static_cast<NbdCmd>(type.get()); }
};
static_assert(kIsWireStruct<NbdRequest> && sizeof(NbdRequest) == 28);
static_assert(offsetof(NbdRequest, cookie) == 8 && offsetof(NbdRequest, offset) == 16);
static_assert(offsetof(NbdRequest, length) == 24);

struct NbdSimpleReply {  // A READ's data follow if error is 0.
  be32 magic{kNbdSimpleReplyMagic};
  be32 error{};
  be64 cookie{};
};
static_assert(kIsWireStruct<NbdSimpleReply> && sizeof(NbdSimpleReply) == 16);

struct NbdChunkHeader {  // Of a structured reply; `length` bytes follow.
  be32 magic{kNbdStructuredReplyMagic};
  be16 flags{};
  be16 type{};
  be64 cookie{};
  be32 length{};
};
static_assert(kIsWireStruct<NbdChunkHeader> && sizeof(NbdChunkHeader) == 20);

struct NbdOffsetData {  // kOffsetData; length - 8 bytes of data follow.
  NbdChunkHeader header{};
  be64 offset{};
};
static_assert(kIsWireStruct<NbdOffsetData> && sizeof(NbdOffsetData) == 28);

struct NbdOffsetHole {  // kOffsetHole.
  NbdChunkHeader header{};
  be64 offset{};
  be32 size{};
};
static_assert(kIsWireStruct<NbdOffsetHole> && sizeof(NbdOffsetHole) == 32);

struct NbdErrorChunk {  // kError; message_length bytes of text follow.
  NbdChunkHeader header{};
  be32 error{};
  be16 message_length{};
};
static_assert(kIsWireStruct<NbdErrorChunk> && sizeof(NbdErrorChunk) == 26);

}  // namespace ibnbd::proto

#include "proto/nbd_codec.h"  // IWYU pragma: export
