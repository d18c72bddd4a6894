// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/hostile_client.h"

#include <algorithm>
#include <cstring>

#include "tests/fuzz/mutate.h"

namespace ibnbd::fuzz {
namespace {
using proto::le16;
using proto::le32;
using proto::le64;
}  // namespace

HostileClient::HostileClient(sim::World& world, sim::Host& host, const HostileTarget& target)
    : target_(target), peer_(world, host) {
  peer_.on_message = [this](std::size_t, const fabric::Completion&,
                            std::span<const std::byte> message) { OnMessage(message); };
}

void HostileClient::OnMessage(std::span<const std::byte> message) {
  std::vector<proto::ChunkAddress> chunks(target_.queue_depth);
  if (proto::DecodeInfoRsp(message, target_.chunk_size, chunks) == nullptr) chunks_ = chunks;
}

fabric::RemoteAddress HostileClient::Chunk(std::uint32_t chunk) const {
  if (chunks_.empty()) return {0x10000, chunk};
  const proto::ChunkAddress& named = chunks_[chunk % chunks_.size()];
  return {named.addr, named.rkey};
}

// {slot of the connection: 1 byte; the move's operands}.
void HostileClient::Move(unsigned which, FuzzInput& input) {
  const std::size_t slot = input.U8() % RawPeer::kSlots;
  switch (which) {
    case 0:
      return Connect(input, slot);
    case 1:
      return Introduce(input, slot);
    case 2:
      return ControlMessage(input, slot);
    case 3:
      return Io(input, slot);
    case 4:
      return RawWrite(input, slot, fabric::Opcode::kWriteImm);
    case 5:
      return RawWrite(input, slot, fabric::Opcode::kWrite);
    case 6:
      return RawSend(input, slot, fabric::Opcode::kSend);
    case 7:
      return RawSend(input, slot, fabric::Opcode::kSendImm);
    case 8:
      return peer_.PostAgain();
    default:
      return peer_.Disconnect(slot);
  }
}

// {path: 1 byte; cid: 1; connections: 1; round: 1; mutations; length: 1}.
void HostileClient::Connect(FuzzInput& input, std::size_t slot) {
  proto::ConnReq request;
  const std::uint8_t path = input.U8();
  request.sess_uuid.fill(path % 4);
  request.paths_uuid.fill(static_cast<std::uint8_t>(0xe0 + path / 4 % 4));
  request.cid = le16(input.U8() % 8);
  request.cid_num = le16(input.U8() % 8 + 1);
  request.recon_cnt = le16(input.U8());
  request.flags = path < 128 ? proto::kConnReqFirstConn : std::uint8_t{0};
  std::vector<std::byte> message = BytesOf(request);
  Mutate(input, message);
  const std::size_t missing = input.U8();
  if (missing < message.size()) message.resize(message.size() - missing);
  peer_.Connect(slot, target_.server, message);
}

// {name: 1 byte; mutations; length: 1}.
void HostileClient::Introduce(FuzzInput& input, std::size_t slot) {
  proto::InfoReq request;
  const std::uint8_t name = input.U8();
  (void)proto::SetName(&request.name, target_.names[name % target_.names.size()]);
  std::vector<std::byte> message = BytesOf(request);
  Mutate(input, message);
  const std::size_t missing = input.U8();
  if (missing < message.size()) message.resize(message.size() - missing);
  fabric::SendRequest send;
  send.opcode = fabric::Opcode::kSend;
  peer_.Post(slot, send, message);
}

// {which: 1 byte; its operand: 1; then as SendRequest()}.
void HostileClient::ControlMessage(FuzzInput& input, std::size_t slot) {
  const std::uint8_t which = input.U8(), operand = input.U8();
  proto::Open open;
  open.access_mode = static_cast<proto::AccessMode>(operand & 3);
  (void)proto::SetName(&open.dev_name, operand & 4 ? "vol1" : "vol0");
  const proto::Close close{.device_id = le32(operand)};
  const proto::List list{.start_index = le32(operand)};
  fabric::SendRequest heartbeat;
  heartbeat.opcode = fabric::Opcode::kWriteImm;
  heartbeat.imm = operand & 1 ? proto::kImmHbAck : proto::kImmHbMsg;
  switch (which % 5) {
    case 0:
      return SendRequest(input, slot, BytesOf(proto::SessInfo()), 36, true);
    case 1:
      return SendRequest(input, slot, BytesOf(open), sizeof(proto::OpenRsp), true);
    case 2:
      return SendRequest(input, slot, BytesOf(close), 0, false);
    case 3:
      return SendRequest(input, slot, BytesOf(list), 4096, true);
    default:
      return peer_.Post(slot, heartbeat, {});
  }
}

// {operation: 1 byte; device: 1; sector: 1; sectors: 1; flags: 1; then as SendRequest()}.
void HostileClient::Io(FuzzInput& input, std::size_t slot) {
  const std::uint8_t op = input.U8();
  proto::Io io;
  io.device_id = le32(input.U8());
  io.sector = le64(input.U8());
  const std::uint32_t size = (input.U8() % 20u) * 512u;
  io.rw = le32(op % 7u | std::uint32_t{input.U8()} << 8);
  io.bi_size = le32(size);
  const bool has_data = op % 7 < 2;
  const bool is_read = op % 7 == 0 || op % 7 == 2;
  SendRequest(input, slot, BytesOf(io), has_data ? size : 0, is_read);
}

// {chunk: 1 byte; mutations of the message; mutations of the immediate; offset into the chunk: 1}.
void HostileClient::SendRequest(FuzzInput& input, std::size_t slot, std::span<const std::byte> user,
                                std::uint32_t data_len, bool is_read) {
  const std::uint32_t chunk = input.U8() % (target_.queue_depth + 1);
  std::vector<std::byte> message(is_read ? 0 : data_len, std::byte{0xbb});
  const std::size_t header_at = message.size();
  message.resize(header_at + proto::kRequestTailMax);
  const std::span<std::byte> tail = std::span(message).subspan(header_at);
  const fabric::RemoteAddress landing = peer_.landing();
  const proto::SgDesc desc{
      .addr = le64(landing.addr), .key = le32(landing.rkey), .len = le32(data_len)};
  const std::size_t size =
      is_read ? proto::EncodeReadRequest(tail, user, data_len == 0 ? nullptr : &desc)
              : proto::EncodeWriteRequest(tail, user);
  message.resize(header_at + size);
  Mutate(input, message);
  fabric::SendRequest send;
  send.opcode = fabric::Opcode::kWriteImm;
  le32 imm(proto::IoReqImmLayout(target_.queue_depth)
               .Pack({.mem_id = chunk, .off = data_len + static_cast<std::uint32_t>(user.size())}));
  Mutate(input, std::as_writable_bytes(std::span(&imm, 1)));
  send.imm = imm.get();
  send.remote = Chunk(chunk);
  send.remote.addr += (is_read ? data_len : 0) + input.U8();
  peer_.Post(slot, send, message);
}

// {chunk: 1 byte; offset: 4; change of the key: 1; immediate: 4; size: 2; that many bytes}.
void HostileClient::RawWrite(FuzzInput& input, std::size_t slot, fabric::Opcode opcode) {
  fabric::SendRequest send;
  send.opcode = opcode;
  send.remote = Chunk(input.U8());
  send.remote.addr += static_cast<std::uint64_t>(static_cast<std::int32_t>(input.U32()));
  send.remote.rkey ^= input.U8();
  send.imm = input.U32();
  peer_.Post(slot, send, input.Bytes(input.U16() % 16384));
}

// {immediate: 4 bytes; size: 2; that many bytes}.
void HostileClient::RawSend(FuzzInput& input, std::size_t slot, fabric::Opcode opcode) {
  fabric::SendRequest send;
  send.opcode = opcode;
  send.imm = input.U32();
  peer_.Post(slot, send, input.Bytes(input.U16() % 1024));
}

}  // namespace ibnbd::fuzz
