// SPDX-License-Identifier: Apache-2.0
// A client that does exactly what a test tells it to, rules or no rules: connections, messages and
// immediates of RTRS over any fabric, one step at a time.  For tests of the server.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "proto/rnbd.h"
#include "proto/rtrs.h"
#include "tests/support/raw_connections.h"

namespace ibnbd {

class RawClient final : public RawConnections {
 public:
  static constexpr std::size_t kReadArea = 1 << 16;  // Answers to reads are written from here on.
  static constexpr std::size_t kReadSlot = 1 << 14;

  using RawConnections::RawConnections;

  std::uint64_t client_id = 0;  // For SendInfo().
  std::uint32_t incarnation = 0;

  void SendInfo(const std::string& name) {
    proto::InfoReq info;
    (void)proto::SetName(&info.name, name);  // Tests use names that fit.
    info.client_id = proto::le64(client_id);
    info.incarnation = proto::le32(incarnation);
    Send(0, proto::AsBytes(info));
  }
  [[nodiscard]] bool info_received() const { return info_received_; }
  // Everything up to INFO_RSP; true if it came.
  bool Open(std::uint16_t cid_num, const std::string& name) {
    if (!ConnectAll(cid_num)) return false;
    SendInfo(name);
    host_->RunUntil([this] { return info_received_ || AnyGone(); }, 60 * kNsPerSecond);
    if (!info_received_) return false;
    queue_depth_ = links[0]->response.queue_depth.get();
    chunks_.resize(queue_depth_);
    return proto::DecodeInfoRsp(std::span(memory_).subspan(kInfoRsp, info_size_),
                                links[0]->response.chunk_size(), chunks_) == nullptr;
  }

  // --- Requests. ---
  // Writes `bytes` into chunk `mem_id` at `offset`, with the immediate.
  void WriteImm(std::size_t link, std::uint32_t mem_id, std::uint32_t offset,
                std::span<const std::byte> bytes, std::uint32_t imm) {
    fabric::SendRequest send;
    const fabric::Sge sge = Stage(bytes);
    send.opcode = fabric::Opcode::kWriteImm;
    if (!bytes.empty()) {
      send.sges = {&sge, 1};
      send.remote = {chunks_[mem_id].addr + offset, chunks_[mem_id].rkey};
    }
    send.imm = imm;
    links[link]->connection->PostSend({&send, 1});
  }
  // What INFO_RSP said, to be told to somebody else; and somebody else's, to be used instead.
  [[nodiscard]] const proto::ChunkAddress& chunk(std::uint32_t mem_id) const {
    return chunks_[mem_id];
  }
  void set_chunk(std::uint32_t mem_id, const proto::ChunkAddress& chunk) {
    chunks_[mem_id] = chunk;
  }
  [[nodiscard]] std::uint32_t RequestImm(std::uint32_t mem_id, std::size_t off) const {
    return proto::IoReqImmLayout(queue_depth_).Pack({mem_id, static_cast<std::uint32_t>(off)});
  }
  void Write(std::size_t link, std::uint32_t mem_id, std::span<const std::byte> message,
             std::span<const std::byte> data = {}) {
    std::vector<std::byte> bytes(data.begin(), data.end());
    std::array<std::byte, 512> tail{};
    const std::size_t size = proto::EncodeWriteRequest(tail, message);
    bytes.insert(bytes.end(), tail.begin(), tail.begin() + static_cast<std::ptrdiff_t>(size));
    responses.erase(mem_id);
    WriteImm(link, mem_id, 0, bytes, RequestImm(mem_id, data.size() + message.size()));
  }
  // The answer's data comes to Room(mem_id).
  void Read(std::size_t link, std::uint32_t mem_id, std::span<const std::byte> message,
            std::uint32_t room) {
    const proto::SgDesc desc{
        .addr = proto::le64(reinterpret_cast<std::uintptr_t>(Room(mem_id).data())),
        .key = proto::le32(region_->rkey()),
        .len = proto::le32(room)};
    std::array<std::byte, 512> tail{};
    const std::size_t size = proto::EncodeReadRequest(tail, message, room == 0 ? nullptr : &desc);
    responses.erase(mem_id);
    WriteImm(link, mem_id, room, std::span(tail).first(size),
             RequestImm(mem_id, room + message.size()));
  }
  std::span<std::byte> Room(std::uint32_t mem_id) {
    return std::span(memory_).subspan(kReadArea + mem_id * kReadSlot, kReadSlot);
  }
  // The answer to `mem_id`: 0 or a negative errno; 1 if none came.
  int Await(std::uint32_t mem_id) {
    host_->RunUntil([&] { return responses.contains(mem_id) || AnyGone(); }, 60 * kNsPerSecond);
    return responses.contains(mem_id) ? responses[mem_id] : 1;
  }
  // --- RNBD. ---
  int OpenDevice(const std::string& name, proto::AccessMode mode, proto::OpenRsp* response,
                 std::uint32_t mem_id = 0) {
    proto::Open open;
    open.access_mode = mode;
    (void)proto::SetName(&open.dev_name, name);  // Tests use names that fit.
    Read(0, mem_id, proto::AsBytes(open), sizeof(proto::OpenRsp));
    const int error = Await(mem_id);
    if (error == 0 && proto::DecodeOpenRsp(Room(mem_id).first(sizeof(*response)), response)) {
      return 2;
    }
    return error;
  }
  int CloseDevice(std::uint32_t id, std::uint32_t mem_id = 0) {
    proto::Close close;
    close.device_id = proto::le32(id);
    Write(0, mem_id, proto::AsBytes(close));
    return Await(mem_id);
  }

  std::uint32_t rkey_count = 0;  // Keys that answers brought.

 private:
  void OnRkey(const proto::RkeyRsp& message) override {
    if (message.buf_id.get() >= chunks_.size()) return;
    chunks_[message.buf_id.get()].rkey = message.rkey.get();
    ++rkey_count;
  }
  std::uint32_t queue_depth_ = 1;
  std::vector<proto::ChunkAddress> chunks_;
};

}  // namespace ibnbd
