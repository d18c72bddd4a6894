// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/server_world.h"

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "base/check.h"
#include "base/log.h"

namespace ibnbd::fuzz {
namespace {

constexpr std::uint64_t kDiskSize = 64 << 10;
constexpr std::int64_t kHandshakeTimeoutNs = kNsPerSecond;
constexpr char kHonestName[] = "honest";

std::shared_ptr<rnbd::Export> MakeExport(std::string name, std::shared_ptr<rnbd::FakeDisk> disk,
                                         bool read_only) {
  auto exported = std::make_shared<rnbd::Export>();
  exported->name = std::move(name);
  const rnbd::FakeTiming timing{10 * kNsPerUs, 200 * kNsPerUs};
  exported->backend = std::make_unique<rnbd::FakeBackend>(std::move(disk), timing);
  exported->read_only = read_only;
  return exported;
}

rnbd::ServerOptions Options() {
  rnbd::ServerOptions options;
  options.queue_depth = ServerWorld::kQueueDepth;
  options.io_size_max = ServerWorld::kIoSizeMax;
  options.sessions_max = 4;
  options.connections_per_session_max = 8;
  options.devices_per_session_max = 4;
  options.chunk_memory_max = ServerWorld::kChunkMemoryMax;
  options.handshakes_max = 4;
  options.handshake_timeout_ns = kHandshakeTimeoutNs;
  return options;
}

}  // namespace

ServerWorld::ServerWorld(std::uint64_t seed)
    : world_(seed, sim::FaultPlan()),
      server_host_(world_.AddHost("server")),
      honest_host_(world_.AddHost(kHonestName)) {
  SetLogSink(nullptr, LogLevel::kError);
  const auto disk = std::make_shared<rnbd::FakeDisk>(rnbd::FakeGeometry(kDiskSize));
  own_ = MakeExport("vol0", disk, false);
  read_only_ = MakeExport("vol0", disk, true);
  other_ =
      MakeExport("vol1", std::make_shared<rnbd::FakeDisk>(rnbd::FakeGeometry(kDiskSize)), false);
  std::vector<rtrs::Port*> ports;
  for (int i = 0; i < 2; ++i) {
    Reactor& reactor = server_host_.AddReactor();
    ports_.push_back(rtrs::Port::Create(reactor, server_host_.fabric()).value());
    ports.push_back(ports_.back().get());
  }
  server_ = rnbd::Server::Create(ports, Options(), *this).value();
  address_ = server_->Listen(server_host_.Address(1234)).value();
  rtrs::ClientSessionOptions session;
  session.name = kHonestName;
  session.seed = seed + 1;
  honest_ = std::make_unique<HonestClient>(world_, honest_host_, address_, session);
  CHECK(honest_->Open(10 * kNsPerSecond, /*fail_after_ns=*/kNsPerSecond));
  JudgeNeighbour();
}

ServerWorld::~ServerWorld() {
  // Within the handshake's timeout, and what ending connections takes.
  const std::uint64_t honest_memory = kQueueDepth * std::uint64_t{kChunkSize};
  CHECK(world_.RunUntil(
      [&] {
        return server_->stats().sessions == 1 && server_->stats().chunk_memory == honest_memory;
      },
      kHandshakeTimeoutNs + 10 * kNsPerSecond));
  CHECK_EQ(server_->sessions().size(), 1u);
  CHECK_EQ(read_only_->reader_count + other_->reader_count + other_->writer_count, 0u);
  JudgeNow();
  JudgeNeighbour();
  honest_.reset();
  bool stopped = false;
  ports_[0]->reactor().Post(
      [&] { server_->Stop(2 * kNsPerSecond, [&stopped] { stopped = true; }); });
  CHECK(world_.RunUntil([&stopped] { return stopped; }, 2 * kNsPerSecond));
  world_.RunFor(kNsPerMs);
  CHECK_EQ(server_->stats().chunk_memory, 0u);
  server_.reset();
  CHECK_EQ(own_->writer_count, 0u);
  ports_.clear();
}

void ServerWorld::JudgeNow() {
  const rnbd::ServerStats stats = server_->stats();
  CHECK_LE(stats.chunk_memory, kChunkMemoryMax);
  CHECK_LE(stats.sessions, Options().sessions_max);
  for (const std::string& violation : world_.violations()) {
    // A client that writes into a chunk while the server sends from it hurts only itself.
    if (absl::StrContains(violation, "F9: a source changed") &&
        absl::StrContains(violation, "host server")) {
      continue;
    }
    std::fprintf(stderr, "violation: %s\n", violation.c_str());
    CHECK(world_.violations().empty());
  }
}

void ServerWorld::JudgeNeighbour() { honest_->WriteAndReadBack(rounds_++); }

absl::StatusOr<std::shared_ptr<rnbd::Export>> ServerWorld::Find(const std::string& session_name,
                                                                const std::string& export_name) {
  if (export_name == "vol0") return session_name == kHonestName ? own_ : read_only_;
  if (export_name == "vol1" && session_name != kHonestName) return other_;
  return absl::NotFoundError(export_name);
}

std::vector<std::shared_ptr<rnbd::Export>> ServerWorld::List(const std::string& session_name) {
  if (session_name == kHonestName) return {own_};
  return {read_only_, other_};
}

}  // namespace ibnbd::fuzz
