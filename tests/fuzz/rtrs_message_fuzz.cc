// SPDX-License-Identifier: Apache-2.0
// Every decoder of proto/rtrs.h, over the same bytes.  What a decoder accepts must keep the
// promises that its callers build on.  Input: {off, max_io_size, msg_id or chunk size: 4 bytes
// each; queue depth: 2; message or chunk}.
#include <cstring>
#include <vector>

#include "base/check.h"
#include "proto/rtrs.h"
#include "tests/fuzz/fuzz_input.h"

namespace ibnbd::proto {
namespace {

void CheckIoRequest(std::span<const std::byte> chunk, std::uint32_t off, std::uint32_t io_size) {
  IoRequest request;
  if (DecodeIoRequest(chunk, off, {.max_io_size = io_size}, &request) != nullptr) return;
  CHECK_LE(request.data_len, io_size);
  CHECK_LE(request.usr_len, request.usr.size());
  CHECK_EQ(request.data_len + request.usr_len, off);
  CHECK_LT(off, chunk.size());
  CHECK(request.has_desc ? request.is_read && request.data_len != 0 : !request.need_inval);
  if (request.has_desc) CHECK(request.desc_addr + (request.data_len - 1) >= request.desc_addr);
  CHECK(std::memcmp(request.usr.data(), chunk.data() + request.data_len, request.usr_len) == 0);
}

void CheckControl(std::span<const std::byte> in, std::uint32_t number, std::uint16_t depth) {
  ConnReq request;
  if (DecodeConnReq(in, &request) == nullptr) CHECK(request.cid.get() < request.cid_num.get());
  ConnRsp response;
  if (DecodeConnRsp(in, &response) == nullptr && ConnRspError(response) == 0) {
    CHECK(ImmBudgetFits(response.queue_depth.get(), response.chunk_size()));
  }
  InfoReq info;
  if (DecodeInfoReq(in, &info) == nullptr) CHECK_LE(NameOf(info.name).size(), kSessionNameMax);
  RkeyRsp rkey;
  if (DecodeRkeyRsp(in, number, &rkey) == nullptr) CHECK_EQ(rkey.buf_id.get(), number);
  std::vector<ChunkAddress> chunks(depth);
  if (number != 0) (void)DecodeInfoRsp(in, number, chunks);
  const std::uint32_t queue_depth = depth == 0 ? 1 : depth;
  const IoReqImm imm = IoReqImmLayout(queue_depth).Unpack(number);
  CHECK_EQ(IoReqImmLayout(queue_depth).Pack(imm), number & 0x0fffffffu);
  CHECK_LE(UnpackIoRsp(number).error, 0);
}

}  // namespace
}  // namespace ibnbd::proto

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ibnbd::fuzz::FuzzInput input(data, size);
  const std::uint32_t off = input.U32(), io_size = input.U32(), number = input.U32();
  const auto depth = static_cast<std::uint16_t>(input.U16() % 1025);
  ibnbd::proto::CheckIoRequest(input.rest(), off, io_size);
  ibnbd::proto::CheckControl(input.rest(), number, depth);
  return 0;
}
