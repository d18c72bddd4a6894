// SPDX-License-Identifier: Apache-2.0
// Every decoder of proto/nbd.h, over the same bytes, and the judge of NBD requests.  Input: {export
// size: 8 bytes; payload_size_max: 4; transmission flags: 2; clog2 of the block size: 1; message}.
#include "base/check.h"
#include "proto/nbd.h"
#include "tests/fuzz/fuzz_input.h"

namespace ibnbd::proto {
namespace {

void CheckRequest(std::span<const std::byte> in, const NbdExportLimits& limits) {
  NbdRequest request;
  if (DecodeNbdRequest(in, &request) != nullptr) return;
  const NbdRefusal refusal = CheckNbdRequest(request, limits);
  CHECK_EQ(refusal.reason == nullptr, refusal.error == 0);
  if (refusal.reason != nullptr) return;
  const NbdCmd cmd = request.cmd();
  CHECK(cmd <= NbdCmd::kWriteZeroes);
  if (cmd == NbdCmd::kFlush || cmd == NbdCmd::kDisc) return;
  CHECK_LE(request.offset.get(), limits.size);
  CHECK_LE(request.length.get(), limits.size - request.offset.get());
  CHECK(request.length.get() != 0);
  CHECK_EQ(request.offset.get() % limits.block_size_min, 0u);
  CHECK_EQ(request.length.get() % limits.block_size_min, 0u);
  if (cmd == NbdCmd::kRead || cmd == NbdCmd::kWrite) {
    CHECK_LE(request.length.get(), limits.payload_size_max);
  }
  if (cmd != NbdCmd::kRead && cmd != NbdCmd::kCache) CHECK_EQ(limits.flags & kNbdReadOnly, 0);
}

}  // namespace
}  // namespace ibnbd::proto

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ibnbd::proto;
  ibnbd::fuzz::FuzzInput input(data, size);
  NbdExportLimits limits;
  limits.size = input.U64();
  limits.payload_size_max = input.U32();
  limits.flags = input.U16();
  limits.block_size_min = 1u << (input.U8() % 17);
  const std::span<const std::byte> in = input.rest();
  CheckRequest(in, limits);
  NbdClientFlags flags;
  if (DecodeNbdClientFlags(in, &flags) == nullptr) CHECK_LE(flags.flags.get(), 3u);
  NbdOptionHeader option;
  if (DecodeNbdOptionHeader(in, &option) == nullptr) {
    CHECK_LE(option.length.get(), kNbdOptionLengthMax);
  }
  std::string_view name;
  if (DecodeNbdExportName(in, &name) == nullptr) CHECK_LE(name.size(), kNbdNameMax);
  NbdGo go;
  if (DecodeNbdGo(in, &go) == nullptr) CHECK_LE(go.name.size(), in.size());
  if (DecodeNbdEmptyOption(in) == nullptr) CHECK(in.empty());
  return 0;
}
