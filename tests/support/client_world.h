// SPDX-License-Identifier: Apache-2.0
// A simulated client host and server host with the real engine on both, for the client's tests: the
// server's disk is a FakeDisk, time is virtual, and every fault is under the test's control.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "fabric/sim/sim_world.h"
#include "gtest/gtest.h"
#include "rnbd/client.h"
#include "rnbd/server.h"
#include "tests/support/fake_backend.h"

namespace ibnbd::rnbd {

class TestExports final : public ExportProvider {
 public:
  absl::StatusOr<std::shared_ptr<Export>> Find(const std::string&,
                                               const std::string& name) override {
    for (const auto& entry : exports_) {
      if (entry->name == name) return entry;
    }
    return absl::NotFoundError("export " + name + ": no such export");
  }
  std::vector<std::shared_ptr<Export>> List(const std::string&) override { return exports_; }
  FakeBackend& Add(std::string name, std::shared_ptr<FakeDisk> disk, FakeTiming timing = {}) {
    auto entry = std::make_shared<Export>();
    auto backend = std::make_unique<FakeBackend>(std::move(disk), timing);
    FakeBackend& result = *backend;
    entry->name = std::move(name);
    entry->read_only = backend->geometry().read_only;
    entry->backend = std::move(backend);
    exports_.push_back(std::move(entry));
    return result;
  }
  void Clear() { exports_.clear(); }

 private:
  std::vector<std::shared_ptr<Export>> exports_;
};

// One server on a host of the world; stopped and started again at will.
class ServerNode {
 public:
  explicit ServerNode(sim::World& world) : world_(world), host_(world.AddHost("server")) {}
  ~ServerNode() { Stop(); }

  void Start(const ServerOptions& options = {}) {
    for (int i = 0; i < 2; ++i) {
      ports_.push_back(*rtrs::Port::Create(host_.AddReactor(), host_.fabric()));
    }
    server_ = *Server::Create({ports_[0].get(), ports_[1].get()}, options, exports_);
    ASSERT_TRUE(server_->Listen(address()).ok());
  }
  void Stop() {
    if (server_ == nullptr) return;
    bool stopped = false;
    server_->Stop(kNsPerSecond, [&] { stopped = true; });
    EXPECT_TRUE(world_.RunUntil([&] { return stopped; }, 20 * kNsPerSecond));
    server_.reset();
    ports_.clear();
  }
  [[nodiscard]] SocketAddress address() const { return host_.Address(1234); }
  [[nodiscard]] sim::Host& host() { return host_; }
  [[nodiscard]] TestExports& exports() { return exports_; }
  [[nodiscard]] Server& server() { return *server_; }
  [[nodiscard]] Reactor& control_reactor() { return ports_[0]->reactor(); }

 private:
  sim::World& world_;
  sim::Host& host_;
  TestExports exports_;
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  std::unique_ptr<Server> server_;
};

class TestIo final : public Io {
 public:
  ~TestIo() override = default;
  void OnIoDone(int error) override {
    ++done_count;
    result = error;
    if (on_done) on_done();
  }
  int done_count = 0;
  int result = 1;
  std::function<void()> on_done;
};

class ClientNode {
 public:
  static constexpr std::size_t kLanes = 2;

  ClientNode(sim::World& world, const std::string& name, std::size_t memory_size = 4 << 20)
      : world_(world), host_(world.AddHost(name)) {
    for (std::size_t i = 0; i <= kLanes; ++i) {
      ports_.push_back(*rtrs::Port::Create(host_.AddReactor(), host_.fabric()));
    }
    memory_ = *Arena::Create(memory_size);
    region_ = *host_.fabric().Register(memory_.bytes(), fabric::Access::kRemoteWrite);
    options_.session.name = name;
    options_.session.seed = 7;
  }
  ~ClientNode() {
    if (client_ == nullptr) return;
    if (!client_->closed()) Close(kNsPerSecond);
    // What was posted to the lanes last must have run.
    world_.RunFor(kNsPerMs);
    client_.reset();
    region_.reset();
    ports_.clear();
  }

  absl::Status Create(const SocketAddress& server) {
    options_.session.server = server;
    std::vector<rtrs::Port*> lanes;
    for (std::size_t i = 1; i <= kLanes; ++i) lanes.push_back(ports_[i].get());
    auto client = Client::Create(options_, *ports_[0], lanes);
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    return absl::OkStatus();
  }
  void StartInBackground(const SocketAddress& server) {
    ASSERT_TRUE(Create(server).ok());
    client_->Start(true, nullptr);
  }
  // What Start() answered.
  absl::Status Start(const SocketAddress& server, bool retry = false) {
    if (absl::Status created = Create(server); !created.ok()) return created;
    absl::Status status = absl::UnknownError("no answer");
    bool answered = false;
    client_->Start(retry, [&](const absl::Status& result) {
      EXPECT_FALSE(answered);
      answered = true;
      status = result;
    });
    EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 60 * kNsPerSecond));
    return status;
  }
  absl::StatusOr<Device*> Open(const std::string& name, AccessMode mode = AccessMode::kReadWrite,
                               const LossPolicy& policy = {}) {
    absl::StatusOr<Device*> device = absl::UnknownError("no answer");
    bool answered = false;
    client_->OpenDevice(name, mode, policy, [&](absl::StatusOr<Device*> result) {
      EXPECT_FALSE(answered);
      answered = true;
      device = std::move(result);
    });
    EXPECT_TRUE(world_.RunUntil([&] { return answered; }, 60 * kNsPerSecond));
    return device;
  }
  // Virtual ns that it took.
  std::int64_t Close(std::int64_t deadline_ns) {
    const std::int64_t start_ns = world_.now_ns();
    bool closed = false;
    client_->Close(deadline_ns, [&] { closed = true; });
    EXPECT_TRUE(world_.RunUntil([&] { return closed; }, 60 * kNsPerSecond));
    return world_.now_ns() - start_ns;
  }
  std::int64_t CloseDevice(Device* device, std::int64_t deadline_ns) {
    const std::int64_t start_ns = world_.now_ns();
    bool closed = false;
    client_->CloseDevice(device, deadline_ns, [&] { closed = true; });
    EXPECT_TRUE(world_.RunUntil([&] { return closed; }, 60 * kNsPerSecond));
    return world_.now_ns() - start_ns;
  }
  // An IO on the bytes of our memory that start at `memory_offset`.
  std::unique_ptr<TestIo> Make(IoOp op, std::uint64_t offset, std::uint64_t length,
                               std::size_t memory_offset = 0) {
    auto io = std::make_unique<TestIo>();
    io->op = op;
    io->offset = offset;
    io->length = length;
    if (op == IoOp::kRead || op == IoOp::kWrite) {
      io->data = memory_.bytes().subspan(memory_offset, length);
      io->keys = &region_->keys();
    }
    return io;
  }
  int Run(Device& device, TestIo& io, std::size_t lane = 0) {
    const int error = device.queue(lane).Submit(io);
    if (error != 0) return error;
    EXPECT_EQ(io.done_count, 0);  // C1.
    EXPECT_TRUE(world_.RunUntil([&] { return io.done_count > 0; }, 60 * kNsPerSecond));
    return io.result;
  }
  [[nodiscard]] std::span<std::byte> memory() { return memory_.bytes(); }
  [[nodiscard]] Client& client() { return *client_; }
  [[nodiscard]] sim::Host& host() { return host_; }
  [[nodiscard]] Reactor& lane_reactor(std::size_t lane) { return ports_[lane + 1]->reactor(); }
  [[nodiscard]] Client::Options& options() { return options_; }

 private:
  sim::World& world_;
  sim::Host& host_;
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  Arena memory_;
  std::unique_ptr<fabric::Region> region_;
  Client::Options options_;
  std::unique_ptr<Client> client_;
};

inline void FillPattern(std::span<std::byte> bytes, std::uint64_t seed) {
  Prng prng(seed);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(prng.Next());
}

}  // namespace ibnbd::rnbd
