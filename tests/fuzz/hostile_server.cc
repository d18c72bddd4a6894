// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/hostile_server.h"

#include <algorithm>
#include <utility>

#include "tests/fuzz/mutate.h"

namespace ibnbd::fuzz {
namespace {

using proto::le16;
using proto::le32;
using proto::le64;

constexpr std::uint32_t kQueueDepth = 5;
constexpr std::uint32_t kIoSizeMax = 8 << 10;
constexpr std::uint32_t kChunkSize = kIoSizeMax + 4096;
static_assert(kQueueDepth * kChunkSize <= RawPeer::kLandingSize);

}  // namespace

HostileServer::HostileServer(FuzzInput& input, sim::World& world)
    : input_(input), peer_(world, world.AddHost("hostile")) {
  chunks_ = peer_.landing();
  peer_.on_incoming = [this](std::unique_ptr<fabric::Incoming> incoming) {
    OnIncoming(std::move(incoming));
  };
  peer_.on_message = [this](std::size_t slot, const fabric::Completion& completion,
                            std::span<const std::byte> message) {
    OnMessage(slot, completion, message);
  };
  address_ = peer_.Listen();
}

// {what: 1 byte; mutations; length: 1}.
void HostileServer::OnIncoming(std::unique_ptr<fabric::Incoming> incoming) {
  const std::uint8_t what = input_.U8() % 8;
  proto::ConnRsp response{.queue_depth = le16(kQueueDepth),
                          .max_io_size = le32(kIoSizeMax),
                          .max_hdr_size = le32(kChunkSize - kIoSizeMax)};
  if (what == 1) response = proto::MakeConnReject(-EBUSY);
  if (what == 2) response.flags = le32(proto::kConnRspNewRkey);
  std::vector<std::byte> message = BytesOf(response);
  Mutate(input_, message);
  const std::size_t missing = input_.U8();
  if (missing < message.size()) message.resize(message.size() - missing);
  if (what == 1 || what == 3) return incoming->Reject(message);
  if (what == 4) return;  // Rejected without data.
  const std::size_t slot = peer_.Accept(*incoming, message);
  if (slot < RawPeer::kSlots) Mischief(slot);
}

void HostileServer::OnMessage(std::size_t slot, const fabric::Completion& completion,
                              std::span<const std::byte> message) {
  Mischief(slot);
  if (completion.opcode == fabric::Opcode::kReceive) return AnswerInfo(slot);
  (void)message;
  switch (proto::ImmTypeOf(completion.imm)) {
    case proto::ImmType::kIoReq:
      return AnswerRequest(slot, completion.imm);
    case proto::ImmType::kHbMsg:
      return SendImm(slot, proto::kImmHbAck);
    default:
      return;
  }
}

// {mutations; length: 1}.
void HostileServer::AnswerInfo(std::size_t slot) {
  struct {
    proto::InfoRspHeader header{.sg_cnt = le16(1)};
    proto::SgDesc desc;
  } response;
  response.desc = {
      .addr = le64(chunks_.addr), .key = le32(chunks_.rkey), .len = le32(kQueueDepth * kChunkSize)};
  std::vector<std::byte> message = BytesOf(response.header);
  const std::vector<std::byte> desc = BytesOf(response.desc);
  message.insert(message.end(), desc.begin(), desc.end());
  Mutate(input_, message);
  const std::size_t missing = input_.U8();
  if (missing < message.size()) message.resize(message.size() - missing);
  fabric::SendRequest send;
  send.opcode = fabric::Opcode::kSend;
  peer_.Post(slot, send, message);
}

// {mutations of the reply; change of the address: 1; mutations of the immediate; copies: 1}.
void HostileServer::AnswerRequest(std::size_t slot, std::uint32_t imm) {
  const proto::IoReqImm where = proto::IoReqImmLayout(kQueueDepth).Unpack(imm);
  if (where.mem_id >= kQueueDepth) return;
  proto::IoRequest request;
  const auto chunk = peer_.landing_memory().subspan(where.mem_id * kChunkSize, kChunkSize);
  if (proto::DecodeIoRequest(chunk, where.off, {kIoSizeMax}, &request) != nullptr) return;
  std::vector<std::byte> reply = ReplyTo(request);
  Mutate(input_, reply);
  fabric::SendRequest send;
  send.opcode = fabric::Opcode::kWriteImm;
  if (request.has_desc) seen_ = {request.desc_addr, request.desc_key};
  send.remote = seen_;
  send.remote.addr += input_.U8();
  le32 answer(proto::PackIoRsp(proto::ImmType::kIoRsp, {.msg_id = where.mem_id}));
  Mutate(input_, std::as_writable_bytes(std::span(&answer, 1)));
  send.imm = answer.get();
  peer_.Post(slot, send, reply);
  for (int copies = input_.U8() % 4; copies > 0; --copies) peer_.PostAgain();
}

std::vector<std::byte> HostileServer::ReplyTo(const proto::IoRequest& request) const {
  std::vector<std::byte> reply;
  if (!request.has_desc) return reply;
  proto::RnbdType type{};
  if (proto::DecodeType(request.user_message(), &type) != nullptr) return reply;
  if (type == proto::RnbdType::kSessInfo) reply = BytesOf(proto::MakeSessInfoRsp({}));
  if (type == proto::RnbdType::kOpen) {
    reply = BytesOf(proto::OpenRsp{.device_id = le32(1),
                                   .nsectors = le64(128),
                                   .max_hw_sectors = le32(kIoSizeMax / 512),
                                   .max_write_zeroes_sectors = le32(64),
                                   .max_discard_sectors = le32(64),
                                   .discard_granularity = le32(512),
                                   .physical_block_size = le16(4096),
                                   .logical_block_size = le16(512),
                                   .cache_policy = proto::kCacheWriteback});
  }
  if (type == proto::RnbdType::kList) {
    reply = BytesOf(proto::ListRsp{.count = le32(1)});
    proto::ListEntry entry{.nsectors = le64(128), .logical_block_size = le32(512)};
    (void)proto::SetName(&entry.name, "vol0");
    const std::vector<std::byte> bytes = BytesOf(entry);
    reply.insert(reply.end(), bytes.begin(), bytes.end());
  }
  reply.resize(request.data_len);
  return reply;
}

// {what: 1 byte; operands}.
void HostileServer::Mischief(std::size_t slot) {
  fabric::SendRequest send;
  switch (input_.U8() % 16) {
    case 1:
      return peer_.Disconnect(slot);
    case 2:
      return peer_.PostAgain();
    case 3:
      return SendImm(slot, input_.U32());
    case 4:
      send.opcode = fabric::Opcode::kSendImm;
      send.imm = input_.U32();
      return peer_.Post(slot, send, input_.Bytes(input_.U8()));
    case 5:
      send.opcode = fabric::Opcode::kWrite;
      send.remote = {
          seen_.addr + static_cast<std::uint64_t>(static_cast<std::int16_t>(input_.U16())),
          seen_.rkey ^ input_.U8()};
      return peer_.Post(slot, send, input_.Bytes(input_.U8()));
    case 6:
      return SendImm(slot, proto::PackIoRsp(proto::ImmType::kIoRsp,
                                            {.msg_id = input_.U8() % 8u, .error = -EIO}));
    case 7:
      send.opcode = fabric::Opcode::kSendInvalidate;
      send.invalidate_rkey = seen_.rkey ^ input_.U8();
      return peer_.Post(slot, send, {});
    default:
      return;
  }
}

void HostileServer::SendImm(std::size_t slot, std::uint32_t imm) {
  fabric::SendRequest send;
  send.opcode = fabric::Opcode::kWriteImm;
  send.imm = imm;
  peer_.Post(slot, send, {});
}

}  // namespace ibnbd::fuzz
