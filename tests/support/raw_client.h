// SPDX-License-Identifier: Apache-2.0
// A client that does exactly what a test tells it to, rules or no rules: connections, messages and
// immediates of RTRS over any fabric, one step at a time.  For tests of the server.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fabric/sim/sim_world.h"
#include "proto/rnbd.h"
#include "proto/rtrs.h"

namespace ibnbd {

class RawClient final : public ReactorSource {
 public:
  static constexpr std::size_t kReadArea = 1 << 16;  // Answers to reads are written from here on.
  static constexpr std::size_t kReadSlot = 1 << 14;

  struct Link {
    std::unique_ptr<fabric::Connection> connection;
    bool established = false, rejected = false, gone = false;
    proto::ConnRsp response;
  };

  RawClient(sim::World& world, sim::Host& host, const SocketAddress& server, std::uint8_t id)
      : world_(world), reactor_(host.AddReactor()), server_(server), memory_(1 << 20) {
    request.paths_uuid.fill(id);
    request.sess_uuid.fill(static_cast<std::uint8_t>(id + 100));
    request.flags = proto::kConnReqFirstConn;
    request.recon_cnt = proto::le16(1);
    region_ = host.fabric().Register(memory_, fabric::Access::kRemoteWrite).value();
    poller_ = host.fabric().CreatePoller(reactor_).value();
    reactor_.AddSource(*this);
  }
  ~RawClient() override {
    Disconnect();
    reactor_.RemoveSource(*this);
    links.clear();
    poller_.reset();
    region_.reset();
  }

  // --- Connecting. ---
  proto::ConnReq request;  // What Connect() sends, but for the cid.
  void StartConnect(std::uint16_t cid, std::uint16_t cid_num) {
    request.cid = proto::le16(cid);
    request.cid_num = proto::le16(cid_num);
    StartConnectRaw(cid, proto::AsBytes(request));
  }
  void StartConnectRaw(std::uint16_t cid, std::span<const std::byte> data) {
    const fabric::Sge sge{&memory_[kInfoRsp], 4096, region_->lkey()};
    std::vector<fabric::ReceiveRequest> receives(64, fabric::ReceiveRequest{1, {}});
    if (cid == 0) receives[0] = {2, {&sge, 1}};
    fabric::ConnectionOptions options;
    options.limits = {64, 64, 2, 0};
    options.context = links.size();
    options.receives = receives;
    auto& link = links.emplace_back(std::make_unique<Link>());
    link->connection = poller_->StartConnect(server_, options, data).value();
  }
  // True if it was accepted.
  bool Connect(std::uint16_t cid, std::uint16_t cid_num) {
    StartConnect(cid, cid_num);
    Link& link = *links.back();
    world_.RunUntil([&link] { return link.established || link.rejected || link.gone; },
                    60 * kNsPerSecond);
    return link.established;
  }
  bool ConnectAll(std::uint16_t cid_num) {
    for (std::uint16_t cid = 0; cid < cid_num; ++cid) {
      if (!Connect(cid, cid_num)) return false;
    }
    return true;
  }
  [[nodiscard]] int reject_error() const { return proto::ConnRspError(links.back()->response); }

  void SendInfo(const std::string& name) {
    proto::InfoReq info;
    (void)proto::SetName(&info.name, name);  // Tests use names that fit.
    Send(0, proto::AsBytes(info));
  }
  void Send(std::size_t link, std::span<const std::byte> bytes) {
    fabric::SendRequest send;
    const fabric::Sge sge = Stage(bytes);
    send.sges = {&sge, 1};
    links[link]->connection->PostSend({&send, 1});
  }
  // Everything up to INFO_RSP; true if it came.
  bool Open(std::uint16_t cid_num, const std::string& name) {
    if (!ConnectAll(cid_num)) return false;
    SendInfo(name);
    world_.RunUntil([this] { return info_received_ || AnyGone(); }, 60 * kNsPerSecond);
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
  // A copy of `bytes` that may be posted.
  fabric::Sge Stage(std::span<const std::byte> bytes) {
    if (staged_ + bytes.size() > kInfoRsp) staged_ = kStage;
    std::copy(bytes.begin(), bytes.end(), memory_.begin() + static_cast<std::ptrdiff_t>(staged_));
    const fabric::Sge sge{&memory_[staged_], static_cast<std::uint32_t>(bytes.size()),
                          region_->lkey()};
    staged_ += bytes.size();
    return sge;
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
    world_.RunUntil([&] { return responses.contains(mem_id) || AnyGone(); }, 60 * kNsPerSecond);
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

  // --- The end. ---
  [[nodiscard]] bool AnyGone() const {
    return std::any_of(links.begin(), links.end(),
                       [](const auto& link) { return link->gone || link->rejected; });
  }
  // True if the server has ended every connection, in time.
  bool AwaitGone(std::int64_t within_ns = 60 * kNsPerSecond) {
    return world_.RunUntil(
        [this] {
          return std::all_of(links.begin(), links.end(),
                             [](const auto& link) { return link->gone || link->rejected; });
        },
        within_ns);
  }
  void Disconnect() {
    for (auto& link : links) link->connection->Disconnect();
    world_.RunUntil(
        [this] {
          return std::all_of(links.begin(), links.end(), [](const auto& link) {
            return (link->gone || link->rejected) && link->connection->drained();
          });
        },
        60 * kNsPerSecond);
  }

  bool Poll() override {
    std::array<fabric::CmEvent, 4> events;
    const std::size_t event_count = poller_->PollEvents(events);
    for (std::size_t i = 0; i < event_count; ++i) OnEvent(events[i]);
    std::array<fabric::Completion, 16> batch;
    const std::size_t count = poller_->PollCompletions(batch);
    for (std::size_t i = 0; i < count; ++i) OnCompletion(batch[i]);
    return event_count + count > 0;
  }
  void Flush() override { poller_->Flush(); }

  std::vector<std::unique_ptr<Link>> links;
  std::map<std::uint32_t, int> responses;  // By mem_id.
  std::uint32_t heartbeats = 0, heartbeat_acks = 0;

 private:
  static constexpr std::size_t kStage = 0, kInfoRsp = 3 << 14;

  void OnEvent(fabric::CmEvent& event) {
    Link& link = *links[event.context];
    using Kind = fabric::CmEvent::Kind;
    if (event.kind == Kind::kEstablished || event.kind == Kind::kRejected) {
      (void)proto::CopyOut(event.private_data, &link.response);  // Zeros if there was none.
    }
    link.established |= event.kind == Kind::kEstablished;
    link.rejected |= event.kind == Kind::kRejected;
    link.gone |= event.kind == Kind::kDisconnected || event.kind == Kind::kUnreachable;
  }
  void OnCompletion(const fabric::Completion& completion) {
    if (completion.status != fabric::WcStatus::kOk) return;
    if (completion.cookie == 2) {
      info_received_ = true;
      info_size_ = completion.byte_count;
    }
    if (!completion.has_imm) return;
    if (completion.imm == proto::kImmHbMsg) ++heartbeats;
    if (completion.imm == proto::kImmHbAck) ++heartbeat_acks;
    if (proto::ImmTypeOf(completion.imm) != proto::ImmType::kIoRsp) return;
    const proto::IoRspImm response = proto::UnpackIoRsp(completion.imm);
    responses[response.msg_id] = response.error;
  }
  sim::World& world_;
  Reactor& reactor_;
  const SocketAddress server_;
  std::vector<std::byte> memory_;
  std::unique_ptr<fabric::Region> region_;
  std::unique_ptr<fabric::Poller> poller_;
  std::size_t staged_ = kStage;
  bool info_received_ = false;
  std::size_t info_size_ = 0;
  std::uint32_t queue_depth_ = 1;
  std::vector<proto::ChunkAddress> chunks_;
};

}  // namespace ibnbd
