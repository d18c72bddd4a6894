// SPDX-License-Identifier: Apache-2.0
// Every decoder of proto/rnbd.h and proto/rnbd_list.h, over the same bytes.  Input: {data_len or
// start_index: 4 bytes; is_read: 1; message}.
#include "base/check.h"
#include "proto/rnbd.h"
#include "tests/fuzz/fuzz_input.h"

namespace ibnbd::proto {
namespace {

void CheckIo(std::span<const std::byte> in, const IoCarrier& carrier) {
  Io io;
  if (DecodeIo(in, carrier, &io) != nullptr) return;
  CHECK(io.op() <= IoOp::kWriteZeroes);
  CHECK_EQ(io.flags() & ~KnownIoFlags(kRnbdMinor), 0u);
  const bool has_data = io.op() == IoOp::kRead || io.op() == IoOp::kWrite;
  CHECK_EQ(carrier.data_len, has_data ? io.bi_size.get() : 0u);
  if (has_data) CHECK_EQ(carrier.is_read, io.op() == IoOp::kRead);
  if (io.op() == IoOp::kFlush) return;
  CHECK(io.bi_size.get() != 0 && io.bi_size.get() % kSectorSize == 0);
  const std::uint64_t bytes_max = std::uint64_t{1} << 63;
  CHECK_LT(io.sector.get() * kSectorSize, bytes_max);
}

void CheckList(std::span<const std::byte> in, std::uint32_t start_index) {
  ListRsp list;
  if (DecodeListRsp(in, start_index, &list) != nullptr) return;
  for (std::uint32_t i = 0; i < list.count.get(); ++i) {
    ListEntry entry;
    if (DecodeListEntry(in, i, &entry) == nullptr) CHECK(!NameOf(entry.name).empty());
  }
}

}  // namespace
}  // namespace ibnbd::proto

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ibnbd::proto;
  ibnbd::fuzz::FuzzInput input(data, size);
  const std::uint32_t number = input.U32();
  const IoCarrier carrier{.data_len = number, .is_read = (input.U8() & 1) != 0};
  const std::span<const std::byte> in = input.rest();
  CheckIo(in, carrier);
  CheckList(in, number);
  RnbdType type;
  if (DecodeType(in, &type) == nullptr) CHECK_GE(in.size(), sizeof(RnbdHeader));
  SessInfo info;
  if (DecodeSessInfo(in, &info) == nullptr) CHECK_LE(MakeSessInfoRsp(info).ver, kRnbdMajor);
  if (DecodeSessInfoRsp(in, &info) == nullptr) CHECK(info.ver != 0 && info.ver <= kRnbdMajor);
  Open open;
  if (DecodeOpen(in, &open) == nullptr) {
    CHECK(!NameOf(open.dev_name).empty() && !HasControlCharacter(NameOf(open.dev_name)));
  }
  OpenRsp opened;
  if (DecodeOpenRsp(in, &opened) == nullptr) CHECK_GE(opened.logical_block_size.get(), kSectorSize);
  Close close;
  if (DecodeClose(in, &close) == nullptr) CHECK_GE(in.size(), sizeof(Close));
  List list;
  if (DecodeList(in, &list) == nullptr) CHECK_GE(in.size(), sizeof(List));
  FencePath fence;
  if (DecodeFencePath(in, &fence) == nullptr) CHECK_GE(in.size(), sizeof(FencePath));
  return 0;
}
