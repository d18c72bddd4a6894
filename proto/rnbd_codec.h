// SPDX-License-Identifier: Apache-2.0
// Decoders of the RNBD user messages; they are encoded with Encode() and AsBytes() of endian.h.
// Include "proto/rnbd.h".  DecodeIo() runs once per IO on the server; the others are control path.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "proto/rnbd.h"

namespace ibnbd::proto {

namespace internal {
[[nodiscard]] inline bool IsType(const RnbdHeader& header, RnbdType type) {
  return header.type.get() == static_cast<std::uint16_t>(type);
}
}  // namespace internal

[[nodiscard]] inline const char* DecodeSessInfo(std::span<const std::byte> in, SessInfo* out) {
  if (!CopyOut(in, out)) return "sess_info: too short";
  if (!internal::IsType(out->header, RnbdType::kSessInfo)) return "sess_info: bad type";
  if (out->ver == 0) return "sess_info: ver is 0";
  return nullptr;
}

// What a server answers: the lower of both versions.  `instance_id`: to peers that announce
// kRtrsMinorIbnbd only.
[[nodiscard]] inline SessInfo MakeSessInfoRsp(const SessInfo& request,
                                              const InstanceId& instance_id = {}) {
  return {.header = HeaderOf(RnbdType::kSessInfoRsp),
          .ver = request.ver < kRnbdMajor ? request.ver : kRnbdMajor,
          .instance_id = instance_id};
}

[[nodiscard]] inline const char* DecodeSessInfoRsp(std::span<const std::byte> in, SessInfo* out) {
  if (!CopyOut(in, out)) return "sess_info_rsp: too short";
  if (!internal::IsType(out->header, RnbdType::kSessInfoRsp)) return "sess_info_rsp: bad type";
  if (out->ver == 0) return "sess_info_rsp: ver is 0";
  if (out->ver > kRnbdMajor) return "sess_info_rsp: ver is higher than ours";
  return nullptr;
}

[[nodiscard]] inline const char* DecodeOpen(std::span<const std::byte> in, Open* out) {
  if (!CopyOut(in, out)) return "open: too short";
  if (!internal::IsType(out->header, RnbdType::kOpen)) return "open: bad type";
  if (out->access_mode > AccessMode::kMigration) return "open: unknown access mode";
  const std::string_view name = NameOf(out->dev_name);
  if (name.size() == out->dev_name.size()) return "open: name is not NUL-terminated";
  if (name.empty()) return "open: name is empty";
  if (name.find("..") != name.npos) return "open: name has '..'";
  if (HasControlCharacter(name)) return "open: name has a control character";
  return nullptr;
}

[[nodiscard]] inline const char* DecodeOpenRsp(std::span<const std::byte> in, OpenRsp* out) {
  if (!CopyOut(in, out)) return "open_rsp: too short";
  if (!internal::IsType(out->header, RnbdType::kOpenRsp)) return "open_rsp: bad type";
  if (out->nsectors.get() > kSectorsMax) return "open_rsp: nsectors > 2^54";
  const std::uint32_t block = out->logical_block_size.get();
  if (block == 0) return "open_rsp: logical_block_size is 0";
  if (block < kSectorSize) return "open_rsp: logical_block_size is less than a sector";
  if ((block & (block - 1)) != 0) return "open_rsp: logical_block_size is not a power of two";
  return nullptr;
}

// What the RTRS header of an IO said.
struct IoCarrier {
  std::uint32_t data_len = 0;
  bool is_read = false;
};

namespace internal {
// Why an IO is refused; null if it is not.
[[nodiscard]] inline const char* CheckIo(const Io& io, const IoCarrier& carrier) {
  const std::uint32_t bi_size = io.bi_size.get();
  const IoOp op = io.op();
  if (op > IoOp::kWriteZeroes) return "io: unknown operation";
  if (op == IoOp::kFlush) {  // Linux: sector ~0, bi_size 0.  Neither means anything.
    return carrier.data_len == 0 ? nullptr : "io: FLUSH with data";
  }
  if (bi_size == 0) return "io: bi_size is 0";
  if (bi_size % kSectorSize != 0) return "io: bi_size is not a multiple of 512";
  if (io.sector.get() >= kSectorsMax) return "io: sector >= 2^54";
  if (op == IoOp::kRead || op == IoOp::kWrite) {
    if (carrier.data_len != bi_size) return "io: bi_size != data_len";
    if (carrier.is_read == (op == IoOp::kRead)) return nullptr;
    return op == IoOp::kRead ? "io: READ in an RTRS write" : "io: WRITE in an RTRS read";
  }
  return carrier.data_len == 0 ? nullptr : "io: DISCARD, SECURE_ERASE or WRITE_ZEROES with data";
}
}  // namespace internal

// After it returned null: the operation exists; READ and WRITE have whole sectors of data, as many
// as bi_size says, and go the right way; the others have none; sector + bi_size / 512 does not
// wrap. Whether the range lies in the device, and in whole logical blocks, is for the export to
// check.
[[nodiscard]] inline const char* DecodeIo(std::span<const std::byte> in, const IoCarrier& carrier,
                                          Io* out) {
  if (!CopyOut(in, out)) [[unlikely]] {
    if (in.size() < kIoSizeMin) return "io: too short";
    std::array<std::byte, sizeof(Io)> padded{};
    std::memcpy(padded.data(), in.data(), kIoSizeMin);
    *out = std::bit_cast<Io>(padded);
  }
  if (!internal::IsType(out->header, RnbdType::kIo)) [[unlikely]] {
    return "io: bad type";
  }
  return internal::CheckIo(*out, carrier);
}

[[nodiscard]] inline const char* DecodeClose(std::span<const std::byte> in, Close* out) {
  if (!CopyOut(in, out)) return "close: too short";
  if (!internal::IsType(out->header, RnbdType::kClose)) return "close: bad type";
  return nullptr;
}

[[nodiscard]] inline const char* DecodeFencePath(std::span<const std::byte> in, FencePath* out) {
  if (!CopyOut(in, out)) return "fence_path: too short";
  if (!internal::IsType(out->header, RnbdType::kFencePath)) return "fence_path: bad type";
  return nullptr;
}

}  // namespace ibnbd::proto
