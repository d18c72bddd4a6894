// SPDX-License-Identifier: Apache-2.0
// The connections of a RawClient: requests to connect with any content, messages, what comes back,
// the end.  One step at a time, rules or no rules.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/rtrs.h"
#include "reactor/reactor.h"
#include "tests/support/peer_host.h"

namespace ibnbd {

class RawConnections : public ReactorSource {
 public:
  struct Link {
    std::unique_ptr<fabric::Connection> connection;
    bool established = false, rejected = false, gone = false;
    proto::ConnRsp response;
  };

  RawConnections(sim::World& world, sim::Host& host, const SocketAddress& server, std::uint8_t id)
      : RawConnections(std::make_unique<SimPeerHost>(world, host), server, id) {}
  RawConnections(std::unique_ptr<PeerHost> host, const SocketAddress& server, std::uint8_t id)
      : host_(std::move(host)), reactor_(host_->reactor()), memory_(1 << 20), server_(server) {
    request.paths_uuid.fill(id);
    request.sess_uuid.fill(static_cast<std::uint8_t>(id + 100));
    request.flags = proto::kConnReqFirstConn;
    request.recon_cnt = proto::le16(1);
    region_ = host_->fabric().Register(memory_, fabric::Access::kRemoteWrite).value();
    poller_ = host_->fabric().CreatePoller(reactor_).value();
    reactor_.AddSource(*this);
  }
  ~RawConnections() override {
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
    // With room for the key that an answer may bring.
    std::vector<fabric::Sge> rooms(kReceives);
    std::vector<fabric::ReceiveRequest> receives(kReceives);
    for (std::size_t i = 0; i < kReceives; ++i) {
      rooms[i] = RkeyRoom(links.size() * kReceives + i);
      receives[i] = {kFirstReceive + links.size() * kReceives + i, {&rooms[i], 1}};
    }
    if (cid == 0) receives[0] = {2, {&sge, 1}};
    fabric::ConnectionOptions options;
    options.limits = {64, kReceives, 2, 0};
    options.context = links.size();
    options.receives = receives;
    auto& link = links.emplace_back(std::make_unique<Link>());
    link->connection = poller_->StartConnect(server_, options, data).value();
  }
  // True if it was accepted.
  bool Connect(std::uint16_t cid, std::uint16_t cid_num) {
    StartConnect(cid, cid_num);
    Link& link = *links.back();
    host_->RunUntil([&link] { return link.established || link.rejected || link.gone; },
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

  void Send(std::size_t link, std::span<const std::byte> bytes) {
    fabric::SendRequest send;
    const fabric::Sge sge = Stage(bytes);
    send.sges = {&sge, 1};
    links[link]->connection->PostSend({&send, 1});
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

  void set_deaf(bool deaf) { deaf_ = deaf; }  // Posts no more receives.

  // --- The end. ---
  [[nodiscard]] bool AnyGone() const {
    return std::any_of(links.begin(), links.end(),
                       [](const auto& link) { return link->gone || link->rejected; });
  }
  // True if the server has ended every connection, in time.
  bool AwaitGone(std::int64_t within_ns = 60 * kNsPerSecond) {
    return host_->RunUntil(
        [this] {
          return std::all_of(links.begin(), links.end(),
                             [](const auto& link) { return link->gone || link->rejected; });
        },
        within_ns);
  }
  void Disconnect() {
    for (auto& link : links) link->connection->Disconnect();
    host_->RunUntil(
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

 protected:
  static constexpr std::size_t kStage = 0, kInfoRsp = 3 << 14, kRkeys = kInfoRsp + 4096;
  static constexpr std::size_t kReceives = 64;
  static constexpr fabric::Cookie kFirstReceive = 1000;
  // An answer has brought the next key of a chunk.
  virtual void OnRkey(const proto::RkeyRsp& message) { (void)message; }
  const std::unique_ptr<PeerHost> host_;
  Reactor& reactor_;
  std::vector<std::byte> memory_;
  std::unique_ptr<fabric::Region> region_;
  bool info_received_ = false;
  std::size_t info_size_ = 0;

 private:
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
  // 23 connections have one each; more share them.
  fabric::Sge RkeyRoom(std::size_t index) {
    return {&memory_[kRkeys + index % (23 * kReceives) * sizeof(proto::RkeyRsp)],
            sizeof(proto::RkeyRsp), region_->lkey()};
  }
  void OnCompletion(const fabric::Completion& completion) {
    if (completion.status != fabric::WcStatus::kOk) return;
    if (completion.cookie == 2) {
      info_received_ = true;
      info_size_ = completion.byte_count;
    }
    if (!completion.has_imm) return;
    if (completion.cookie >= kFirstReceive) Repost(completion);
    if (completion.imm == proto::kImmHbMsg) ++heartbeats;
    if (completion.imm == proto::kImmHbAck) ++heartbeat_acks;
    if (proto::ImmTypeOf(completion.imm) != proto::ImmType::kIoRsp) return;
    const proto::IoRspImm response = proto::UnpackIoRsp(completion.imm);
    responses[response.msg_id] = response.error;
  }
  void Repost(const fabric::Completion& completion) {
    if (deaf_) return;
    const std::size_t index = completion.cookie - kFirstReceive;
    const fabric::Sge room = RkeyRoom(index);
    if (completion.opcode == fabric::Opcode::kReceive) {
      proto::RkeyRsp message;
      (void)proto::CopyOut({room.addr, sizeof message}, &message);
      OnRkey(message);
    }
    const fabric::ReceiveRequest receive{completion.cookie, {&room, 1}};
    links[index / kReceives]->connection->PostReceive({&receive, 1});
  }
  const SocketAddress server_;
  std::unique_ptr<fabric::Poller> poller_;
  std::size_t staged_ = kStage;
  bool deaf_ = false;
};

}  // namespace ibnbd
