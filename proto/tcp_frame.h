// SPDX-License-Identifier: Apache-2.0
// How sends, writes and immediates travel over a byte stream: the greeting that opens a connection
// and the header in front of every frame.  tcp_framing.md is the specification; this is its
// transcript. Pure: structs, and functions that say why a header is refused.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "proto/endian.h"

namespace ibnbd::proto::tcp {

// --- The greeting. ---

inline constexpr std::array<char, 8> kGreetingMagic = {'i', 'b', 'n', 'b', 'd', 't', 'c', 'p'};
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::size_t kPrivateDataSizeMax = 256;

enum class GreetingKind : std::uint8_t { kConnect = 1, kAccept = 2, kReject = 3 };

struct Greeting {  // Followed by `private_data_size` bytes.
  std::array<char, 8> magic{};
  le16 version;
  GreetingKind kind{};
  std::uint8_t reserved0 = 0;  // Zero; ignored.
  le16 private_data_size;
  le16 reserved1;  // Zero; ignored.
};
static_assert(sizeof(Greeting) == 16 && kIsWireStruct<Greeting>);

inline Greeting MakeGreeting(GreetingKind kind, std::size_t private_data_size) {
  Greeting greeting;
  greeting.magic = kGreetingMagic;
  greeting.version = le16(kVersion);
  greeting.kind = kind;
  greeting.private_data_size = le16(static_cast<std::uint16_t>(private_data_size));
  return greeting;
}

// Null if it is well formed; else the reason.
inline const char* WhyInvalid(const Greeting& greeting) {
  if (greeting.magic != kGreetingMagic) return "greeting: not the magic of ibnbd's tcp fabric";
  if (greeting.version.get() != kVersion) return "greeting: unknown version";
  if (greeting.kind != GreetingKind::kConnect && greeting.kind != GreetingKind::kAccept &&
      greeting.kind != GreetingKind::kReject) {
    return "greeting: unknown kind";
  }
  if (greeting.private_data_size.get() > kPrivateDataSizeMax) {
    return "greeting: more than 256 bytes of private data";
  }
  return nullptr;
}

// --- Frames. ---

enum class FrameOpcode : std::uint8_t {
  // Data frames: counted, acknowledged, followed by `length` bytes.
  kSend = 1,
  kSendImm = 2,
  kSendInvalidate = 3,  // `rkey` is the one to kill.
  kWrite = 4,           // `addr` and `rkey` say where to.
  kWriteImm = 5,
  // Control frames: a header alone.
  kAck = 16,     // Carries nothing but ack_count.
  kRefuse = 17,  // The last frame: the data frame after the first ack_count ones was refused.
};

// In `flags`.
inline constexpr std::uint8_t kAckWanted = 1;  // The sender awaits word that this frame is placed.
inline constexpr std::uint8_t kAckNow =
    2;  // And is short of room: do not wait for a frame to ride on.
inline constexpr std::uint8_t kKnownFlags = kAckWanted | kAckNow;

// In `imm` of kRefuse.
enum class RefuseReason : std::uint32_t { kRemoteAccess = 1, kNoReceive = 2, kMalformed = 3 };

inline constexpr std::uint16_t kFrameMagic = 0x1bbd;

struct FrameHeader {
  FrameOpcode opcode{};
  std::uint8_t flags = 0;
  le16 magic;      // Of every frame: a peer that lost its place is noticed here.
  le32 length;     // Bytes that follow.
  le32 imm;        // kSendImm, kWriteImm; else 0.
  le32 rkey;       // kWrite, kWriteImm: of the target; kSendInvalidate: to kill; else 0.
  le64 addr;       // kWrite, kWriteImm; else 0.
  le32 ack_count;  // How many data frames of the other direction are placed, modulo 2^32.
  le32 sequence;   // How many data frames this side sent before this one, modulo 2^32.
};
static_assert(sizeof(FrameHeader) == 32 && kIsWireStruct<FrameHeader>);

inline bool IsData(FrameOpcode opcode) {
  return opcode >= FrameOpcode::kSend && opcode <= FrameOpcode::kWriteImm;
}
inline bool IsWrite(FrameOpcode opcode) {
  return opcode == FrameOpcode::kWrite || opcode == FrameOpcode::kWriteImm;
}
inline bool HasImm(FrameOpcode opcode) {
  return opcode == FrameOpcode::kSendImm || opcode == FrameOpcode::kWriteImm;
}
// True if it takes a posted receive of the peer.
inline bool ConsumesReceive(FrameOpcode opcode) {
  return IsData(opcode) && opcode != FrameOpcode::kWrite;
}

// Null if it is well formed; else the reason.  `expected_sequence`: data frames received so far.
// Whether the target exists is not known here.
inline const char* WhyInvalid(const FrameHeader& header, std::uint32_t expected_sequence) {
  if (header.magic.get() != kFrameMagic) return "frame: bad magic, the stream lost its place";
  const bool control = header.opcode == FrameOpcode::kAck || header.opcode == FrameOpcode::kRefuse;
  if (!control && !IsData(header.opcode)) return "frame: unknown opcode";
  if ((header.flags & ~kKnownFlags) != 0) return "frame: unknown flags";
  if (header.sequence.get() != expected_sequence) return "frame: wrong sequence number";
  if (control && (header.length.get() != 0 || header.flags != 0)) {
    return "frame: a control frame with a payload or flags";
  }
  const bool may_imm = HasImm(header.opcode) || header.opcode == FrameOpcode::kRefuse;
  if (!may_imm && header.imm.get() != 0) return "frame: an immediate where none belongs";
  const bool may_rkey = IsWrite(header.opcode) || header.opcode == FrameOpcode::kSendInvalidate;
  if (!may_rkey && header.rkey.get() != 0) return "frame: an rkey where none belongs";
  if (!IsWrite(header.opcode) && header.addr.get() != 0) {
    return "frame: an address where none belongs";
  }
  return nullptr;
}

}  // namespace ibnbd::proto::tcp
