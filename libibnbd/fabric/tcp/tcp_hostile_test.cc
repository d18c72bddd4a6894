// SPDX-License-Identifier: Apache-2.0
// Strangers at the door of the tcp fabric: plain sockets that say nothing, the wrong thing, or the
// right thing and then the wrong thing.  Whatever they do, they lose their own connection and
// nothing else.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/prng.h"
#include "base/unique_fd.h"
#include "fabric/tcp/tcp_fabric.h"
#include "proto/tcp_frame.h"
#include "reactor/reactor.h"

namespace ibnbd::tcp {
namespace {

using fabric::CmEvent;
using proto::le16;
using proto::le32;
using proto::le64;
using proto::tcp::FrameHeader;
using proto::tcp::FrameOpcode;
using proto::tcp::Greeting;
using proto::tcp::GreetingKind;

// Real time plus what the test adds.
class ShiftedClock final : public Clock {
 public:
  std::int64_t NowNs() const override { return real_.NowNs() + shift_ns; }
  std::int64_t shift_ns = 0;

 private:
  MonotonicClock real_;
};

class Stranger {
 public:
  explicit Stranger(const SocketAddress& address)
      : fd_(::socket(address.family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(address.bytes.data()),
                        address.length),
              0);
  }
  void Say(const void* data, std::size_t size) {
    // A peer that has hung up already is fine.
    (void)::send(fd_.get(), data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  template <class T>
  void Say(const T& message) {
    Say(&message, sizeof message);
  }
  // What has come, or nothing; `closed` once the other side has ended.
  void Listen() {
    std::array<std::byte, 4096> bytes;
    const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got > 0) heard.insert(heard.end(), bytes.begin(), bytes.begin() + got);
    if (got == 0 || (got < 0 && errno != EAGAIN)) closed = true;
  }
  std::vector<std::byte> heard;
  bool closed = false;

 private:
  UniqueFd fd_;
};

class HostileTest : public testing::Test {
 protected:
  void SetUp() override {
    SetLogSink([this](LogLevel, const std::string& line) { log.push_back(line); }, LogLevel::kWarn);
    fabric_ = *CreateTcpFabric();
    reactor_ = *Reactor::Create(clock_, ReactorOptions{});
    poller_ = *fabric_->CreatePoller(*reactor_);
    arena_ = *Arena::Create(1 << 20);
    region_ = *fabric_->Register(arena_.bytes(), fabric::Access::kRemoteWrite);
    listener_ = *poller_->Listen(*ResolveAddress("127.0.0.1", 0), 1);
  }
  void TearDown() override {
    for (auto& connection : connections_) connection->Disconnect();
    EXPECT_TRUE(Until([&] {
      for (auto& connection : connections_) {
        if (!connection->drained()) return false;
      }
      return true;
    }));
    connections_.clear();
    held_.clear();
    listener_.reset();
    region_.reset();
    poller_.reset();
    SetLogSink(nullptr, LogLevel::kWarn);
  }
  void Pump() {
    poller_->Flush();
    reactor_->RunTurn();
    std::array<fabric::Completion, 8> batch;
    const std::size_t count = poller_->PollCompletions(batch);
    completions.insert(completions.end(), batch.begin(), batch.begin() + count);
    CmEvent event;
    while (poller_->PollEvents({&event, 1}) == 1) {
      if (event.kind == CmEvent::Kind::kIncoming && hold_) {
        held_.push_back(std::move(event.incoming));
      } else if (event.kind == CmEvent::Kind::kIncoming) {
        Accept(*event.incoming);
      }
      if (event.kind == CmEvent::Kind::kEstablished) ++established;
      if (event.kind == CmEvent::Kind::kDisconnected) ++disconnected;
      event.incoming.reset();
    }
  }
  void Accept(fabric::Incoming& incoming) {
    fabric::ConnectionOptions options;
    options.limits = {32, 8, 2, 0};
    connections_.push_back(*incoming.Accept(*poller_, options, {}));
  }
  bool Until(const std::function<bool()>& condition) {
    const std::int64_t deadline_ns = MonotonicClock().NowNs() + 15 * kNsPerSecond;
    while (!condition()) {
      Pump();
      if (MonotonicClock().NowNs() > deadline_ns) return condition();
    }
    return true;
  }
  bool UntilClosed(Stranger& stranger) {
    return Until([&] {
      stranger.Listen();
      return stranger.closed;
    });
  }
  std::unique_ptr<Stranger> Call() {
    return std::make_unique<Stranger>(listener_->local_address());
  }
  // A stranger that has been accepted.
  std::unique_ptr<Stranger> CallPolitely() {
    auto stranger = Call();
    const std::size_t before = connections_.size();
    stranger->Say(proto::tcp::MakeGreeting(GreetingKind::kConnect, 0));
    EXPECT_TRUE(Until([&] {
      stranger->Listen();
      return connections_.size() == before + 1 && stranger->heard.size() >= sizeof(Greeting);
    }));
    stranger->heard.clear();
    return stranger;
  }
  FrameHeader Write(std::uint32_t length) {
    FrameHeader header;
    header.opcode = FrameOpcode::kWrite;
    header.magic = le16(proto::tcp::kFrameMagic);
    header.length = le32(length);
    header.rkey = le32(region_->rkey());
    header.addr = le64(reinterpret_cast<std::uintptr_t>(arena_.bytes().data()));
    return header;
  }
  void ExpectTheDoorStillOpens() {
    auto guest = CallPolitely();
    guest->Say(Write(4));
    guest->Say("good", 4);
    EXPECT_TRUE(Until([&] { return std::memcmp(arena_.bytes().data(), "good", 4) == 0; }));
  }

  ShiftedClock clock_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<fabric::Poller> poller_;
  Arena arena_;
  std::unique_ptr<fabric::Region> region_;
  std::unique_ptr<fabric::Listener> listener_;
  std::vector<std::unique_ptr<fabric::Connection>> connections_;
  bool hold_ = false;  // Requests are kept without an answer, as those that wait for the fence.
  std::vector<std::unique_ptr<fabric::Incoming>> held_;
  std::vector<fabric::Completion> completions;
  std::vector<std::string> log;
  int established = 0;
  int disconnected = 0;
};

TEST_F(HostileTest, RandomBytesAtTheDoorAreShownOut) {
  Prng prng(1);
  for (int i = 0; i < 50; ++i) {
    auto stranger = Call();
    std::array<std::uint64_t, 100> noise;
    for (auto& word : noise) word = prng.Next();
    stranger->Say(noise);
    ASSERT_TRUE(UntilClosed(*stranger));
    EXPECT_TRUE(stranger->heard.empty());
  }
  EXPECT_TRUE(connections_.empty());
  EXPECT_LE(log.size(), 2u) << "a peer can fill our log";
  EXPECT_GE(log.size(), 1u);
  ExpectTheDoorStillOpens();
}

TEST_F(HostileTest, AGreetingOfAnotherVersionIsShownOut) {
  auto stranger = Call();
  Greeting greeting = proto::tcp::MakeGreeting(GreetingKind::kConnect, 0);
  greeting.version = le16(9);
  stranger->Say(greeting);
  ASSERT_TRUE(UntilClosed(*stranger));
  ASSERT_EQ(log.size(), 1u);
  EXPECT_NE(log[0].find("unknown version"), std::string::npos) << log[0];
}

TEST_F(HostileTest, WhoSaysNothingIsShownOutAfterTenSeconds) {
  auto silent = Call();
  auto slow = Call();
  slow->Say("ibnbd", 5);
  ExpectTheDoorStillOpens();
  clock_.shift_ns += 9 * kNsPerSecond;
  for (int i = 0; i < 100; ++i) Pump();
  silent->Listen();
  EXPECT_FALSE(silent->closed);
  clock_.shift_ns += 2 * kNsPerSecond;
  EXPECT_TRUE(UntilClosed(*silent));
  EXPECT_TRUE(UntilClosed(*slow));
}

TEST_F(HostileTest, ACrowdOfSilentStrangersIsLimitedAndKeepsNobodyOut) {
  std::vector<std::unique_ptr<Stranger>> crowd;
  for (int i = 0; i < 200; ++i) {
    crowd.push_back(Call());
    Pump();
  }
  auto guest = Call();
  guest->Say(proto::tcp::MakeGreeting(GreetingKind::kConnect, 0));
  EXPECT_TRUE(Until([&] { return connections_.size() == 1; }));
  std::size_t inside = 0;
  for (auto& stranger : crowd) {
    stranger->Listen();
    if (!stranger->closed) ++inside;
  }
  EXPECT_GT(inside, 0u);
  EXPECT_LE(inside, 128u);
}

TEST_F(HostileTest, RequestsThatTheEngineKeepsWaitingTakeNobodysPlace) {
  hold_ = true;
  std::vector<std::unique_ptr<Stranger>> crowd;
  for (std::size_t count = 1; count <= 200; ++count) {
    crowd.push_back(Call());
    crowd.back()->Say(proto::tcp::MakeGreeting(GreetingKind::kConnect, 0));
    ASSERT_TRUE(Until([&] { return held_.size() == count; })) << count;
  }
  hold_ = false;
  ExpectTheDoorStillOpens();
}

TEST_F(HostileTest, AMalformedFrameIsRefusedAndCostsOnlyItsConnection) {
  auto good = CallPolitely();
  auto bad = CallPolitely();
  FrameHeader header = Write(4);
  header.flags = 0x80;
  bad->Say(header);
  ASSERT_TRUE(UntilClosed(*bad));
  ASSERT_EQ(bad->heard.size(), sizeof(FrameHeader));
  FrameHeader refusal;
  std::memcpy(&refusal, bad->heard.data(), sizeof refusal);
  EXPECT_EQ(refusal.opcode, FrameOpcode::kRefuse);
  EXPECT_TRUE(Until([&] { return disconnected == 1; }));
  good->Say(Write(3));
  good->Say("yes", 3);
  EXPECT_TRUE(Until([&] { return std::memcmp(arena_.bytes().data(), "yes", 3) == 0; }));
}

TEST_F(HostileTest, AcknowledgingWhatWasNeverSentBreaks) {
  auto bad = CallPolitely();
  FrameHeader header = Write(0);
  header.opcode = FrameOpcode::kAck;
  header.rkey = le32(0);
  header.addr = le64(0);
  header.ack_count = le32(1);
  bad->Say(header);
  ASSERT_TRUE(UntilClosed(*bad));
  EXPECT_TRUE(Until([&] { return disconnected == 1; }));
}

TEST_F(HostileTest, AWriteThatEndsInTheMiddleTouchesNothingElse) {
  auto bad = CallPolitely();
  bad->Say(Write(1000));
  bad->Say("partial", 7);
  EXPECT_TRUE(Until([&] { return std::memcmp(arena_.bytes().data(), "partial", 7) == 0; }));
  bad.reset();
  EXPECT_TRUE(Until([&] { return disconnected == 1; }));
  EXPECT_EQ(arena_.bytes()[7], std::byte{0});
  ExpectTheDoorStillOpens();
}

TEST_F(HostileTest, ARevokedRegionIsLandedOnUntilTheConnectionIsDrained) {
  auto bad = CallPolitely();
  bad->Say(Write(1000));
  bad->Say("partial", 7);
  EXPECT_TRUE(Until([&] { return std::memcmp(arena_.bytes().data(), "partial", 7) == 0; }));
  EXPECT_FALSE(region_->Revoke());
  connections_[0]->Disconnect();
  EXPECT_TRUE(Until([&] { return connections_[0]->drained(); }));
  EXPECT_TRUE(region_->Revoke());
  // Whoever begins later is refused.
  auto late = CallPolitely();
  late->Say(Write(1000));
  ASSERT_TRUE(UntilClosed(*late));
  EXPECT_TRUE(region_->Revoke());
}

TEST_F(HostileTest, RandomFramesNeverWriteOutsideTheRegion) {
  Prng prng(7);
  for (int round = 0; round < 100; ++round) {
    auto bad = CallPolitely();
    const std::size_t expected = static_cast<std::size_t>(round) + 1;
    FrameHeader header = Write(static_cast<std::uint32_t>(prng.Below(100)));
    auto* bytes = reinterpret_cast<unsigned char*>(&header);
    for (std::uint64_t i = prng.Below(4); i < 4; ++i) {
      bytes[prng.Below(sizeof header)] ^= static_cast<unsigned char>(1u << prng.Below(8));
    }
    bad->Say(header);
    std::array<std::byte, 5000> payload{};
    bad->Say(payload);
    bad.reset();
    ASSERT_TRUE(Until([&] { return static_cast<std::size_t>(disconnected) == expected; }));
  }
  ExpectTheDoorStillOpens();
}

TEST_F(HostileTest, APeerThatStopsReadingBlocksOnlyItself) {
  auto deaf = CallPolitely();
  // Big writes towards it, until the sockets are full and our slots stay taken.
  const fabric::Sge sge{arena_.bytes().data(), 1 << 20, region_->lkey()};
  fabric::SendRequest request;
  request.opcode = fabric::Opcode::kWrite;
  request.remote = {0x1000, 1};
  request.sges = {&sge, 1};
  for (int i = 0; i < 32; ++i) connections_[0]->PostSend({&request, 1});
  for (int i = 0; i < 2000; ++i) Pump();
  EXPECT_TRUE(completions.empty());
  ExpectTheDoorStillOpens();
  connections_[0]->Disconnect();
  EXPECT_TRUE(Until([&] { return connections_[0]->drained(); }));
  EXPECT_EQ(completions.size(), 32u);
  for (const auto& c : completions) EXPECT_EQ(c.status, fabric::WcStatus::kFlushed);
}

}  // namespace
}  // namespace ibnbd::tcp
