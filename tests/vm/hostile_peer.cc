// SPDX-License-Identifier: Apache-2.0
// ibnbd-hostile-peer: a client that breaks the rules of RTRS over RDMA, one rule after the other.
// After each it says what the server did; exit code 1 if that was not what a server must do.  That
// nobody else notices is for its caller to see (test-vm-hostile.sh).
//
//   ibnbd-hostile-peer rdma://10.77.0.1:1234/EXPORT [ROUNDS [PART]]

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/socket_address.h"
#include "proto/rnbd_codec.h"
#include "tests/support/raw_client.h"
#include "tests/vm/rdma_machine.h"

namespace ibnbd {
namespace {

constexpr std::int64_t kSoon = 20 * kNsPerSecond;  // For a machine that is busy.

class Peer {
 public:
  Peer(Machine& machine, std::string export_name)
      : machine_(machine), export_name_(std::move(export_name)) {}

  bool BadConnects();
  bool ConnectionsInDisorder();
  bool BadInfo();
  bool TooEarly();
  bool BadRequests();
  bool BadMessages();
  bool BadKeys();
  bool BadDescriptors();
  bool MoreThanPermits();
  bool NoReceives();
  bool AFlood();
  bool GoneAtEveryStep();

 private:
  using Client = std::unique_ptr<RawClient>;
  Client New() { return machine_.NewClient(); }
  bool Fail(const std::string& what) {
    std::printf("FAIL: %s\n", what.c_str());
    return false;
  }
  std::string Name() { return "hostile" + std::to_string(++count_); }
  Client Opened() {  // Null: it was not let in.
    Client client = New();
    for (int i = 0; i < 50; ++i) {
      if (client->Open(3, Name())) return client;
      client = New();  // Its friends may still be in the way.
      machine_.RunFor(100 * kNsPerMs);
    }
    Fail("an honest beginning was refused");
    return nullptr;
  }
  bool Rejected(std::span<const std::byte> data, int error, const char* what) {
    Client client = New();
    client->StartConnectRaw(0, data);
    auto& link = *client->links.back();
    machine_.RunUntil([&link] { return link.rejected || link.established || link.gone; }, kSoon);
    if (link.rejected && client->reject_error() == error) return true;
    return Fail(std::string(what) + ": " +
                (link.rejected ? "rejected with " + std::to_string(client->reject_error())
                               : "not rejected"));
  }
  bool Lost(const Client& client, const std::string& what) {
    if (client == nullptr) return false;
    return client->AwaitGone(kSoon) || Fail(what + ": the path was not ended");
  }
  proto::Io Io(std::uint32_t bytes, proto::IoOp op, std::uint32_t device) {
    proto::Io io;
    io.device_id = proto::le32(device);
    io.rw = proto::le32(static_cast<std::uint32_t>(op));
    io.bi_size = proto::le32(bytes);
    return io;
  }

  Machine& machine_;
  const std::string export_name_;
  int count_ = 0;
};

bool Peer::BadConnects() {
  proto::ConnReq good = New()->request;
  good.cid_num = proto::le16(2);
  const auto with = [&good](auto change) {
    proto::ConnReq request = good;
    change(request);
    return request;
  };
  const proto::ConnReq magic = with([](auto& r) { r.magic = proto::le16(0x1bbe); });
  const proto::ConnReq version = with([](auto& r) { r.version = proto::le16(0x0300); });
  const proto::ConnReq cid = with([](auto& r) { r.cid = proto::le16(2); });
  const proto::ConnReq none = with([](auto& r) { r.cid_num = proto::le16(0); });
  const proto::ConnReq many = with([](auto& r) { r.cid_num = proto::le16(5000); });
  const proto::ConnReq over = with([](auto& r) { r.cid_num = proto::le16(257); });
  const proto::ConnReq unknown = with([](auto& r) { r.flags = 0; });
  return Rejected({}, -ECONNRESET, "nothing at all") &&
         // The connection manager fills it up with zeros: a session that nobody knows.
         Rejected(proto::AsBytes(good).first(10), -ENXIO, "ten bytes") &&
         Rejected(std::vector<std::byte>(56, std::byte{0xff}), -ECONNRESET, "ones") &&
         Rejected(proto::AsBytes(magic), -ECONNRESET, "another magic") &&
         Rejected(proto::AsBytes(version), -ECONNRESET, "another version") &&
         Rejected(proto::AsBytes(cid), -ECONNRESET, "cid = cid_num") &&
         Rejected(proto::AsBytes(none), -ECONNRESET, "no connections") &&
         Rejected(proto::AsBytes(many), -ECONNRESET, "5000 connections") &&
         Rejected(proto::AsBytes(over), -E2BIG, "257 connections") &&
         Rejected(proto::AsBytes(unknown), -ENXIO, "a session that nobody knows");
}

bool Peer::ConnectionsInDisorder() {
  Client client = New();
  if (client->Connect(1, 3)) return Fail("connection 1 was the first");
  client->links.clear();
  client = New();
  if (!client->Connect(0, 3) || !client->Connect(2, 3)) return Fail("0 and 2 of 3 were refused");
  if (client->Connect(2, 3)) return Fail("connection 2 came twice");
  if (client->Connect(0, 3)) return Fail("connection 0 came twice");
  if (client->Connect(1, 4)) return Fail("another cid_num");
  client->request.recon_cnt = proto::le16(2);
  if (client->Connect(1, 3)) return Fail("another round");
  return true;
}

bool Peer::BadInfo() {
  Client missing = New();
  if (!missing->Connect(0, 2)) return Fail("connect");
  missing->SendInfo(Name());
  if (!Lost(missing, "INFO before all connections")) return false;
  for (const char* name : {"a/b", "a.b", "", ".."}) {
    Client client = New();
    if (client->Open(2, name)) return Fail(std::string("session name '") + name + "'");
  }
  std::vector<std::byte> endless(sizeof(proto::InfoReq), std::byte{'x'});
  endless[0] = endless[1] = std::byte{0};  // The right type, and a name without an end.
  std::vector<std::byte> type(sizeof(proto::InfoReq));
  type[0] = std::byte{9};
  const std::vector<std::vector<std::byte>> messages = {
      endless, type, std::vector<std::byte>(sizeof(proto::InfoReq) + 100),
      std::vector<std::byte>(20)};
  for (const std::vector<std::byte>& bytes : messages) {
    Client client = New();
    if (!client->ConnectAll(2)) return Fail("connect");
    client->Send(0, bytes);
    if (!Lost(client, "INFO of " + std::to_string(bytes.size()) + " bytes")) return false;
  }
  Client twice = Opened();
  if (twice == nullptr) return false;
  twice->SendInfo("again");
  return Lost(twice, "INFO twice");
}

bool Peer::TooEarly() {
  for (const std::size_t link : {0u, 1u}) {
    Client client = New();
    if (!client->ConnectAll(2)) return Fail("connect");
    client->WriteImm(link, 0, 0, {}, 0x00001020);
    if (!Lost(client, "IO before INFO")) return false;
  }
  Client writer = New();  // Of bytes, with a key that is a guess.
  if (!writer->ConnectAll(2)) return Fail("connect");
  for (std::uint32_t key = 0x100; key < 0x108; ++key) {
    const fabric::Sge sge = writer->Stage(std::array<std::byte, 64>{});
    fabric::SendRequest send;
    send.opcode = fabric::Opcode::kWrite;
    send.sges = {&sge, 1};
    send.remote = {0x7f0000000000, key};
    writer->links[1]->connection->PostSend({&send, 1});
  }
  return Lost(writer, "a guessed key before INFO");
}

// Immediates and headers that lie about lengths and places.
bool Peer::BadRequests() {
  struct Case {
    const char* what;
    std::uint32_t at, off;
    std::vector<std::byte> bytes;
  };
  const auto bytes_of = [](const auto& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  struct Read {
    proto::ReadHeader header;
    proto::SgDesc desc;
  };
  const auto write = [](std::uint16_t usr_len) {
    return proto::WriteHeader{.usr_len = proto::le16(usr_len)};
  };
  const auto read = [](std::uint16_t usr_len, std::uint16_t sg_cnt, std::uint32_t length) {
    return Read{{.usr_len = proto::le16(usr_len), .sg_cnt = proto::le16(sg_cnt)},
                {.key = proto::le32(1), .len = proto::le32(length)}};
  };
  proto::WriteHeader unknown = write(8);
  unknown.type = proto::le16(77);
  constexpr std::uint32_t kChunk = (128 << 10) + 4096;
  const std::vector<Case> cases = {
      {"usr_len > off", 8, 8, bytes_of(write(100))},
      {"usr_len 65535", 8, 8, bytes_of(write(0xffff))},
      {"usr_len beyond what a message may have", 4096, 4096, bytes_of(write(4000))},
      {"a header across the end", 0, kChunk - 2, {}},
      {"off at the end", 0, kChunk, {}},
      {"off far beyond", 0, 0x1fffff, {}},
      {"another type", 8, 8, bytes_of(unknown)},
      {"two descriptors", 512, 512, bytes_of(read(0, 2, 512))},
      {"65535 descriptors", 512, 512, bytes_of(read(0, 0xffff, 512))},
      {"a descriptor longer than the data", 512, 512, bytes_of(read(0, 1, 200'000))},
      {"a descriptor of 4 GiB", 512, 512, bytes_of(read(0, 1, 0xffffffff))},
      {"data longer than an IO may be", 0, 0, {}},
  };
  for (const Case& item : cases) {
    Client client = Opened();
    if (client == nullptr) return false;
    if (std::strcmp(item.what, "data longer than an IO may be") == 0) {
      client->WriteImm(1, 0, kChunk - 4, bytes_of(write(0)), client->RequestImm(0, kChunk - 4));
    } else {
      client->WriteImm(1, 0, item.at, item.bytes, client->RequestImm(0, item.off));
    }
    if (!Lost(client, item.what)) return false;
  }
  Client client = Opened();
  if (client == nullptr) return false;
  client->Send(1, {});
  return Lost(client, "a send where a write belongs");
}

// Well-formed requests whose message is not: answered, with an error, and the path lives.
bool Peer::BadMessages() {
  Client client = Opened();
  if (client == nullptr) return false;
  proto::OpenRsp opened;
  if (client->OpenDevice(export_name_, proto::AccessMode::kReadOnly, &opened) != 0) {
    return Fail("open");
  }
  const std::uint32_t device = opened.device_id.get();
  const auto answer = [&](int error, const char* what, const proto::Io& io, bool is_read,
                          std::uint32_t size) {
    if (is_read) {
      client->Read(1, 3, proto::AsBytes(io), size);
    } else {
      client->Write(1, 3, proto::AsBytes(io), std::vector<std::byte>(size));
    }
    const int got = client->Await(3);
    return got == error || Fail(std::string(what) + ": answered with " + std::to_string(got));
  };
  proto::Io beyond = Io(4096, proto::IoOp::kRead, device);
  beyond.sector = proto::le64(1ull << 62);
  proto::Open open;
  open.dev_name.fill('x');
  client->Read(0, 0, proto::AsBytes(open), sizeof(proto::OpenRsp));
  if (client->Await(0) != -EINVAL) return Fail("a name without an end");
  client->Write(0, 0, std::array<std::byte, 2>{});
  if (client->Await(0) != -EINVAL) return Fail("a message of two bytes");
  return answer(-ENOTCONN, "an unknown device", Io(512, proto::IoOp::kRead, 999), true, 512) &&
         answer(-EINVAL, "another bi_size", Io(8192, proto::IoOp::kRead, device), true, 512) &&
         answer(-EINVAL, "a read without data", Io(512, proto::IoOp::kRead, device), true, 0) &&
         answer(-EINVAL, "beyond the end", beyond, true, 4096) &&
         answer(-EPERM, "a write, opened read-only", Io(512, proto::IoOp::kWrite, device), false,
                512) &&
         answer(0, "an honest read", Io(512, proto::IoOp::kRead, device), true, 512);
}

bool Peer::BadKeys() {
  Client first = Opened();
  if (first == nullptr) return false;
  const proto::ChunkAddress stale = first->chunk(0);
  first->Disconnect();
  first.reset();
  machine_.RunFor(500 * kNsPerMs);
  const std::vector<std::byte> bytes(4096, std::byte{0xbb});
  const auto poke = [&](const char* what, std::uint64_t addr, std::uint32_t rkey) {
    Client client = Opened();
    if (client == nullptr) return false;
    const fabric::Sge sge = client->Stage(bytes);
    fabric::SendRequest send;
    send.opcode = fabric::Opcode::kWrite;
    send.sges = {&sge, 1};
    send.remote = {addr, rkey};
    client->links[1]->connection->PostSend({&send, 1});
    return Lost(client, what);
  };
  if (!poke("the key of a session that is gone", stale.addr, stale.rkey)) return false;
  Client other = Opened();
  if (other == nullptr) return false;
  const proto::ChunkAddress theirs = other->chunk(1);
  if (!poke("another session's key", theirs.addr, theirs.rkey)) return false;
  if (other->AnyGone()) return Fail("another session's key: it lost its path");
  for (const std::uint32_t bit : {1u, 0x80u, 0x100u, 0x10000u, 0x80000000u}) {
    if (!poke("a key that is one bit off", theirs.addr, theirs.rkey ^ bit)) return false;
  }
  for (const std::int64_t off : {-4096, -1, 4096 + (128 << 10) - 4095}) {
    Client client = Opened();
    if (client == nullptr) return false;
    // Before the first of its chunks, and across the end of the last.
    const std::uint32_t id = off < 0 ? 0 : client->links[0]->response.queue_depth.get() - 1u;
    proto::ChunkAddress chunk = client->chunk(id);
    const fabric::Sge sge = client->Stage(bytes);
    fabric::SendRequest send;
    send.opcode = fabric::Opcode::kWrite;
    send.sges = {&sge, 1};
    send.remote = {chunk.addr + static_cast<std::uint64_t>(off), chunk.rkey};
    client->links[1]->connection->PostSend({&send, 1});
    if (!Lost(client, "a write outside of the chunks")) return false;
  }
  return true;
}

bool Peer::BadDescriptors() {
  for (const std::uint64_t addr : {0ull, 4096ull, 0xffffffffffffff00ull}) {
    Client client = Opened();
    if (client == nullptr) return false;
    proto::OpenRsp opened;
    if (client->OpenDevice(export_name_, proto::AccessMode::kReadOnly, &opened) != 0) {
      return Fail("open");
    }
    const proto::Io io = Io(4096, proto::IoOp::kRead, opened.device_id.get());
    const proto::SgDesc desc{
        .addr = proto::le64(addr), .key = proto::le32(0xdead), .len = proto::le32(4096)};
    std::vector<std::byte> bytes(512);
    bytes.resize(proto::EncodeReadRequest(bytes, proto::AsBytes(io), &desc));
    client->WriteImm(1, 2, 4096, bytes, client->RequestImm(2, 4096 + sizeof io));
    if (!Lost(client, "an answer to nowhere")) return false;
  }
  return true;
}

bool Peer::MoreThanPermits() {
  Client beyond = Opened();
  if (beyond == nullptr) return false;
  beyond->WriteImm(1, 0, 0, {}, 0x0fffffff);
  if (!Lost(beyond, "a chunk that there is not")) return false;
  Client client = Opened();
  if (client == nullptr) return false;
  proto::OpenRsp opened;
  if (client->OpenDevice(export_name_, proto::AccessMode::kReadOnly, &opened) != 0) {
    return Fail("open");
  }
  // One chunk, again and again, on two connections, without waiting: sooner or later it executes.
  const proto::Io io = Io(65536, proto::IoOp::kRead, opened.device_id.get());
  for (int i = 0; i < 200 && !client->AnyGone(); ++i) {
    client->Read(1 + static_cast<std::size_t>(i % 2), 3, proto::AsBytes(io), 512);
    if (i % 8 == 7) machine_.RunFor(kNsPerMs);
  }
  return Lost(client, "one chunk for many requests");
}

// Asks and does not listen: the answers wait for receives that never come.
bool Peer::NoReceives() {
  Client client = Opened();
  if (client == nullptr) return false;
  proto::OpenRsp opened;
  if (client->OpenDevice(export_name_, proto::AccessMode::kReadOnly, &opened) != 0) {
    return Fail("open");
  }
  client->set_deaf(true);
  const proto::Io io = Io(512, proto::IoOp::kRead, opened.device_id.get());
  for (std::uint32_t i = 0; i < 120 && !client->AnyGone(); ++i) {
    client->Read(1, i % 50, proto::AsBytes(io), 512);
    machine_.RunFor(2 * kNsPerMs);
  }
  machine_.RunFor(kNsPerSecond);
  return true;  // Whatever it got: the others must not notice.
}

// Connects that say nothing more, many at once; who comes honestly is let in all the same.
bool Peer::AFlood() {
  std::vector<Client> silent;
  for (int i = 0; i < 120; ++i) {
    silent.push_back(New());
    silent.back()->StartConnect(0, 4);
  }
  machine_.RunFor(300 * kNsPerMs);
  Client honest = Opened();
  if (honest == nullptr) return false;
  std::size_t waiting = 0;
  for (const Client& client : silent) waiting += client->AnyGone() ? 0 : 1;
  std::printf("  %zu of %zu silent connections were kept meanwhile\n", waiting, silent.size());
  // Half of them is not even told.
  for (std::size_t i = 0; i < silent.size(); i += 2) silent[i]->Disconnect();
  return true;
}

bool Peer::GoneAtEveryStep() {
  for (int step = 0; step < 8; ++step) {
    Client client = New();
    client->StartConnect(0, 2);
    if (step == 0) continue;  // At once.
    auto& link = *client->links.back();
    machine_.RunUntil([&link] { return link.established || link.rejected; }, kSoon);
    if (step == 1) continue;
    client->StartConnect(1, 2);
    if (step == 2) continue;
    auto& second = *client->links.back();
    machine_.RunUntil([&second] { return second.established || second.rejected; }, kSoon);
    if (step == 3) continue;
    client->SendInfo(Name());
    if (step == 4) continue;
    machine_.RunFor(200 * kNsPerMs);
    if (step == 5) continue;
    client = Opened();
    if (client == nullptr) return false;
    proto::OpenRsp opened;
    if (client->OpenDevice(export_name_, proto::AccessMode::kReadOnly, &opened) != 0) {
      return Fail("open");
    }
    if (step == 6) continue;
    for (std::uint32_t id = 0; id < 30; ++id) {  // Under IO.
      client->Read(1 + id % 2, id,
                   proto::AsBytes(Io(512, proto::IoOp::kRead, opened.device_id.get())), 512);
    }
  }
  return true;
}

int Run(const std::string& text, int rounds, const std::string& only) {
  const absl::StatusOr<Uri> uri = ParseUri(text);
  if (!uri.ok()) return 2;
  const absl::StatusOr<SocketAddress> server = ResolveAddress(uri->host, uri->port);
  if (!server.ok()) return 2;
  Machine machine(*server);
  Peer peer(machine, uri->export_name);
  const struct {
    const char* name;
    bool (Peer::*run)();
  } kParts[] = {
      {"bad connects", &Peer::BadConnects},
      {"connections in disorder", &Peer::ConnectionsInDisorder},
      {"bad INFO", &Peer::BadInfo},
      {"too early", &Peer::TooEarly},
      {"bad requests", &Peer::BadRequests},
      {"bad messages", &Peer::BadMessages},
      {"bad keys", &Peer::BadKeys},
      {"bad descriptors", &Peer::BadDescriptors},
      {"more than permits", &Peer::MoreThanPermits},
      {"no receives", &Peer::NoReceives},
      {"a flood", &Peer::AFlood},
      {"gone at every step", &Peer::GoneAtEveryStep},
  };
  for (int round = 0; round < rounds; ++round) {
    for (const auto& part : kParts) {
      if (!only.empty() && only != part.name) continue;
      const bool well = (peer.*part.run)();
      std::printf("%s: %s\n", part.name, well ? "ok" : "FAILED");
      std::fflush(stdout);
      if (!well) return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace ibnbd

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  return ibnbd::Run(argv[1], argc > 2 ? std::atoi(argv[2]) : 1, argc > 3 ? argv[3] : "");
}
