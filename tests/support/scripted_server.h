// SPDX-License-Identifier: Apache-2.0
// A server that does what a test tells it, over any fabric: by default a minimal and honest RNBD
// server of the kernel's kind or of ours, and wherever a hook is set, anything else.  For what a
// client must survive and what a client sends.  On the thread of its host's reactor.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "proto/rnbd.h"
#include "proto/rtrs.h"
#include "rtrs/port.h"
#include "tests/support/scripted_connection.h"

namespace ibnbd::rnbd {

class ScriptedServer final : public ScriptedConnection::Owner {
 public:
  static constexpr std::uint16_t kQueueDepth = 32;
  static constexpr std::uint32_t kIoSizeMax = 8192;
  static constexpr std::uint32_t kHdrSizeMax = 4096;
  static constexpr std::uint32_t kChunkSize = kIoSizeMax + kHdrSizeMax;

  using Conn = ScriptedConnection;
  struct Request {
    Conn* conn = nullptr;
    std::uint32_t mem_id = 0;
    proto::IoRequest rtrs;
  };

  ScriptedServer(sim::World& world, sim::Host& host)
      : ScriptedServer(std::make_unique<SimPeerHost>(world, host), host.Address(1234)) {}
  ScriptedServer(std::unique_ptr<PeerHost> host, const SocketAddress& address)
      : host_(std::move(host)), address_(address), layout_(kQueueDepth) {
    port_ = *rtrs::Port::Create(host_->reactor(), host_->fabric());
    memory_ = *Arena::Create(kQueueDepth * kChunkSize);
    region_ = *host_->fabric().Register(memory_.bytes(), fabric::Access::kRemoteWrite);
    context_ = port_->Attach(acceptor_);
    listener_ = *port_->poller().Listen(address_, context_);
    offer.version = proto::le16(proto::kRtrsVersionKernel);
    offer.queue_depth = proto::le16(kQueueDepth);
    offer.max_io_size = proto::le32(kIoSizeMax);
    offer.max_hdr_size = proto::le32(kHdrSizeMax);
    open_rsp.nsectors = proto::le64(2048);
    open_rsp.logical_block_size = proto::le16(512);
    open_rsp.physical_block_size = proto::le16(512);
    open_rsp.cache_policy = proto::kCacheWriteback | proto::kCacheFua;
    info = {{.addr = proto::le64(reinterpret_cast<std::uintptr_t>(memory_.bytes().data())),
             .key = proto::le32(region_->rkey()),
             .len = proto::le32(kQueueDepth * kChunkSize)}};
  }
  ~ScriptedServer() override {
    Disconnect();
    const auto drained = [this] {
      return std::all_of(conns_.begin(), conns_.end(), [](const auto& conn) {
        return conn->gone && conn->connection->drained();
      });
    };
    CHECK(host_->RunUntil(drained, 60 * kNsPerSecond));
    waiting.clear();
    listener_.reset();
    for (auto& conn : conns_) port_->Detach(conn->context);
    conns_.clear();
    port_->Detach(context_);
    region_.reset();
    port_.reset();
  }

  // --- What a test may change before or while the client is connected. ---
  proto::ConnRsp offer;
  int reject_with = 0;  // A negative errno: connects are rejected.
  std::vector<proto::SgDesc> info;
  proto::OpenRsp open_rsp;
  // True: the hook has dealt with it.
  std::function<bool(const Request&)> on_request;
  std::function<bool(Conn&)> on_info;
  std::function<bool(std::unique_ptr<fabric::Incoming>&, const proto::ConnReq&)> on_connect;
  std::vector<std::byte> raw_offer;                        // Instead of `offer`, if there is any.
  std::vector<std::unique_ptr<fabric::Incoming>> waiting;  // For hooks: never answered.
  bool silent = false;                                     // Nothing is answered any more.
  std::vector<std::uint32_t> io_rws;                       // `rw` of every IO, in order of arrival.

  [[nodiscard]] SocketAddress address() const { return address_; }
  void Disconnect() {
    for (auto& conn : conns_) conn->connection->Disconnect();
  }

  // Data (if any) into the client's buffer, then the response, as a kernel server does it.
  void Reply(const Request& request, int error, std::span<const std::byte> data = {}) {
    if (!data.empty()) {
      request.conn->Post(fabric::Opcode::kWrite, 0, data,
                         {request.rtrs.desc_addr, request.rtrs.desc_key});
    }
    const std::uint32_t imm =
        proto::PackIoRsp(proto::ImmType::kIoRsp, {.msg_id = request.mem_id, .error = error});
    if (!offer.new_rkey()) return request.conn->Post(fabric::Opcode::kWriteImm, imm, {});
    proto::RkeyRsp rkey;
    rkey.buf_id = proto::le16(static_cast<std::uint16_t>(request.mem_id));
    rkey.rkey = proto::le32(region_->rkey());
    request.conn->Post(fabric::Opcode::kSendImm, imm, proto::AsBytes(rkey));
  }
  void SendInfoRsp(Conn& conn) {
    std::array<std::byte, 1024> bytes;
    conn.Post(fabric::Opcode::kSend, 0, std::span(bytes).first(proto::EncodeInfoRsp(bytes, info)));
  }

 private:
  class Acceptor final : public rtrs::PortClient {
   public:
    explicit Acceptor(ScriptedServer& server) : server_(server) {}
    void OnCompletion(const rtrs::CookieParts&, const fabric::Completion&) override {}
    void OnCmEvent(fabric::CmEvent& event) override {
      if (event.kind == fabric::CmEvent::Kind::kIncoming) server_.OnIncoming(event.incoming);
    }

   private:
    ScriptedServer& server_;
  };

  void OnIncoming(std::unique_ptr<fabric::Incoming>& incoming) {
    proto::ConnReq request;
    CHECK(proto::DecodeConnReq(incoming->private_data(), &request) == nullptr);
    if (on_connect && on_connect(incoming, request)) return;
    std::erase_if(conns_, [this](const auto& conn) {
      const bool over = conn->gone && conn->connection->drained();
      if (over) port_->Detach(conn->context);
      return over;
    });
    if (reject_with != 0) {
      incoming->Reject(proto::AsBytes(proto::MakeConnReject(reject_with)));
      return;
    }
    auto conn = std::make_unique<Conn>(host_->fabric(), *this);
    conn->cid = request.cid.get();
    conn->context = port_->Attach(*conn);
    fabric::ConnectionOptions options;
    options.limits = {Conn::kSends, Conn::kReceives, 2, 0};
    options.context = conn->context;
    auto connection = incoming->Accept(
        port_->poller(), options,
        raw_offer.empty() ? proto::AsBytes(offer) : std::span<const std::byte>(raw_offer));
    if (!connection.ok()) return port_->Detach(conn->context);  // It has left already.
    conn->connection = *std::move(connection);
    for (std::uint32_t i = 0; i < Conn::kReceives; ++i) conn->PostReceive(i);
    conns_.push_back(std::move(conn));
  }

  void OnMessage(Conn& conn, const fabric::Completion& wc) override {
    if (silent) return;
    if (!wc.has_imm) {  // INFO_REQ.
      if (on_info && on_info(conn)) return;
      SendInfoRsp(conn);
      return;
    }
    const proto::ImmType type = proto::ImmTypeOf(wc.imm);
    if (type == proto::ImmType::kHbMsg) {
      return conn.Post(fabric::Opcode::kWriteImm, proto::kImmHbAck, {});
    }
    if (type != proto::ImmType::kIoReq) return;
    const proto::IoReqImm where = layout_.Unpack(wc.imm);
    CHECK(where.mem_id < kQueueDepth && where.off < kChunkSize);
    Request request{.conn = &conn, .mem_id = where.mem_id, .rtrs = {}};
    const char* reason =
        proto::DecodeIoRequest(memory_.bytes().subspan(where.mem_id * kChunkSize, kChunkSize),
                               where.off, {kIoSizeMax}, &request.rtrs);
    CHECK(reason == nullptr);
    if (on_request && on_request(request)) return;
    Serve(request);
  }

 public:
  // What an honest server does.
  void Serve(const Request& request) {
    proto::RnbdType type{};
    CHECK(proto::DecodeType(request.rtrs.user_message(), &type) == nullptr);
    if (type == proto::RnbdType::kSessInfo) {
      proto::SessInfo message;
      CHECK(proto::DecodeSessInfo(request.rtrs.user_message(), &message) == nullptr);
      return Reply(request, 0, proto::AsBytes(proto::MakeSessInfoRsp(message)));
    }
    if (type == proto::RnbdType::kOpen) return Reply(request, 0, proto::AsBytes(open_rsp));
    if (type == proto::RnbdType::kIo) {
      proto::Io io;
      CHECK(proto::DecodeIo(request.rtrs.user_message(),
                            {request.rtrs.data_len, request.rtrs.is_read}, &io) == nullptr);
      io_rws.push_back(io.rw.get());
    }
    const std::vector<std::byte> data(request.rtrs.is_read ? request.rtrs.data_len : 0,
                                      std::byte{0x5a});
    Reply(request, 0, data);
  }

 private:
  const std::unique_ptr<PeerHost> host_;
  const SocketAddress address_;
  const proto::IoReqImmLayout layout_;
  std::unique_ptr<rtrs::Port> port_;
  Arena memory_;
  std::unique_ptr<fabric::Region> region_;
  Acceptor acceptor_{*this};
  std::uint64_t context_ = 0;
  std::unique_ptr<fabric::Listener> listener_;
  std::vector<std::unique_ptr<Conn>> conns_;
};

}  // namespace ibnbd::rnbd
