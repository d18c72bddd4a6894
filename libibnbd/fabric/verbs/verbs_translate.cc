// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_translate.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "base/check.h"

namespace ibnbd::verbs {
namespace {

using fabric::Opcode;
using fabric::WcStatus;

// rxe hands the kernel's flag out as it is, which is another bit than that of libibverbs.
constexpr unsigned kRxeWithInvalidate = 1u << 2;

ibv_wr_opcode OpcodeOf(Opcode opcode) {
  switch (opcode) {
    case Opcode::kSend:
      return IBV_WR_SEND;
    case Opcode::kSendImm:
      return IBV_WR_SEND_WITH_IMM;
    case Opcode::kSendInvalidate:
      return IBV_WR_SEND_WITH_INV;
    case Opcode::kWrite:
      return IBV_WR_RDMA_WRITE;
    case Opcode::kWriteImm:
      return IBV_WR_RDMA_WRITE_WITH_IMM;
    case Opcode::kOpenWindow:
    case Opcode::kCloseWindow:
      return IBV_WR_BIND_MW;
    case Opcode::kReceive:
    case Opcode::kReceiveWriteImm:
      break;
  }
  CHECK(false);  // Not something that can be sent.
  return IBV_WR_SEND;
}

std::uint32_t CopySges(std::span<const fabric::Sge> from, ibv_sge* to) {
  std::uint32_t length = 0;
  for (const fabric::Sge& sge : from) {
    *to++ = {reinterpret_cast<std::uintptr_t>(sge.addr), sge.length, sge.lkey};
    length += sge.length;
  }
  return length;
}

}  // namespace

std::uint64_t PackWrName(const WrName& name) {
  return std::uint64_t{name.index} << 48 | std::uint64_t{name.generation} << 32 |
         std::uint64_t{name.is_receive} << 31 | (name.sequence & kSequenceMask);
}

WrName UnpackWrName(std::uint64_t wr_id) {
  WrName name;
  name.index = static_cast<std::uint16_t>(wr_id >> 48);
  name.generation = static_cast<std::uint16_t>(wr_id >> 32);
  name.is_receive = (wr_id >> 31 & 1) != 0;
  name.sequence = static_cast<std::uint32_t>(wr_id) & kSequenceMask;
  return name;
}

void TranslateSend(const fabric::SendRequest& request, std::uint64_t wr_id,
                   std::uint32_t inline_size_max, ibv_sge* sges, ibv_send_wr* wr) {
  *wr = {};
  wr->wr_id = wr_id;
  wr->opcode = OpcodeOf(request.opcode);
  wr->sg_list = request.sges.empty() ? nullptr : sges;
  wr->num_sge = static_cast<int>(request.sges.size());
  const std::uint32_t length = CopySges(request.sges, sges);
  if (request.signaled) wr->send_flags |= IBV_SEND_SIGNALED;
  if (length > 0 && length <= inline_size_max) wr->send_flags |= IBV_SEND_INLINE;
  if (request.opcode == Opcode::kWriteImm || request.opcode == Opcode::kSendImm) {
    wr->imm_data = htonl(request.imm);
  }
  if (request.opcode == Opcode::kSendInvalidate) wr->invalidate_rkey = request.invalidate_rkey;
  if (request.opcode == Opcode::kWrite || request.opcode == Opcode::kWriteImm) {
    // Ignored without data: a stale key must not break what writes nothing.
    wr->wr.rdma.remote_addr = length > 0 ? request.remote.addr : 0;
    wr->wr.rdma.rkey = length > 0 ? request.remote.rkey : 0;
  }
}

void TranslateReceive(const fabric::ReceiveRequest& request, std::uint64_t wr_id, ibv_sge* sges,
                      ibv_recv_wr* wr) {
  *wr = {};
  wr->wr_id = wr_id;
  wr->sg_list = request.sges.empty() ? nullptr : sges;
  wr->num_sge = static_cast<int>(request.sges.size());
  (void)CopySges(request.sges, sges);
}

WcStatus TranslateStatus(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS:
      return WcStatus::kOk;
    case IBV_WC_WR_FLUSH_ERR:
      return WcStatus::kFlushed;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_REM_ABORT_ERR:
      return WcStatus::kPeerGone;
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return WcStatus::kNoReceive;
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_INV_RD_REQ_ERR:
      return WcStatus::kRemoteAccess;
    default:
      return WcStatus::kLocalFault;
  }
}

fabric::Completion TranslateSuccess(const ibv_wc& wc) {
  fabric::Completion completion;
  completion.byte_count = wc.byte_len;
  switch (wc.opcode) {
    case IBV_WC_RECV:
      completion.opcode = Opcode::kReceive;
      completion.has_imm = (wc.wc_flags & IBV_WC_WITH_IMM) != 0;
      completion.has_invalidate =
          !completion.has_imm && (wc.wc_flags & (IBV_WC_WITH_INV | kRxeWithInvalidate)) != 0;
      break;
    case IBV_WC_RECV_RDMA_WITH_IMM:
      completion.opcode = Opcode::kReceiveWriteImm;
      completion.has_imm = true;
      break;
    case IBV_WC_BIND_MW:
      completion.opcode = Opcode::kOpenWindow;
      break;
    case IBV_WC_RDMA_WRITE:
      completion.opcode = Opcode::kWrite;
      break;
    default:
      completion.opcode = Opcode::kSend;
      break;
  }
  if (completion.has_imm) completion.imm = ntohl(wc.imm_data);
  if (completion.has_invalidate) completion.invalidated_rkey = wc.invalidated_rkey;
  return completion;
}

SocketAddress AddressFrom(const sockaddr* address) {
  SocketAddress result;
  if (address == nullptr) return result;
  result.family = address->sa_family;
  if (address->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof in);
    result.port = ntohs(in.sin_port);
    result.length = sizeof in;
  } else if (address->sa_family == AF_INET6) {
    sockaddr_in6 in6{};
    std::memcpy(&in6, address, sizeof in6);
    result.port = ntohs(in6.sin6_port);
    result.length = sizeof in6;
  }
  std::memcpy(result.bytes.data(), address, result.length);
  return result;
}

}  // namespace ibnbd::verbs
