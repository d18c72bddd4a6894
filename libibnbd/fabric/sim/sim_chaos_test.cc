// SPDX-License-Identifier: Apache-2.0
// The simulator against itself: under every fault at once, over many seeds, the clauses of fabric.h
// that speak of always must hold.  Exactly one completion per signaled request (F1) and per
// receive, order on a connection (F2), kDisconnected once (F3), nothing touched after drained()
// (F10); and after the storm everything ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "fabric/sim/sim_world.h"

namespace ibnbd::sim {
namespace {
using fabric::CmEvent;
using fabric::Opcode;
using fabric::WcStatus;

constexpr std::uint32_t kSlots = 16;
constexpr std::uint32_t kWords = 8;  // Per slot: all equal, or the write was torn.
constexpr fabric::Limits kLimits{kSlots, kSlots, 2, 0};
constexpr std::uint64_t kReceiveBit = 1u << 20;

// One end, with memory that nobody else uses.
struct End {
  std::unique_ptr<fabric::Connection> connection;
  std::array<std::uint64_t, kSlots * kWords> memory{};
  std::unique_ptr<fabric::Region> region;
  std::uint64_t sent = 0, send_completions = 0, receives_posted = 0, receive_completions = 0;
  std::uint64_t next_imm = 0;  // Of the peer's messages.
  bool established = false, disconnected = false, ended = false;
  End* peer = nullptr;  // Known to the test only.
};

// A host's program: polls, answers, checks.
class Program final : public ReactorSource {
 public:
  Program(World& world, Host& host) : world_(world), host_(host), reactor_(host.AddReactor()) {
    poller_ = host.fabric().CreatePoller(reactor_).value();
    listener_ = poller_->Listen(host.Address(1), 0).value();
    reactor_.AddSource(*this);
  }
  ~Program() override { reactor_.RemoveSource(*this); }

  void Connect(Host& to) {
    End& end = NewEnd();
    end.connection = poller_->StartConnect(to.Address(1), Options(end), {}).value();
  }
  bool Poll() override {
    std::array<CmEvent, 3> events;
    const std::size_t event_count = poller_->PollEvents(events);
    for (std::size_t i = 0; i < event_count; ++i) OnEvent(events[i]);
    std::array<fabric::Completion, 5> batch;
    const std::size_t count = poller_->PollCompletions(batch);
    for (std::size_t i = 0; i < count; ++i) OnCompletion(batch[i]);
    return event_count + count > 0;
  }
  void Flush() override { poller_->Flush(); }
  // One write with immediate on every connection that can take it.
  void WriteEverywhere() {
    for (auto& [id, end] : ends_) {
      if (!end->established || end->disconnected || end->ended || end->peer == nullptr) continue;
      if (end->sent - end->send_completions >= kSlots / 2) continue;
      Write(id, *end);
    }
  }
  void DisconnectOne(Prng& prng) {
    if (ends_.empty()) return;
    auto victim = ends_.begin();
    std::advance(victim, static_cast<std::ptrdiff_t>(prng.Below(ends_.size())));
    victim->second->connection->Disconnect();
  }
  void DisconnectAll() {
    for (auto& [id, end] : ends_) end->connection->Disconnect();
  }
  // Destroys the drained ones, whose books must then be straight.
  void Reap() {
    for (auto it = ends_.begin(); it != ends_.end();) {
      End& end = *it->second;
      if (!end.connection->drained()) {
        ++it;
        continue;
      }
      EXPECT_TRUE(end.disconnected || end.ended);
      if (end.disconnected) {
        EXPECT_EQ(end.sent, end.send_completions);
        EXPECT_EQ(end.receives_posted, end.receive_completions);
      }
      end.connection.reset();
      end.memory.fill(~0ull);
      graves_.push_back(std::move(it->second));
      it = ends_.erase(it);
    }
  }
  void CheckGraves() const {
    for (const auto& end : graves_) {
      for (const std::uint64_t word : end->memory) ASSERT_EQ(word, ~0ull) << "F10";
    }
  }
  [[nodiscard]] std::size_t end_count() const { return ends_.size(); }
  std::uint64_t messages_seen = 0;

 private:
  End& NewEnd() {
    auto end = std::make_unique<End>();
    end->region =
        host_.fabric()
            .Register(std::as_writable_bytes(std::span(end->memory)), fabric::Access::kRemoteWrite)
            .value();
    End& made = *end;
    ends_[++last_id_] = std::move(end);
    return made;
  }
  fabric::ConnectionOptions Options(End& end) {
    receives_.assign(kSlots, {});
    for (std::uint32_t i = 0; i < kSlots; ++i) {
      receives_[i].cookie = last_id_ << 32 | kReceiveBit | i;
    }
    end.receives_posted = kSlots;
    return {kLimits, last_id_, receives_};
  }
  void Write(std::uint64_t id, End& end) {
    // The source slot is free again: its previous use is behind a completion.
    const std::uint64_t slot = end.sent % (kSlots / 2);
    std::uint64_t* source = &sources_[id].at(slot * kWords);
    for (std::uint32_t i = 0; i < kWords; ++i) source[i] = end.sent + 1;
    const fabric::Sge sge{reinterpret_cast<std::byte*>(source), kWords * 8, SourceKey(id)};
    fabric::SendRequest request;
    request.cookie = id << 32 | slot;
    request.opcode = Opcode::kWriteImm;
    request.imm = static_cast<std::uint32_t>(end.sent);
    request.remote = {reinterpret_cast<std::uintptr_t>(&end.peer->memory[slot * kWords]),
                      end.peer->region->rkey()};
    request.sges = {&sge, 1};
    ++end.sent;
    end.connection->PostSend({&request, 1});
  }
  std::uint32_t SourceKey(std::uint64_t id) {
    std::unique_ptr<fabric::Region>& region = source_regions_[id];
    if (region == nullptr) {
      region =
          host_.fabric()
              .Register(std::as_writable_bytes(std::span(sources_[id])), fabric::Access::kLocal)
              .value();
    }
    return region->lkey();
  }
  void OnEvent(CmEvent& event) {
    if (event.kind == CmEvent::Kind::kIncoming) {
      if (world_.prng().Chance(100'000)) return;  // Unanswered: rejected.
      End& end = NewEnd();
      end.connection = event.incoming->Accept(*poller_, Options(end), {}).value();
      return;
    }
    const auto found = ends_.find(event.context);
    ASSERT_NE(found, ends_.end()) << "an event of a connection that is gone";
    End& end = *found->second;
    ASSERT_EQ(event.connection, end.connection.get());
    switch (event.kind) {
      case CmEvent::Kind::kEstablished:
        EXPECT_FALSE(end.established || end.disconnected || end.ended);
        end.established = true;
        break;
      case CmEvent::Kind::kDisconnected:
        EXPECT_FALSE(end.disconnected || end.ended) << "F3";
        end.disconnected = true;
        break;
      default:
        EXPECT_FALSE(end.established || end.disconnected || end.ended);
        end.ended = true;
        EXPECT_TRUE(end.connection->drained());
    }
  }
  void OnCompletion(const fabric::Completion& completion) {
    const auto found = ends_.find(completion.cookie >> 32);
    ASSERT_NE(found, ends_.end()) << "a completion of a connection that is gone";
    End& end = *found->second;
    if ((completion.cookie & kReceiveBit) == 0) {
      ++end.send_completions;
      EXPECT_LE(end.send_completions, end.sent) << "F1";
      return;
    }
    ++end.receive_completions;
    if (completion.status != WcStatus::kOk) return;
    ++messages_seen;
    EXPECT_EQ(completion.imm, end.next_imm) << "F2";
    const std::uint64_t slot = end.next_imm % (kSlots / 2);
    ++end.next_imm;
    // At least this write; a later one may be on its way already, whole or not.
    EXPECT_GE(end.memory[slot * kWords], end.next_imm);
    const fabric::ReceiveRequest again{completion.cookie, {}};
    ++end.receives_posted;
    end.connection->PostReceive({&again, 1});
  }

  World& world_;
  Host& host_;
  Reactor& reactor_;
  std::map<std::uint64_t, std::array<std::uint64_t, kSlots * kWords>> sources_;
  std::map<std::uint64_t, std::unique_ptr<fabric::Region>> source_regions_;
  std::vector<std::unique_ptr<End>> graves_;
  std::unique_ptr<fabric::Poller> poller_;
  std::unique_ptr<fabric::Listener> listener_;
  std::map<std::uint64_t, std::unique_ptr<End>> ends_;
  std::vector<fabric::ReceiveRequest> receives_;
  std::uint64_t last_id_ = 0;

 public:
  // Tells both ends of a connection where the other's memory is, as a handshake would.
  static void Introduce(Program& a, Program& b) {
    for (auto& [id, end] : a.ends_) {
      if (end->peer != nullptr || !end->established) continue;
      for (auto& [other_id, other] : b.ends_) {
        if (other->peer != nullptr) continue;
        const auto same = [](const SocketAddress& x, const SocketAddress& y) {
          return x.sim_host == y.sim_host && x.port == y.port;
        };
        if (!same(end->connection->local_address(), other->connection->peer_address())) continue;
        if (!same(end->connection->peer_address(), other->connection->local_address())) continue;
        end->peer = other.get();
        other->peer = end.get();
        break;
      }
    }
  }
};

struct Outcome {
  std::uint64_t hash = 0;
  std::uint64_t messages = 0;
  FaultCounts counts;
};

Outcome RunChaos(std::uint64_t seed) {
  Prng prng(seed);
  const FaultPlan plan = DrawSwarmPlan(prng);
  SCOPED_TRACE(testing::Message() << "seed " << seed << " " << plan.ToString());
  World world(seed, plan);
  Host* hosts[2] = {&world.AddHost("a"), &world.AddHost("b")};
  std::unique_ptr<Program> programs[2];
  for (int i = 0; i < 2; ++i) programs[i] = std::make_unique<Program>(world, *hosts[i]);
  Outcome outcome;
  for (int step = 0; step < 300; ++step) {
    const std::size_t i = prng.Below(2);
    if (prng.Chance(60'000)) programs[i]->Connect(*hosts[1 - i]);
    if (prng.Chance(10'000)) programs[i]->DisconnectOne(prng);
    if (prng.Chance(3'000)) world.CutConnections(*hosts[0], *hosts[1]);
    if (prng.Chance(2'000)) world.PartitionOneWay(*hosts[i], *hosts[1 - i]);
    if (prng.Chance(5'000)) world.HealPartition(*hosts[0], *hosts[1]);
    world.RunFor(prng.Between(0, prng.Chance(50'000) ? kNsPerSecond : 50 * kNsPerUs));
    Program::Introduce(*programs[0], *programs[1]);
    Program::Introduce(*programs[1], *programs[0]);
    for (auto& program : programs) program->WriteEverywhere();
    for (auto& program : programs) program->Reap();
    for (auto& program : programs) program->CheckGraves();
  }
  world.HealEverything();
  for (auto& program : programs) program->DisconnectAll();
  EXPECT_TRUE(world.RunUntil(
      [&] {
        for (auto& program : programs) program->DisconnectAll();  // Accepted meanwhile.
        for (auto& program : programs) program->Reap();
        return programs[0]->end_count() + programs[1]->end_count() == 0;
      },
      120 * kNsPerSecond))
      << "a connection never ends";
  world.RunFor(60 * kNsPerSecond);
  for (auto& program : programs) {
    program->CheckGraves();
    outcome.messages += program->messages_seen;
  }
  EXPECT_THAT(world.violations(), testing::IsEmpty());
  outcome.hash = world.trace_hash();
  outcome.counts = world.counts();
  return outcome;
}

TEST(SimChaosTest, TheClausesHoldUnderEveryFault) {
  std::uint64_t messages = 0, late = 0, cuts = 0;
  for (std::uint64_t seed = 1; seed <= 300 && !HasFailure(); ++seed) {
    const Outcome outcome = RunChaos(seed);
    messages += outcome.messages;
    late += outcome.counts.landed_late;
    cuts += outcome.counts.cuts;
  }
  EXPECT_GT(messages, 10'000u);
  EXPECT_GT(late, 10u);
  EXPECT_GT(cuts, 100u);
}

TEST(SimChaosTest, ChaosIsRepeatable) {
  for (std::uint64_t seed = 1001; seed <= 1030; ++seed) {
    EXPECT_EQ(RunChaos(seed).hash, RunChaos(seed).hash) << "seed " << seed;
  }
}

}  // namespace
}  // namespace ibnbd::sim
