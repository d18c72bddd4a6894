// SPDX-License-Identifier: Apache-2.0
// What is malformed about NBD messages, or refused, reason by reason.
#include "proto/nbd.h"
#include "proto/reasons.h"

namespace ibnbd::proto {
namespace {

constexpr NbdExportLimits kLimits{.size = 1 << 20,
                                  .block_size_min = 512,
                                  .payload_size_max = 65536,
                                  .flags = kNbdHasFlags | kNbdSendWriteZeroes};

std::function<const char*()> Check(NbdCmd cmd, std::uint16_t flags, std::uint64_t offset,
                                   std::uint32_t length, std::uint16_t announced = 0) {
  return [=] {
    const NbdRequest request{.flags = be16(flags),
                             .type = be16(static_cast<std::uint16_t>(cmd)),
                             .offset = be64(offset),
                             .length = be32(length)};
    NbdExportLimits limits = kLimits;
    limits.flags = static_cast<std::uint16_t>(limits.flags | announced);
    return CheckNbdRequest(request, limits).reason;
  };
}

template <typename T>
std::function<const char*()> Decode(const char* (*decoder)(std::span<const std::byte>, T*),
                                    const Bytes& bytes) {
  return [=] {
    T out{};
    return decoder(bytes, &out);
  };
}

Bytes Go(std::uint32_t name_length, const std::string& name, const Bytes& rest) {
  Bytes bytes = ToBytes(AsBytes(be32(name_length)));
  bytes = Concat(bytes, std::as_bytes(std::span(name)));
  return Concat(bytes, rest);
}
Bytes Count(std::uint16_t count) { return ToBytes(AsBytes(be16(count))); }

std::vector<ReasonCase> HandshakeReasons() {
  const std::string nul("a\0b", 3);
  return {
      {"nbd_client_flags: too short", Decode(DecodeNbdClientFlags, Bytes(3))},
      {"nbd_client_flags: unknown flag",
       Decode(DecodeNbdClientFlags, ToBytes(AsBytes(NbdClientFlags{be32(5)})))},
      {"nbd_client_flags: not fixed newstyle",
       Decode(DecodeNbdClientFlags, ToBytes(AsBytes(NbdClientFlags{be32(kNbdNoZeroes)})))},
      {"nbd_option: too short", Decode(DecodeNbdOptionHeader, Short(NbdOptionHeader{}))},
      {"nbd_option: bad magic",
       Decode(DecodeNbdOptionHeader, ToBytes(AsBytes(NbdOptionHeader{.magic = be64(kNbdMagic)})))},
      {"nbd_option: length > 8192",
       Decode(DecodeNbdOptionHeader, ToBytes(AsBytes(NbdOptionHeader{.length = be32(8193)})))},
      {"nbd_option: payload where there must be none",
       [] { return DecodeNbdEmptyOption(Bytes(1)); }},
      {"nbd_export_name: longer than 4096", Decode(DecodeNbdExportName, Bytes(4097))},
      {"nbd_export_name: has a NUL", Decode(DecodeNbdExportName, Bytes(1))},
      {"nbd_go: too short for the length of the name", Decode(DecodeNbdGo, Bytes(3))},
      {"nbd_go: name is longer than 4096",
       Decode(DecodeNbdGo, Go(4097, std::string(4097, 'a'), Count(0)))},
      {"nbd_go: name is longer than the option", Decode(DecodeNbdGo, Go(4, "abc", {}))},
      {"nbd_go: name has a NUL", Decode(DecodeNbdGo, Go(3, nul, Count(0)))},
      {"nbd_go: too short for the number of requests", Decode(DecodeNbdGo, Go(3, "abc", Bytes(1)))},
      {"nbd_go: length does not match the number of requests",
       Decode(DecodeNbdGo, Go(3, "abc", Count(1)))},
      {"nbd_go: length does not match the number of requests",
       Decode(DecodeNbdGo, Go(3, "abc", Concat(Count(0), Bytes(2))))},
  };
}

}  // namespace

std::vector<ReasonCase> NbdReasons() {
  std::vector<ReasonCase> cases = {
      {"nbd_request: too short", Decode(DecodeNbdRequest, Short(NbdRequest{}))},
      {"nbd_request: bad magic",
       Decode(DecodeNbdRequest, ToBytes(AsBytes(NbdRequest{.magic = be32(0)})))},
      {"nbd_request: unknown command", Check(NbdCmd::kBlockStatus, 0, 0, 512)},
      {"nbd_request: unknown command", Check(static_cast<NbdCmd>(0xffff), 0, 0, 512)},
      {"nbd_request: command that was not announced", Check(NbdCmd::kFlush, 0, 0, 0)},
      {"nbd_request: command that was not announced", Check(NbdCmd::kTrim, 0, 0, 512)},
      {"nbd_request: command that was not announced", Check(NbdCmd::kCache, 0, 0, 512)},
      {"nbd_request: flag that the command does not have",
       Check(NbdCmd::kRead, kNbdCmdNoHole, 0, 512)},
      {"nbd_request: flag that the command does not have",
       Check(NbdCmd::kWrite, kNbdCmdDf, 0, 512, kNbdSendDf)},
      {"nbd_request: FUA that was not announced", Check(NbdCmd::kWrite, kNbdCmdFua, 0, 512)},
      {"nbd_request: DF that was not announced", Check(NbdCmd::kRead, kNbdCmdDf, 0, 512)},
      {"nbd_request: FAST_ZERO that was not announced",
       Check(NbdCmd::kWriteZeroes, kNbdCmdFastZero, 0, 512)},
      {"nbd_request: the export is read-only", Check(NbdCmd::kWrite, 0, 0, 512, kNbdReadOnly)},
      {"nbd_request: the export is read-only",
       Check(NbdCmd::kWriteZeroes, 0, 0, 512, kNbdReadOnly)},
      {"nbd_request: length is 0", Check(NbdCmd::kRead, 0, 0, 0)},
      {"nbd_request: payload is longer than announced", Check(NbdCmd::kRead, 0, 0, 65536 + 512)},
      {"nbd_request: beyond the end of the export", Check(NbdCmd::kRead, 0, 1 << 20, 512)},
      {"nbd_request: beyond the end of the export", Check(NbdCmd::kWrite, 0, ~0ull, 512)},
      {"nbd_request: not aligned to the minimum block size", Check(NbdCmd::kRead, 0, 1, 512)},
      {"nbd_request: not aligned to the minimum block size", Check(NbdCmd::kRead, 0, 0, 511)},
  };
  for (ReasonCase& one : HandshakeReasons()) cases.push_back(std::move(one));
  return cases;
}

}  // namespace ibnbd::proto
