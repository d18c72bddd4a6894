// SPDX-License-Identifier: Apache-2.0
// Codecs of the RTRS messages that set a path up: connect request and response (private data of the
// connection manager), INFO_REQ and INFO_RSP (the first messages of connection 0).  Include
// "proto/rtrs.h".  Control path, any thread, no allocation.
//
// A decoder copies the message out of `in`, reading it once, and returns null, or the reason why it
// is malformed; *out is then unspecified.  Messages may be longer than their struct: networks pad.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

#include "proto/names.h"
#include "proto/rtrs.h"
#include "proto/rtrs_imm.h"

namespace ibnbd::proto {

[[nodiscard]] inline const char* DecodeConnReq(std::span<const std::byte> in, ConnReq* out) {
  if (!CopyOut(in, out)) return "conn_req: too short";
  if (out->magic.get() != kRtrsMagic) return "conn_req: bad magic";
  if (out->version.get() >> 8 != kRtrsMajor) return "conn_req: bad major version";
  const std::uint32_t cid_num = out->cid_num.get();
  if (cid_num == 0) return "conn_req: cid_num is 0";
  if (cid_num > kConsMax) return "conn_req: cid_num > 4096";
  if (out->cid.get() >= cid_num) return "conn_req: cid >= cid_num";
  return nullptr;
}

// 0 if the server accepted, else the negative errno it rejected with.
[[nodiscard]] inline int ConnRspError(const ConnRsp& rsp) {
  const int error = static_cast<std::int16_t>(rsp.error.get());
  return error == 0 ? 0 : ErrnoFromWire(static_cast<std::uint32_t>(-error));
}

[[nodiscard]] inline ConnRsp MakeConnReject(int error) {
  return {.error = le16(static_cast<std::uint16_t>(-static_cast<int>(WireFromErrno(error))))};
}

// Accepts and rejects alike; only an accept has its offer checked.
[[nodiscard]] inline const char* DecodeConnRsp(std::span<const std::byte> in, ConnRsp* out) {
  if (!CopyOut(in, out)) return "conn_rsp: too short";
  if (out->magic.get() != kRtrsMagic) return "conn_rsp: bad magic";
  if (out->version.get() >> 8 != kRtrsMajor) return "conn_rsp: bad major version";
  const int error = static_cast<std::int16_t>(out->error.get());
  if (error > 0) return "conn_rsp: errno is positive";
  if (error < 0) return nullptr;
  if (out->queue_depth.get() == 0) return "conn_rsp: queue_depth is 0";
  const std::uint64_t io_size = out->max_io_size.get();
  const std::uint64_t hdr_size = out->max_hdr_size.get();
  if (io_size < 512) return "conn_rsp: max_io_size is less than a sector";
  if (hdr_size < kRequestTailMax) return "conn_rsp: max_hdr_size cannot hold the longest request";
  if (io_size + hdr_size > 1u << kImmPayloadBits ||
      !ImmBudgetFits(out->queue_depth.get(), static_cast<std::uint32_t>(io_size + hdr_size))) {
    return "conn_rsp: queue_depth and chunk size do not fit in the immediate";
  }
  return nullptr;
}

[[nodiscard]] inline const char* DecodeInfoReq(std::span<const std::byte> in, InfoReq* out) {
  if (!CopyOut(in, out)) return "info_req: too short";
  if (out->type.get() != static_cast<std::uint16_t>(RtrsType::kInfoReq)) {
    return "info_req: bad type";
  }
  const std::string_view name = NameOf(out->name);
  if (name.size() == out->name.size()) return "info_req: name is not NUL-terminated";
  if (name.empty()) return "info_req: name is empty";
  if (name.find('/') != name.npos) return "info_req: name has a '/'";
  if (name.find('.') != name.npos) return "info_req: name has a '.'";
  if (HasControlCharacter(name)) return "info_req: name has a control character";
  return nullptr;
}

// Where one chunk of the server is, as a path's client sees it.
struct ChunkAddress {
  std::uint64_t addr = 0;
  std::uint32_t rkey = 0;
};

// Fills `chunks`, whose size is the queue depth.  Requires chunk_size != 0 (DecodeConnRsp()).
[[nodiscard]] inline const char* DecodeInfoRsp(std::span<const std::byte> in,
                                               std::uint32_t chunk_size,
                                               std::span<ChunkAddress> chunks) {
  InfoRspHeader header;
  if (!CopyOut(in, &header)) return "info_rsp: too short";
  if (header.type.get() != static_cast<std::uint16_t>(RtrsType::kInfoRsp)) {
    return "info_rsp: bad type";
  }
  const std::size_t sg_cnt = header.sg_cnt.get();
  if (sg_cnt == 0) return "info_rsp: sg_cnt is 0";
  if (sg_cnt > chunks.size()) return "info_rsp: sg_cnt > queue_depth";
  if (chunks.size() % sg_cnt != 0) return "info_rsp: sg_cnt does not divide queue_depth";
  in = in.subspan(sizeof(header));
  if (in.size() < sg_cnt * sizeof(SgDesc)) return "info_rsp: too short for its sg_cnt";
  std::size_t filled = 0;
  for (std::size_t i = 0; i < sg_cnt; ++i) {
    SgDesc desc;
    std::memcpy(&desc, in.data() + i * sizeof(desc), sizeof(desc));
    const std::uint32_t len = desc.len.get();
    const std::uint64_t addr = desc.addr.get();
    if (len == 0) return "info_rsp: desc len is 0";
    if (len % chunk_size != 0) return "info_rsp: desc len is not a multiple of the chunk size";
    if (len - 1 > std::numeric_limits<std::uint64_t>::max() - addr) {
      return "info_rsp: desc wraps around the address space";
    }
    if (len / chunk_size > chunks.size() - filled) return "info_rsp: descs hold too many chunks";
    for (std::uint32_t at = 0; at < len; at += chunk_size) {
      chunks[filled++] = {.addr = addr + at, .rkey = desc.key.get()};
    }
  }
  if (filled != chunks.size()) return "info_rsp: descs hold too few chunks";
  return nullptr;
}

// Returns the size of the message, or 0 when it does not fit in `out`.  1 .. 65535 descriptors.
[[nodiscard]] inline std::size_t EncodeInfoRsp(std::span<std::byte> out,
                                               std::span<const SgDesc> descs) {
  const InfoRspHeader header{.sg_cnt = le16(static_cast<std::uint16_t>(descs.size()))};
  if (descs.empty() || descs.size() > kQueueDepthMax ||
      out.size() < sizeof(header) + descs.size_bytes()) {
    return 0;
  }
  std::memcpy(out.data(), &header, sizeof(header));
  std::memcpy(out.data() + sizeof(header), descs.data(), descs.size_bytes());
  return sizeof(header) + descs.size_bytes();
}

}  // namespace ibnbd::proto
