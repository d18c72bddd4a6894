// SPDX-License-Identifier: Apache-2.0
// What is malformed about connect and INFO messages, reason by reason.
#include "proto/reasons.h"
#include "proto/rtrs.h"

namespace ibnbd::proto {
namespace {

const ConnReq kConnReq{.cid_num = le16(5), .recon_cnt = le16(1)};
const ConnRsp kConnRsp{.queue_depth = le16(512),
                       .max_io_size = le32(kDefaultIoSizeMax),
                       .max_hdr_size = le32(kDefaultHdrSizeMax)};

InfoReq Named(std::string_view name) {
  InfoReq request;
  (void)SetName(&request.name, name);  // Test names fit.
  return request;
}

std::function<const char*()> Req(const ConnReq& request) {
  return [request] {
    ConnReq out;
    return DecodeConnReq(AsBytes(request), &out);
  };
}
std::function<const char*()> Rsp(const ConnRsp& response) {
  return [response] {
    ConnRsp out;
    return DecodeConnRsp(AsBytes(response), &out);
  };
}
std::function<const char*()> Info(const InfoReq& request) {
  return [request] {
    InfoReq out;
    return DecodeInfoReq(AsBytes(request), &out);
  };
}

constexpr std::uint32_t kChunk = 8192;

// A path with eight chunks of 8 KiB is told of `descs`; `cut` bytes are missing at the end.
std::function<const char*()> Descs(std::vector<SgDesc> descs, std::size_t cut = 0,
                                   std::uint16_t type = 1) {
  return [descs = std::move(descs), cut, type] {
    Bytes bytes(sizeof(InfoRspHeader) + descs.size() * sizeof(SgDesc));
    const InfoRspHeader header{.type = le16(type),
                               .sg_cnt = le16(static_cast<std::uint16_t>(descs.size()))};
    Encode(std::span(bytes), header);
    for (std::size_t i = 0; i < descs.size(); ++i) {
      Encode(std::span(bytes).subspan(sizeof(header) + i * sizeof(SgDesc)), descs[i]);
    }
    bytes.resize(bytes.size() - cut);
    std::vector<ChunkAddress> chunks(8);
    return DecodeInfoRsp(bytes, kChunk, chunks);
  };
}
SgDesc Desc(std::uint32_t len, std::uint64_t addr = 0x10000) {
  return {.addr = le64(addr), .key = le32(1), .len = le32(len)};
}

}  // namespace

std::vector<ReasonCase> RtrsControlReasons() {
  return {
      {"conn_req: too short",
       [] {
         ConnReq out;
         return DecodeConnReq(Short(kConnReq), &out);
       }},
      {"conn_req: bad magic", Req(With(kConnReq, [](auto& m) { m.magic = le16(0x1bbe); }))},
      {"conn_req: bad major version",
       Req(With(kConnReq, [](auto& m) { m.version = le16(0x0300); }))},
      {"conn_req: cid_num is 0", Req(With(kConnReq, [](auto& m) { m.cid_num = le16(0); }))},
      {"conn_req: cid_num > 4096", Req(With(kConnReq, [](auto& m) { m.cid_num = le16(4097); }))},
      {"conn_req: cid >= cid_num", Req(With(kConnReq, [](auto& m) { m.cid = le16(5); }))},
      {"conn_rsp: too short",
       [] {
         ConnRsp out;
         return DecodeConnRsp(Short(kConnRsp), &out);
       }},
      {"conn_rsp: bad magic", Rsp(With(kConnRsp, [](auto& m) { m.magic = le16(0); }))},
      {"conn_rsp: bad major version",
       Rsp(With(kConnRsp, [](auto& m) { m.version = le16(0x0100); }))},
      {"conn_rsp: errno is positive", Rsp(With(kConnRsp, [](auto& m) { m.error = le16(5); }))},
      {"conn_rsp: queue_depth is 0", Rsp(With(kConnRsp, [](auto& m) { m.queue_depth = le16(0); }))},
      {"conn_rsp: max_io_size is less than a sector",
       Rsp(With(kConnRsp, [](auto& m) { m.max_io_size = le32(511); }))},
      {"conn_rsp: max_hdr_size cannot hold the longest request",
       Rsp(With(kConnRsp, [](auto& m) { m.max_hdr_size = le32(287); }))},
      {"conn_rsp: queue_depth and chunk size do not fit in the immediate",
       Rsp(With(kConnRsp, [](auto& m) { m.max_io_size = le32(0xffffffff); }))},
      {"conn_rsp: queue_depth and chunk size do not fit in the immediate",
       Rsp(With(kConnRsp, [](auto& m) { m.max_io_size = le32(524288 - 4096 + 1); }))},
      {"info_req: too short",
       [] {
         InfoReq out;
         return DecodeInfoReq(Short(Named("a")), &out);
       }},
      {"info_req: bad type", Info(With(Named("a"), [](auto& m) { m.type = le16(1); }))},
      {"info_req: name is not NUL-terminated",
       Info(With(Named("a"), [](auto& m) { m.name.fill('a'); }))},
      {"info_req: name is empty", Info(Named(""))},
      {"info_req: name has a '/'", Info(Named("a/b"))},
      {"info_req: name has a '.'", Info(Named("a.b"))},
      {"info_req: name has a control character", Info(Named("a\nb"))},
      {"info_rsp: too short",
       [] {
         std::vector<ChunkAddress> chunks(8);
         return DecodeInfoRsp(Short(InfoRspHeader{}), kChunk, chunks);
       }},
      {"info_rsp: bad type", Descs({Desc(8 * kChunk)}, 0, 0)},
      {"info_rsp: sg_cnt is 0", Descs({})},
      {"info_rsp: sg_cnt > queue_depth", Descs(std::vector<SgDesc>(9, Desc(kChunk)))},
      {"info_rsp: sg_cnt does not divide queue_depth", Descs(std::vector<SgDesc>(3, Desc(kChunk)))},
      {"info_rsp: too short for its sg_cnt", Descs({Desc(8 * kChunk)}, 1)},
      {"info_rsp: desc len is 0", Descs({Desc(8 * kChunk), Desc(0)})},
      {"info_rsp: desc len is not a multiple of the chunk size", Descs({Desc(8 * kChunk + 1)})},
      {"info_rsp: desc wraps around the address space",
       Descs({Desc(8 * kChunk, ~0ull - 8 * kChunk + 2)})},
      {"info_rsp: descs hold too many chunks", Descs({Desc(9 * kChunk)})},
      {"info_rsp: descs hold too many chunks", Descs({Desc(8 * kChunk), Desc(kChunk)})},
      {"info_rsp: descs hold too few chunks", Descs({Desc(4 * kChunk), Desc(3 * kChunk)})},
  };
}

}  // namespace ibnbd::proto
