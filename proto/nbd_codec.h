// SPDX-License-Identifier: Apache-2.0
// Decoders and makers of NBD messages for a server.  Include "proto/nbd.h".  Used by nbd-bridge on
// the thread of the connection; CheckNbdRequest() and the Make* functions are on its data path.
//
// A decoder returns null, or the reason why the message is malformed.  For the structs read off the
// stream (flags, option header, request) that means that the stream is out of step, and that the
// connection must be closed; for the payload of an option, NbdRep::kErrInvalid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "proto/nbd.h"
#include "proto/wire_errno.h"

namespace ibnbd::proto {

[[nodiscard]] inline const char* DecodeNbdClientFlags(std::span<const std::byte> in,
                                                      NbdClientFlags* out) {
  if (!CopyOut(in, out)) return "nbd_client_flags: too short";
  const std::uint32_t flags = out->flags.get();
  if ((flags & ~std::uint32_t{kNbdFixedNewstyle | kNbdNoZeroes}) != 0) {
    return "nbd_client_flags: unknown flag";
  }
  if ((flags & kNbdFixedNewstyle) == 0) return "nbd_client_flags: not fixed newstyle";
  return nullptr;
}

[[nodiscard]] inline const char* DecodeNbdOptionHeader(std::span<const std::byte> in,
                                                       NbdOptionHeader* out) {
  if (!CopyOut(in, out)) return "nbd_option: too short";
  if (out->magic.get() != kNbdOptionMagic) return "nbd_option: bad magic";
  if (out->length.get() > kNbdOptionLengthMax) return "nbd_option: length > 8192";
  return nullptr;
}

// The payload of EXPORT_NAME: nothing but a name, which may be empty (the default export).
[[nodiscard]] inline const char* DecodeNbdExportName(std::span<const std::byte> payload,
                                                     std::string_view* name) {
  if (payload.size() > kNbdNameMax) return "nbd_export_name: longer than 4096";
  *name = {reinterpret_cast<const char*>(payload.data()), payload.size()};
  if (name->find('\0') != name->npos) return "nbd_export_name: has a NUL";
  return nullptr;
}

// INFO or GO.
struct NbdGo {
  std::string_view name;    // Points into the payload.
  bool wants_name = false;  // The kinds of information that were asked for by number.  kExport
  bool wants_description = false;  // is always sent; the others may be sent unasked.
  bool wants_block_size = false;
};

[[nodiscard]] inline const char* DecodeNbdGo(std::span<const std::byte> payload, NbdGo* out) {
  *out = NbdGo{};
  be32 name_length;
  if (!CopyOut(payload, &name_length)) return "nbd_go: too short for the length of the name";
  payload = payload.subspan(sizeof(name_length));
  const std::size_t length = name_length.get();
  if (length > kNbdNameMax) return "nbd_go: name is longer than 4096";
  if (length > payload.size()) return "nbd_go: name is longer than the option";
  out->name = {reinterpret_cast<const char*>(payload.data()), length};
  if (out->name.find('\0') != out->name.npos) return "nbd_go: name has a NUL";
  payload = payload.subspan(length);
  be16 count;
  if (!CopyOut(payload, &count)) return "nbd_go: too short for the number of requests";
  payload = payload.subspan(sizeof(count));
  if (payload.size() != std::size_t{count.get()} * sizeof(be16)) {
    return "nbd_go: length does not match the number of requests";
  }
  for (std::size_t at = 0; at < payload.size(); at += sizeof(be16)) {
    be16 info;
    std::memcpy(&info, payload.data() + at, sizeof(info));
    out->wants_name |= info.get() == static_cast<std::uint16_t>(NbdInfo::kName);
    out->wants_description |= info.get() == static_cast<std::uint16_t>(NbdInfo::kDescription);
    out->wants_block_size |= info.get() == static_cast<std::uint16_t>(NbdInfo::kBlockSize);
  }
  return nullptr;
}

// Options that carry nothing: LIST, ABORT, STRUCTURED_REPLY, STARTTLS.
[[nodiscard]] inline const char* DecodeNbdEmptyOption(std::span<const std::byte> payload) {
  return payload.empty() ? nullptr : "nbd_option: payload where there must be none";
}

[[nodiscard]] inline const char* DecodeNbdRequest(std::span<const std::byte> in, NbdRequest* out) {
  if (!CopyOut(in, out)) return "nbd_request: too short";
  if (out->magic.get() != kNbdRequestMagic) return "nbd_request: bad magic";
  return nullptr;
}

// What an export was announced as, and holds requests to.
struct NbdExportLimits {
  std::uint64_t size = 0;
  std::uint32_t block_size_min = 1;    // A power of two.
  std::uint32_t payload_size_max = 0;  // READ and WRITE.
  std::uint16_t flags = 0;             // Transmission flags.
};

struct NbdRefusal {
  const char* reason = nullptr;  // Null: the request is good.
  std::uint32_t error = 0;       // What to answer otherwise.
};

namespace internal {
// What a command needs the export to announce, and the flags it may carry; FUA is legal on all.
struct NbdRule {
  std::uint16_t needs = 0;
  std::uint16_t cmd_flags = 0;
  bool writes = false;
  bool has_payload = false;  // One way or the other.
};
inline constexpr std::array<NbdRule, 7> kNbdRules = {{
    {.cmd_flags = kNbdCmdDf, .has_payload = true},  // READ
    {.writes = true, .has_payload = true},          // WRITE
    {},                                             // DISC
    {.needs = kNbdSendFlush},                       // FLUSH
    {.needs = kNbdSendTrim, .writes = true},        // TRIM
    {.needs = kNbdSendCache},                       // CACHE
    {.needs = kNbdSendWriteZeroes,
     .cmd_flags = kNbdCmdNoHole | kNbdCmdFastZero,
     .writes = true},  // WRITE_ZEROES
}};

[[nodiscard]] constexpr const char* CheckNbdFlags(const NbdRule& rule, std::uint32_t flags,
                                                  std::uint32_t announced) {
  if ((flags & ~std::uint32_t{rule.cmd_flags} & ~std::uint32_t{kNbdCmdFua}) != 0) {
    return "nbd_request: flag that the command does not have";
  }
  if ((flags & kNbdCmdFua) != 0 && (announced & kNbdSendFua) == 0) {
    return "nbd_request: FUA that was not announced";
  }
  if ((flags & kNbdCmdDf) != 0 && (announced & kNbdSendDf) == 0) {
    return "nbd_request: DF that was not announced";
  }
  if ((flags & kNbdCmdFastZero) != 0 && (announced & kNbdSendFastZero) == 0) {
    return "nbd_request: FAST_ZERO that was not announced";
  }
  return nullptr;
}
}  // namespace internal

// Whether an export may be asked to do this.  A refused WRITE still has its payload in the stream.
[[nodiscard]] inline NbdRefusal CheckNbdRequest(const NbdRequest& request,
                                                const NbdExportLimits& limits) {
  const std::uint32_t type = request.type.get();
  if (type >= internal::kNbdRules.size()) return {"nbd_request: unknown command", kNbdEinval};
  const internal::NbdRule& rule = internal::kNbdRules[type];
  // First: a read-only export announces no trim and no zeroes either, but this is the reason why.
  if (rule.writes && (limits.flags & kNbdReadOnly) != 0) {
    return {"nbd_request: the export is read-only", kNbdEperm};
  }
  if ((rule.needs & ~limits.flags) != 0) {
    return {"nbd_request: command that was not announced", kNbdEinval};
  }
  const char* reason = internal::CheckNbdFlags(rule, request.flags.get(), limits.flags);
  if (reason != nullptr) return {reason, kNbdEinval};
  if (request.cmd() == NbdCmd::kFlush || request.cmd() == NbdCmd::kDisc) return {};
  const std::uint64_t offset = request.offset.get();
  const std::uint32_t length = request.length.get();
  if (length == 0) return {"nbd_request: length is 0", kNbdEinval};
  if (rule.has_payload && length > limits.payload_size_max) {
    return {"nbd_request: payload is longer than announced", kNbdEinval};
  }
  if (offset > limits.size || length > limits.size - offset) {
    const bool fills = rule.writes && request.cmd() != NbdCmd::kTrim;
    return {"nbd_request: beyond the end of the export", fills ? kNbdEnospc : kNbdEinval};
  }
  if (((offset | length) & (limits.block_size_min - 1)) != 0) {
    return {"nbd_request: not aligned to the minimum block size", kNbdEinval};
  }
  return {};
}

[[nodiscard]] constexpr NbdOptionReply MakeNbdOptionReply(std::uint32_t option, NbdRep type,
                                                          std::size_t payload_size) {
  return {.option = be32(option),
          .type = be32(static_cast<std::uint32_t>(type)),
          .length = be32(static_cast<std::uint32_t>(payload_size))};
}

// `error` is 0 or a negative errno.
[[nodiscard]] constexpr NbdSimpleReply MakeNbdSimpleReply(be64 cookie, int error) {
  return {.error = be32(NbdFromErrno(error)), .cookie = cookie};
}

[[nodiscard]] constexpr NbdChunkHeader MakeNbdChunk(be64 cookie, NbdReplyType type, bool is_last,
                                                    std::uint32_t length) {
  return {.flags = be16(is_last ? kNbdReplyDone : std::uint16_t{0}),
          .type = be16(static_cast<std::uint16_t>(type)),
          .cookie = cookie,
          .length = be32(length)};
}

// The one chunk of a successful READ; its data follow.
[[nodiscard]] constexpr NbdOffsetData MakeNbdOffsetData(be64 cookie, std::uint64_t offset,
                                                        std::uint32_t data_size) {
  return {.header = MakeNbdChunk(cookie, NbdReplyType::kOffsetData, true, data_size + 8),
          .offset = be64(offset)};
}

// The one chunk of a failed command, without text.  Requires error < 0.
[[nodiscard]] constexpr NbdErrorChunk MakeNbdError(be64 cookie, int error) {
  return {.header = MakeNbdChunk(cookie, NbdReplyType::kError, true, 6),
          .error = be32(NbdFromErrno(error))};
}

}  // namespace ibnbd::proto
