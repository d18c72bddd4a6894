// SPDX-License-Identifier: Apache-2.0
// A server on a simulated host, with exports in memory; for tests of both sides.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fabric/sim/sim_world.h"
#include "proto/rnbd.h"
#include "rnbd/server.h"
#include "rtrs/port.h"
#include "tests/support/fake_backend.h"

namespace ibnbd::rnbd {

class FakeExports final : public ExportProvider {
 public:
  FakeBackend& Add(const std::string& name, std::shared_ptr<FakeDisk> disk, FakeTiming timing = {},
                   bool read_only = false) {
    auto backend = std::make_unique<FakeBackend>(std::move(disk), timing);
    FakeBackend& added = *backend;
    auto exported = std::make_shared<Export>();
    exported->name = name;
    exported->backend = std::move(backend);
    exported->read_only = read_only;
    exports_[name] = std::move(exported);
    return added;
  }
  void Remove(const std::string& name) { exports_.erase(name); }
  Export& at(const std::string& name) { return *exports_.at(name); }

  absl::StatusOr<std::shared_ptr<Export>> Find(const std::string& session_name,
                                               const std::string& export_name) override {
    (void)session_name;
    const auto found = exports_.find(export_name);
    if (found == exports_.end()) return absl::NotFoundError("no export " + export_name);
    return found->second;
  }
  std::vector<std::shared_ptr<Export>> List(const std::string& session_name) override {
    (void)session_name;
    std::vector<std::shared_ptr<Export>> all;
    for (const auto& [name, exported] : exports_) all.push_back(exported);
    return all;
  }

 private:
  std::map<std::string, std::shared_ptr<Export>> exports_;
};

// Small enough that a test reaches the limits.
inline ServerOptions SmallServer() {
  ServerOptions options;
  options.queue_depth = 16;
  options.io_size_max = 8192;
  return options;
}

inline proto::Io MakeIo(proto::IoOp op, std::uint32_t device, std::uint64_t sector,
                        std::uint32_t size, std::uint32_t flags = 0) {
  proto::Io io;
  io.device_id = proto::le32(device);
  io.sector = proto::le64(sector);
  io.rw = proto::le32(static_cast<std::uint32_t>(op) | flags);
  io.bi_size = proto::le32(size);
  return io;
}

// Reactors and ports of one simulated host.
class SimPorts {
 public:
  SimPorts(sim::Host& host, int count) {
    for (int i = 0; i < count; ++i) {
      ports_.push_back(rtrs::Port::Create(host.AddReactor(), host.fabric()).value());
    }
  }
  [[nodiscard]] std::vector<rtrs::Port*> all() const {
    std::vector<rtrs::Port*> ports;
    for (const auto& port : ports_) ports.push_back(port.get());
    return ports;
  }

 private:
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
};

struct ServerFixture {
  ServerFixture(sim::World& in_world, const ServerOptions& options, int reactors = 2,
                const std::string& host_name = "server")
      : world(in_world), host(world.AddHost(host_name)), ports(host, reactors) {
    server = Server::Create(ports.all(), options, exports).value();
    address = server->Listen(host.Address(0)).value();
  }
  ~ServerFixture() { Stop(); }

  // True if everything was gone in time.
  bool Stop(std::int64_t deadline_ns = 10 * kNsPerSecond) {
    if (server == nullptr) return true;
    bool done = false;
    server->Stop(deadline_ns, [&done] { done = true; });
    const bool in_time = world.RunUntil([&done] { return done; }, deadline_ns + kNsPerSecond);
    server.reset();
    return in_time;
  }

  sim::World& world;
  sim::Host& host;
  SimPorts ports;
  FakeExports exports;
  std::unique_ptr<Server> server;
  SocketAddress address;
};

}  // namespace ibnbd::rnbd
