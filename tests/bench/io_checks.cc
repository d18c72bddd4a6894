// SPDX-License-Identifier: Apache-2.0
// What the server's distrust costs: decodes a request of 4 KiB, so many times, with the checks of
// the data path or with none, for a program that counts instructions (docs/benchmarking.md):
//   valgrind --tool=callgrind --callgrind-out-file=/dev/null ibnbd-io-checks checked read 100000
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "proto/rnbd.h"
#include "proto/rnbd_codec.h"
#include "proto/rtrs_io.h"

namespace ibnbd::proto {
namespace {

constexpr std::uint32_t kIoSize = 4096;
constexpr std::uint32_t kIoSizeMax = 128 * 1024;
constexpr std::uint64_t kDeviceSize = std::uint64_t{1} << 30;

struct Decoded {
  IoRequest request;
  Io io;
};

// As server_lane_datapath.cc and server_io_lane_datapath.cc do it.
[[gnu::noinline]] bool DecodeChecked(std::span<const std::byte> chunk, std::uint32_t mem_id,
                                     std::uint32_t off, Decoded* out) {
  if (mem_id >= 128) return false;
  IoRequest& request = out->request;
  if (DecodeIoRequest(chunk, off, {.max_io_size = kIoSizeMax}, &request) != nullptr) return false;
  const std::span<const std::byte> message(request.usr.data(), request.usr_len);
  RnbdType type{};
  if (DecodeType(message, &type) != nullptr || type != RnbdType::kIo) return false;
  if (DecodeIo(message, {request.data_len, request.is_read}, &out->io) != nullptr) return false;
  const std::uint64_t offset = out->io.sector.get() * 512;
  const std::uint32_t length = out->io.bi_size.get();
  return out->io.device_id.get() < 4 && ((offset | length) & 511) == 0 && length <= kDeviceSize &&
         offset <= kDeviceSize - length;
}

// The same fields, taken for what they say, where they lie.
[[gnu::noinline]] bool DecodeTrusting(std::span<const std::byte> chunk, std::uint32_t,
                                      std::uint32_t off, Decoded* out) {
  internal::RequestHeader header;
  std::memcpy(&header, chunk.data() + off, sizeof(header));
  IoRequest& request = out->request;
  request.usr_len = header.read.usr_len.get();
  request.data_len = off - request.usr_len;
  request.is_read = header.read.type.get() == static_cast<std::uint32_t>(RtrsType::kRead);
  request.has_desc = request.is_read;
  request.desc_addr = header.desc.addr.get();
  request.desc_key = header.desc.key.get();
  std::memcpy(&out->io, chunk.data() + request.data_len, sizeof(out->io));
  return true;
}

int Run(bool checked, bool is_read, long count) {
  std::vector<std::byte> chunk(kIoSizeMax + kIoSize);
  Io io;
  io.device_id = le32(1);
  io.sector = le64(8);
  io.bi_size = le32(kIoSize);
  io.rw = le32(static_cast<std::uint32_t>(is_read ? IoOp::kRead : IoOp::kWrite));
  const SgDesc desc{.addr = le64(4096), .key = le32(1), .len = le32(kIoSize)};
  const std::span<std::byte> message = std::span(chunk).subspan(kIoSize);
  const std::size_t size = is_read ? EncodeReadRequest(message, AsBytes(io), &desc)
                                   : EncodeWriteRequest(message, AsBytes(io));
  bool good = size != 0;
  std::uint64_t sum = 0;
  const auto decode = checked ? DecodeChecked : DecodeTrusting;
  for (long i = 0; i < count; ++i) {
    Decoded decoded;
    good = decode(chunk, 3, kIoSize + sizeof(io), &decoded) && good;
    sum += decoded.io.sector.get() + decoded.request.data_len;
  }
  return good && sum == static_cast<std::uint64_t>(count) * (8 + kIoSize) ? 0 : 1;
}

}  // namespace
}  // namespace ibnbd::proto

int main(int argc, char** argv) {
  const std::string how = argc == 4 ? argv[1] : "";
  const std::string what = argc == 4 ? argv[2] : "";
  const long count = argc == 4 ? std::atol(argv[3]) : 0;
  if ((how != "checked" && how != "trusting") || (what != "read" && what != "write") ||
      count <= 0) {
    std::fprintf(stderr, "usage: ibnbd-io-checks checked|trusting read|write COUNT\n");
    return 2;
  }
  return ibnbd::proto::Run(how == "checked", what == "read", count);
}
