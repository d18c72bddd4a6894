// SPDX-License-Identifier: Apache-2.0
#include "tests/vm/hostile_deeds.h"

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "proto/rnbd_codec.h"
#include "proto/rnbd_list.h"
#include "tests/vm/victim.h"

namespace ibnbd {
namespace {

using fabric::Opcode;
using proto::le16;
using proto::le32;
using proto::le64;
using Server = rnbd::ScriptedServer;
using Request = Server::Request;
using Conn = Server::Conn;

// --- What is asked for, and dealt with once. ---
using Filter = bool (*)(const Request&);
bool IsOf(const Request& request, proto::RnbdType wanted) {
  proto::RnbdType type{};
  return proto::DecodeType(request.rtrs.user_message(), &type) == nullptr && type == wanted;
}
bool IsInfo(const Request& request) { return IsOf(request, proto::RnbdType::kSessInfo); }
bool IsOpen(const Request& request) { return IsOf(request, proto::RnbdType::kOpen); }
bool IsIo(const Request& request) { return IsOf(request, proto::RnbdType::kIo); }
bool IsRead(const Request& request) { return IsIo(request) && request.rtrs.has_desc; }
bool IsWrite(const Request& request) {
  return IsIo(request) && !request.rtrs.is_read && request.rtrs.data_len != 0;
}

using Act = std::function<void(Server&, const Request&)>;
std::function<void(Server&)> Once(Filter filter, Act act) {
  return [filter, act](Server& server) {
    server.on_request = [&server, filter, act, done = false](const Request& request) mutable {
      if (done || !filter(request)) return false;
      done = true;
      act(server, request);
      return true;
    };
  };
}
std::function<void(Server&)> Always(Filter filter, Act act) {
  return [filter, act](Server& server) {
    server.on_request = [&server, filter, act](const Request& request) {
      if (!filter(request)) return false;
      act(server, request);
      return true;
    };
  };
}
std::function<void(Server&)> Offer(std::function<void(proto::ConnRsp&)> change) {
  return [change](Server& server) { change(server.offer); };
}
std::function<void(Server&)> Info(std::function<void(std::vector<proto::SgDesc>&)> change) {
  return [change](Server& server) { change(server.info); };
}
std::function<void(Server&)> RawInfo(Opcode opcode, std::size_t size, std::uint8_t type,
                                     std::uint8_t count) {
  return [opcode, size, type, count](Server& server) {
    server.on_info = [=](Conn& conn) {
      std::vector<std::byte> bytes(size);
      if (size > 2) bytes[0] = std::byte{type}, bytes[2] = std::byte{count};
      conn.Post(opcode, 0x10000000, bytes);
      return true;
    };
  };
}

std::uint32_t Answer(std::uint32_t msg_id, int error = 0,
                     proto::ImmType type = proto::ImmType::kIoRsp) {
  return proto::PackIoRsp(type, {.msg_id = msg_id, .error = error});
}
Act SendsImm(std::uint32_t imm, Opcode opcode = Opcode::kWriteImm, std::size_t bytes = 0) {
  return [imm, opcode, bytes](Server&, const Request& request) {
    request.conn->Post(opcode, imm, std::vector<std::byte>(bytes));
  };
}
// Writes where it may not; then the answer, as if all were well.
Act Pokes(std::function<fabric::RemoteAddress(const Request&)> where, std::size_t size = 512) {
  return [where, size](Server& server, const Request& request) {
    request.conn->Post(Opcode::kWrite, 0, std::vector<std::byte>(size, std::byte{0xbb}),
                       where(request));
    server.Serve(request);
  };
}
Act PokesLent(std::int64_t offset, std::uint32_t key_bits, std::size_t size = 512) {
  return Pokes(
      [offset, key_bits](const Request& request) -> fabric::RemoteAddress {
        return {request.rtrs.desc_addr + static_cast<std::uint64_t>(offset),
                request.rtrs.desc_key ^ key_bits};
      },
      size);
}

// --- The table. ---
std::vector<Deed> Accepts() {
  const auto raw = [](std::size_t size, std::uint8_t fill) {
    return [size, fill](Server& server) { server.raw_offer.assign(size, std::byte{fill}); };
  };
  return {
      {"accept: nothing", End::kRefused, "bad magic", raw(1, 0)},
      {"accept: ones", End::kRefused, "bad magic", raw(56, 0xff)},
      {"accept: another magic", End::kRefused, "bad magic",
       Offer([](auto& o) { o.magic = le16(0x1bbe); })},
      {"accept: another version", End::kRefused, "bad major version",
       Offer([](auto& o) { o.version = le16(0x0300); })},
      {"accept: an error", End::kRefused, "", Offer([](auto& o) { o.error = le16(0xfff0); })},
      {"accept: a positive error", End::kRefused, "positive",
       Offer([](auto& o) { o.error = le16(5); })},
      {"accept: no queue", End::kRefused, "queue_depth is 0",
       Offer([](auto& o) { o.queue_depth = le16(0); })},
      {"accept: two chunks", End::kRefused, "too small",
       Offer([](auto& o) { o.queue_depth = le16(2); })},
      {"accept: 65535 chunks", End::kRefused, "", Offer([](auto& o) {
         o.queue_depth = le16(65535);
         o.max_io_size = le32(512);
         o.max_hdr_size = le32(3584);
       })},
      {"accept: chunks of 4 GiB", End::kRefused, "immediate",
       Offer([](auto& o) { o.max_io_size = le32(0xfffffe00); })},
      {"accept: a sum that wraps", End::kRefused, "",
       Offer([](auto& o) { o.max_io_size = o.max_hdr_size = le32(0x80000000); })},
      {"accept: no room for data", End::kRefused, "less than a sector",
       Offer([](auto& o) { o.max_io_size = le32(0); })},
      {"accept: no room for headers", End::kRefused, "max_hdr_size",
       Offer([](auto& o) { o.max_hdr_size = le32(0); })},
  };
}

std::vector<Deed> Connects() {
  const auto second = [](std::function<void(Server&, std::unique_ptr<fabric::Incoming>&)> act) {
    return [act](Server& server) {
      server.on_connect = [&server, act](auto& incoming, const proto::ConnReq& request) {
        if (request.cid.get() == 0) return false;
        act(server, incoming);
        return true;
      };
    };
  };
  return {
      {"reject", End::kRefused, "busy", [](Server& s) { s.reject_with = -EBUSY; }},
      {"reject: without a reason", End::kRefused, "",
       [](Server& s) {
         s.on_connect = [](auto& incoming, const auto&) { return incoming.reset(), true; };
       }},
      {"reject: ones", End::kRefused, "",
       [](Server& s) {
         s.on_connect = [](auto& incoming, const auto&) {
           incoming->Reject(std::vector<std::byte>(56, std::byte{0xff}));
           return true;
         };
       }},
      {"silence at connect", End::kRefused, "",
       [](Server& s) {
         s.on_connect = [&s](auto& incoming, const auto&) {
           s.waiting.push_back(std::move(incoming));
           return true;
         };
       }},
      {"silence at the second connection", End::kRefused, "",
       second([](Server& s, auto& incoming) { s.waiting.push_back(std::move(incoming)); })},
      {"the second connection is rejected", End::kRefused, "",
       second([](Server&, auto& incoming) { incoming.reset(); })},
      {"the second connection offers something else", End::kIgnored, "",
       [](Server& s) {
         s.on_connect = [&s](auto&, const proto::ConnReq& request) {
           if (request.cid.get() != 0) s.offer.queue_depth = le16(7);
           return false;
         };
       }},
      {"gone at the second connection", End::kRefused, "",
       second([](Server& s, auto& incoming) { s.Disconnect(), incoming.reset(); })},
  };
}

std::vector<Deed> Infos() {
  return {
      {"silence at INFO", End::kRefused, "no answer within",
       [](Server& s) { s.on_info = [](Conn&) { return true; }; }},
      {"gone at INFO", End::kRefused, "",
       [](Server& s) { s.on_info = [&s](Conn&) { return s.Disconnect(), true; }; }},
      {"INFO: an answer to IO", End::kRefused, "instead of INFO_RSP",
       RawInfo(Opcode::kWriteImm, 0, 0, 0)},
      {"INFO: four bytes", End::kRefused, "too short", RawInfo(Opcode::kSend, 4, 1, 1)},
      {"INFO: another type", End::kRefused, "bad type", RawInfo(Opcode::kSend, 24, 9, 1)},
      {"INFO: fewer than it says", End::kRefused, "too short", RawInfo(Opcode::kSend, 24, 1, 32)},
      {"INFO: more than the queue is deep", End::kRefused, "sg_cnt > queue_depth",
       RawInfo(Opcode::kSend, 24, 1, 200)},
      {"INFO: longer than its room", End::kRefused, "", RawInfo(Opcode::kSend, 16384, 1, 1)},
      {"INFO: none", End::kRefused, "sg_cnt is 0", RawInfo(Opcode::kSend, 24, 1, 0)},
      {"INFO: too few", End::kRefused, "too few",
       Info([](auto& i) { i[0].len = le32(Server::kChunkSize); })},
      {"INFO: too many", End::kRefused, "too many",
       Info([](auto& i) { i[0].len = le32(40 * Server::kChunkSize); })},
      {"INFO: no multiple", End::kRefused, "not a multiple",
       Info([](auto& i) { i[0].len = le32(Server::kChunkSize + 1); })},
      {"INFO: beyond the address space", End::kRefused, "wraps",
       Info([](auto& i) { i[0].addr = le64(~0ull - 4096); })},
      // The victim's own writes are refused by the server's card, for ever.
      {"INFO: a key that is none", End::kRefused, "",
       Info([](auto& i) { i[0].key = le32(0xdead); })},
  };
}

std::vector<Deed> Opens() {
  const auto open = [](std::function<void(proto::OpenRsp&)> change) {
    return Once(IsOpen, [change](Server& server, const Request& request) {
      proto::OpenRsp response = server.open_rsp;
      change(response);
      server.Reply(request, 0, proto::AsBytes(response));
    });
  };
  return {
      {"silence after INFO", End::kRefused, "no sign of life",
       Once(IsInfo, [](Server& s, const Request&) { s.silent = true; })},
      {"gone at SESS_INFO", End::kRefused, "",
       Once(IsInfo, [](Server& s, const Request&) { s.Disconnect(); })},
      {"gone at OPEN", End::kRecovers, "",
       Once(IsOpen, [](Server& s, const Request&) { s.Disconnect(); })},
      {"OPEN: an error", End::kFails, "",
       Always(IsOpen, [](Server& s, const Request& r) { s.Reply(r, -EACCES); })},
      {"OPEN: zeros", End::kRecovers, "",
       Once(IsOpen,
            [](Server& s, const Request& r) {
              s.Reply(r, 0, std::vector<std::byte>(sizeof(proto::OpenRsp)));
            })},
      {"OPEN: blocks of 1000 bytes", End::kRecovers, "",
       open([](auto& o) { o.logical_block_size = le16(1000); })},
      {"OPEN: no blocks at all", End::kRecovers, "",
       open([](auto& o) { o.logical_block_size = le16(0); })},
      {"OPEN: more sectors than bytes can count", End::kRecovers, "",
       open([](auto& o) { o.nsectors = le64(1ull << 62); })},
      {"OPEN: an answer without data", End::kRecovers, "",
       Once(IsOpen, [](Server& s, const Request& r) { s.Reply(r, 0); })},
  };
}

// To a client that takes it for one of ours, and asks for a list.
std::vector<Deed> Lists() {
  const auto list = [](std::uint32_t count, std::uint32_t next, const char* name) {
    return [count, next, name = std::string(name)](Server& server) {
      server.offer.version = le16(proto::kRtrsVersion);
      server.on_request = [&server, count, next, name](const Request& request) {
        if (!IsOf(request, proto::RnbdType::kList)) return false;
        proto::ListRsp header;
        header.count = le32(count);
        header.next_index = le32(next);
        proto::ListEntry entry{.nsectors = le64(128), .logical_block_size = le32(512)};
        (void)proto::SetName(&entry.name, name);
        std::vector<std::byte> bytes(request.rtrs.data_len);
        std::memcpy(bytes.data(), &header, sizeof header);
        std::memcpy(bytes.data() + sizeof header, &entry, sizeof entry);
        server.Reply(request, 0, bytes);
        return true;
      };
    };
  };
  return {
      {"LIST: honest", End::kIgnored, "", list(1, 0, "vol")},
      {"LIST: more than there is room for", End::kRecovers, "list", list(0xffffffff, 0, "vol")},
      {"LIST: a page without entries", End::kRecovers, "without entries", list(0, 7, "vol")},
      {"LIST: the same page for ever", End::kRecovers, "list", list(1, 1, "vol")},
      {"LIST: a name that writes to the terminal", End::kRecovers, "list", list(1, 0, "\33[2J")},
  };
}

std::vector<Deed> Answers() {
  const auto ignored = [](std::uint32_t imm) {
    return Once(IsIo, [imm](Server& server, const Request& request) {
      for (int i = 0; i < 60; ++i) request.conn->Post(Opcode::kWriteImm, imm, {});
      server.Serve(request);
    });
  };
  return {
      {"answer: for another connection's chunk", End::kRecovers, "another connection",
       Once(IsIo, SendsImm(Answer(0)))},
      {"answer: for no chunk", End::kRecovers, "another connection",
       Once(IsIo, SendsImm(Answer((1u << 19) - 1)))},
      {"answer: twice", End::kRecovers, "a response without a request",
       Once(IsWrite, [](Server& s, const Request& r) { s.Reply(r, 0), s.Reply(r, 0); })},
      {"answer: by a send", End::kRecovers, "a response by a send",
       Once(IsIo, [](Server&,
                     const Request& r) { r.conn->Post(Opcode::kSendImm, Answer(r.mem_id), {}); })},
      {"answer: a message without an immediate", End::kRecovers, "without an immediate",
       Once(IsIo, SendsImm(0, Opcode::kSend, 8))},
      {"answer: longer than a receive", End::kRecovers, "",
       Once(IsIo, SendsImm(0, Opcode::kSend, 512))},
      {"answer: an invalidation that was none", End::kRecovers, "claims an invalidation",
       Once(IsRead,
            [](Server&, const Request& r) {
              r.conn->Post(Opcode::kWriteImm,
                           Answer(r.mem_id, 0, proto::ImmType::kIoRspInvalidated), {});
            })},
      {"answer: the key invalidated", End::kRecovers, "",
       Once(IsRead,
            [](Server&, const Request& r) {
              fabric::SendRequest send;
              send.opcode = Opcode::kSendInvalidate;
              send.invalidate_rkey = r.rtrs.desc_key;
              r.conn->Post(send, {});
            })},
      {"answer: less data than asked for", End::kRecovers, "a read of another size",
       Once(IsRead,
            [](Server&, const Request& r) {
              r.conn->Post(Opcode::kWriteImm, Answer(r.mem_id), std::vector<std::byte>(512),
                           {r.rtrs.desc_addr, r.rtrs.desc_key});
            })},
      {"60 immediates of no known type", End::kIgnored, "", ignored(0x30000000)},
      {"60 heartbeats where none belong", End::kIgnored, "", ignored(proto::kImmHbMsg)},
      {"a flood of heartbeats", End::kIgnored, "",
       Once(IsOpen,
            [](Server& s, const Request& r) {
              for (int i = 0; i < 200; ++i) r.conn->Post(Opcode::kWriteImm, proto::kImmHbMsg, {});
              s.Serve(r);
            })},
      {"gone at IO", End::kRecovers, "",
       Once(IsIo, [](Server& s, const Request&) { s.Disconnect(); })},
      {"gone at IO, always", End::kNothing, "",
       Always(IsIo, [](Server& s, const Request&) { s.Disconnect(); })},
      {"IO that is never answered", End::kCancelled, "",
       Once(IsIo, [](Server&, const Request&) {})},
      {"silence in mid-IO", End::kFails, "",
       Once(IsIo, [](Server& s, const Request&) { s.silent = true; })},
  };
}

std::vector<Deed> Pokes(const fabric::RemoteAddress& lent) {
  const auto stale = [](Server& server) {
    server.on_request = [first = fabric::RemoteAddress(), reads = 0](const Request& r) mutable {
      if (!IsRead(r) || ++reads > 2) return false;
      if (reads == 1) first = {r.rtrs.desc_addr, r.rtrs.desc_key};
      if (reads == 2) r.conn->Post(Opcode::kWrite, 0, std::vector<std::byte>(512), first);
      return false;
    };
  };
  return {
      {"poke: before what was lent", End::kRecovers, "", Once(IsRead, PokesLent(-512, 0))},
      {"poke: across its beginning", End::kRecovers, "", Once(IsRead, PokesLent(-256, 0))},
      {"poke: across its end", End::kRecovers, "", Once(IsRead, PokesLent((16 << 10) - 256, 0))},
      {"poke: behind it", End::kRecovers, "", Once(IsRead, PokesLent(16 << 10, 0))},
      {"poke: a key that is one bit off", End::kRecovers, "", Once(IsRead, PokesLent(0, 1))},
      {"poke: another index", End::kRecovers, "", Once(IsRead, PokesLent(0, 0x100))},
      {"poke: a key that is none", End::kRecovers, "", Once(IsRead, PokesLent(0, 0x7fffff00))},
      {"poke: the key of a registration that is gone", End::kRecovers, "", stale},
      {"poke: another session's memory and key", End::kRecovers, "",
       Once(IsRead, Pokes([&lent](const Request&) -> fabric::RemoteAddress {
              return {lent.addr + kNeighbourHalf, lent.rkey};
            }))},
  };
}

std::vector<Deed> NewKeys() {
  const auto reply = [](std::function<void(proto::RkeyRsp&)> change, std::size_t size = 8) {
    return [change, size](Server& server) {
      server.offer.flags = le32(proto::kConnRspNewRkey);
      Once(IsWrite, [change, size](Server& s, const Request& r) {
        proto::RkeyRsp rkey;
        rkey.buf_id = le16(static_cast<std::uint16_t>(r.mem_id));
        rkey.rkey = s.info[0].key;
        change(rkey);
        r.conn->Post(Opcode::kSendImm, Answer(r.mem_id), proto::AsBytes(rkey).first(size));
      })(server);
    };
  };
  return {
      {"new key: honest", End::kIgnored, "", reply([](auto&) {})},
      {"new key: of another chunk", End::kRecovers, "",
       reply([](auto& r) { r.buf_id = le16(static_cast<std::uint16_t>(r.buf_id.get() + 1)); })},
      {"new key: another type", End::kRecovers, "", reply([](auto& r) { r.type = le16(77); })},
      {"new key: half of it", End::kRecovers, "", reply([](auto&) {}, 4)},
      {"new key: an answer without one", End::kRecovers, "",
       [](Server& server) {
         server.offer.flags = le32(proto::kConnRspNewRkey);
         Once(IsWrite, [](Server&, const Request& r) {
           r.conn->Post(Opcode::kWriteImm, Answer(r.mem_id), {});
         })(server);
       }},
  };
}

}  // namespace

std::vector<Deed> AllDeeds(const fabric::RemoteAddress& lent) {
  std::vector<Deed> all;
  for (auto& part :
       {Accepts(), Connects(), Infos(), Opens(), Lists(), Answers(), Pokes(lent), NewKeys()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace ibnbd
