// SPDX-License-Identifier: Apache-2.0
#include "fabric/traced_fabric.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace ibnbd::fabric {

const char* Name(Opcode opcode) {
  switch (opcode) {
    case Opcode::kSend:
      return "send";
    case Opcode::kSendImm:
      return "send-imm";
    case Opcode::kSendInvalidate:
      return "send-invalidate";
    case Opcode::kWrite:
      return "write";
    case Opcode::kWriteImm:
      return "write-imm";
    case Opcode::kOpenWindow:
      return "open-window";
    case Opcode::kCloseWindow:
      return "close-window";
    case Opcode::kReceive:
      return "receive";
    case Opcode::kReceiveWriteImm:
      return "receive-write-imm";
  }
  return "?";
}

const char* Name(WcStatus status) {
  switch (status) {
    case WcStatus::kOk:
      return "ok";
    case WcStatus::kFlushed:
      return "flushed";
    case WcStatus::kPeerGone:
      return "peer-gone";
    case WcStatus::kNoReceive:
      return "no-receive";
    case WcStatus::kRemoteAccess:
      return "remote-access";
    case WcStatus::kLocalFault:
      return "local-fault";
  }
  return "?";
}

const char* Name(CmEvent::Kind kind) {
  switch (kind) {
    case CmEvent::Kind::kIncoming:
      return "incoming";
    case CmEvent::Kind::kEstablished:
      return "established";
    case CmEvent::Kind::kRejected:
      return "rejected";
    case CmEvent::Kind::kUnreachable:
      return "unreachable";
    case CmEvent::Kind::kDisconnected:
      return "disconnected";
  }
  return "?";
}

namespace {

std::string Hex(std::uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

std::uint64_t TotalLength(std::span<const Sge> sges) {
  std::uint64_t length = 0;
  for (const Sge& sge : sges) length += sge.length;
  return length;
}

class TracedConnection final : public ForwardingConnection {
 public:
  TracedConnection(TracedFabric& fabric, ForwardingPoller& poller,
                   std::unique_ptr<Connection> connection)
      : ForwardingConnection(poller, std::move(connection)),
        fabric_(fabric),
        number_(fabric.NextConnection()) {}
  ~TracedConnection() override { fabric_.Say(absl::StrCat("connection ", number_, " destroyed")); }

  void PostSend(std::span<const SendRequest> requests) override {
    for (const SendRequest& request : requests) fabric_.Say(Describe(request));
    inner().PostSend(requests);
  }
  void PostReceive(std::span<const ReceiveRequest> requests) override {
    for (const ReceiveRequest& request : requests) {
      fabric_.Say(absl::StrCat("connection ", number_, " post receive cookie ", request.cookie,
                               " length ", TotalLength(request.sges)));
    }
    inner().PostReceive(requests);
  }
  void Disconnect() override {
    fabric_.Say(absl::StrCat("connection ", number_, " disconnect"));
    inner().Disconnect();
  }
  [[nodiscard]] std::uint32_t number() const { return number_; }

 private:
  [[nodiscard]] std::string Describe(const SendRequest& request) const {
    std::string line = absl::StrCat(
        "connection ", number_, " post ", Name(request.opcode), " cookie ", request.cookie,
        request.signaled ? " signaled" : " unsignaled", " length ", TotalLength(request.sges));
    const bool is_write = request.opcode == Opcode::kWrite || request.opcode == Opcode::kWriteImm;
    if (is_write) absl::StrAppend(&line, " rkey ", Hex(request.remote.rkey));
    if (request.opcode == Opcode::kSendImm || request.opcode == Opcode::kWriteImm) {
      absl::StrAppend(&line, " imm ", Hex(request.imm));
    }
    if (request.opcode == Opcode::kSendInvalidate) {
      absl::StrAppend(&line, " invalidate ", Hex(request.invalidate_rkey));
    }
    return line;
  }
  TracedFabric& fabric_;
  const std::uint32_t number_;
};

class TracedPoller final : public ForwardingPoller {
 public:
  TracedPoller(TracedFabric& fabric, std::uint32_t number, std::unique_ptr<Poller> poller)
      : ForwardingPoller(std::move(poller)), fabric_(fabric), number_(number) {}

  std::size_t PollCompletions(std::span<Completion> out) override {
    const std::size_t count = inner().PollCompletions(out);
    for (const Completion& completion : out.first(count)) fabric_.Say(Describe(completion));
    return count;
  }
  std::size_t PollEvents(std::span<CmEvent> out) override {
    const std::size_t count = ForwardingPoller::PollEvents(out);
    for (const CmEvent& event : out.first(count)) fabric_.Say(Describe(event));
    return count;
  }
  absl::StatusOr<std::unique_ptr<Connection>> StartConnect(
      const SocketAddress& peer, const ConnectionOptions& options,
      std::span<const std::byte> private_data) override {
    fabric_.Say(absl::StrCat("poller ", number_, " connect to ", peer.ToString()));
    return ForwardingPoller::StartConnect(peer, options, private_data);
  }

 protected:
  std::unique_ptr<ForwardingConnection> Wrap(std::unique_ptr<Connection> connection) override {
    auto wrapped = std::make_unique<TracedConnection>(fabric_, *this, std::move(connection));
    fabric_.Say(absl::StrCat("connection ", wrapped->number(), " created on poller ", number_,
                             " local ", wrapped->local_address().ToString(), " peer ",
                             wrapped->peer_address().ToString()));
    return wrapped;
  }

 private:
  [[nodiscard]] std::string Describe(const Completion& completion) const {
    std::string line = absl::StrCat("poller ", number_, " completion cookie ", completion.cookie,
                                    " ", Name(completion.status));
    if (completion.status != WcStatus::kOk) return line;  // The rest is junk.
    absl::StrAppend(&line, " ", Name(completion.opcode));
    const bool is_receive =
        completion.opcode == Opcode::kReceive || completion.opcode == Opcode::kReceiveWriteImm;
    if (is_receive) absl::StrAppend(&line, " length ", completion.byte_count);
    if (completion.has_imm) absl::StrAppend(&line, " imm ", Hex(completion.imm));
    if (completion.has_invalidate) {
      absl::StrAppend(&line, " invalidated ", Hex(completion.invalidated_rkey));
    }
    return line;
  }
  [[nodiscard]] std::string Describe(const CmEvent& event) const {
    std::string line = absl::StrCat("poller ", number_, " event ", Name(event.kind));
    if (event.connection != nullptr) {
      const auto* connection = static_cast<const TracedConnection*>(event.connection);
      absl::StrAppend(&line, " connection ", connection->number());
    }
    if (event.incoming != nullptr) {
      absl::StrAppend(&line, " from ", event.incoming->peer_address().ToString());
    }
    if (event.error != 0) absl::StrAppend(&line, " error ", event.error);
    return line;
  }
  TracedFabric& fabric_;
  const std::uint32_t number_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Region>> TracedFabric::Register(std::span<std::byte> memory,
                                                               Access access) {
  absl::StatusOr<std::unique_ptr<Region>> region = inner().Register(memory, access);
  if (region.ok()) {
    Say(absl::StrCat("region of ", memory.size(), " lkey ", Hex((*region)->lkey()), " rkey ",
                     Hex((*region)->rkey())));
  }
  return region;
}

absl::StatusOr<std::unique_ptr<Poller>> TracedFabric::CreatePoller(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<Poller>> poller = inner().CreatePoller(reactor);
  if (!poller.ok()) return poller.status();
  return std::make_unique<TracedPoller>(*this, ++poller_count_, *std::move(poller));
}

}  // namespace ibnbd::fabric
