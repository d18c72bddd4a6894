// SPDX-License-Identifier: Apache-2.0
// Client and server as they ship: over TCP on loopback, every reactor on a thread of its own.  What
// one thread must not know of another shows here under ThreadSanitizer.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "fabric/tcp/tcp_fabric.h"
#include "rnbd/client.h"
#include "rnbd/server_fixture.h"

namespace ibnbd::rnbd {
namespace {

constexpr int kThreads = 3;
constexpr int kIosPerLane = 500;
constexpr int kDepth = 16;
constexpr std::uint32_t kIoSize = 8192;

// Reactors with ports and threads.
class Threads {
 public:
  explicit Threads(fabric::Fabric& fabric) {
    for (int i = 0; i < kThreads; ++i) {
      reactors_.push_back(Reactor::Create(clock_, {}).value());
      ports_.push_back(rtrs::Port::Create(*reactors_.back(), fabric).value());
    }
  }
  void Start() {
    for (auto& reactor : reactors_) threads_.emplace_back([&reactor] { reactor->Run(); });
  }
  void Join() {
    for (auto& reactor : reactors_) reactor->Stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  [[nodiscard]] std::vector<rtrs::Port*> ports() const {
    std::vector<rtrs::Port*> all;
    for (const auto& port : ports_) all.push_back(port.get());
    return all;
  }
  Reactor& reactor(std::size_t index) { return *reactors_[index]; }
  // Runs `start` on the control thread and waits for what it answers.
  template <class T>
  T Ask(std::function<void(std::function<void(T)>)> start) {
    std::promise<T> promise;
    reactors_[0]->Post(
        [&] { start([&promise](T value) { promise.set_value(std::move(value)); }); });
    return promise.get_future().get();
  }

 private:
  MonotonicClock clock_;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  std::vector<std::thread> threads_;
};

// Writes a piece, reads it back, compares; then the next, until it has done its share.
class Worker final : public Io {
 public:
  Worker(DeviceQueue& in_queue, std::span<std::byte> memory, const fabric::Region& region,
         std::uint64_t base, std::function<void()> on_end)
      : queue_(in_queue), base_(base), on_end_(std::move(on_end)) {
    data = memory;
    keys = &region.keys();
    length = memory.size();
  }
  void Start() {
    op = IoOp::kWrite;
    offset = base_ + static_cast<std::uint64_t>(round_ % 4) * kIoSize;
    std::fill(data.begin(), data.end(), Pattern());
    ASSERT_EQ(queue_.Submit(*this), 0);
  }
  void OnIoDone(int error) override {
    if (error != 0) ++failures_;
    if (op == IoOp::kWrite) {
      op = IoOp::kRead;
      std::fill(data.begin(), data.end(), std::byte{0});
      ASSERT_EQ(queue_.Submit(*this), 0);
      return;
    }
    if (std::count(data.begin(), data.end(), Pattern()) != kIoSize) ++failures_;
    if (++round_ == kIosPerLane / kDepth) return on_end_();
    Start();
  }
  [[nodiscard]] int failures() const { return failures_; }

 private:
  [[nodiscard]] std::byte Pattern() const {
    return std::byte((base_ / kIoSize + static_cast<std::uint64_t>(round_)) % 251 + 1);
  }
  DeviceQueue& queue_;
  const std::uint64_t base_;
  const std::function<void()> on_end_;
  int round_ = 0;
  int failures_ = 0;
};

TEST(Threads, EveryLaneReadsBackWhatItWrote) {
  auto server_fabric = tcp::CreateTcpFabric().value();
  auto client_fabric = tcp::CreateTcpFabric().value();
  Threads server_threads(*server_fabric), client_threads(*client_fabric);
  FakeExports exports;
  // One disk per lane: FakeDisk is for one thread.
  std::vector<std::shared_ptr<FakeDisk>> disks;
  for (int lane = 0; lane < kThreads - 1; ++lane) {
    disks.push_back(std::make_shared<FakeDisk>(FakeGeometry(4 << 20)));
    exports.Add("vol" + std::to_string(lane), disks.back());
  }
  ServerOptions options;
  options.queue_depth = 64;
  options.io_size_max = 16384;
  auto server = Server::Create(server_threads.ports(), options, exports).value();
  const SocketAddress address = server->Listen(ResolveAddress("127.0.0.1", 0).value()).value();
  server_threads.Start();

  std::vector<std::byte> memory((kThreads - 1) * kDepth * kIoSize);
  auto region = client_fabric->Register(memory, fabric::Access::kRemoteWrite).value();
  Client::Options client_options;
  client_options.session.name = "threads";
  client_options.session.server = address;
  const std::vector<rtrs::Port*> ports = client_threads.ports();
  auto client = Client::Create(client_options, *ports[0], std::span(ports).subspan(1)).value();
  client_threads.Start();
  const absl::Status started = client_threads.Ask<absl::Status>(
      [&](std::function<void(absl::Status)> done) { client->Start(false, std::move(done)); });
  ASSERT_TRUE(started.ok()) << started;

  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<std::promise<void>> ended((kThreads - 1) * kDepth);
  std::vector<Device*> devices;
  for (std::size_t lane = 0; lane + 1 < kThreads; ++lane) {
    auto device = client_threads.Ask<absl::StatusOr<Device*>>([&](auto done) {
      client->OpenDevice("vol" + std::to_string(lane), AccessMode::kReadWrite, {}, done);
    });
    ASSERT_TRUE(device.ok()) << device.status();
    devices.push_back(*device);
    for (std::size_t i = 0; i < kDepth; ++i) {
      const std::size_t index = lane * kDepth + i;
      workers.push_back(std::make_unique<Worker>(
          (*device)->queue(lane), std::span(memory).subspan(index * kIoSize, kIoSize), *region,
          i * 4 * kIoSize, [&ended, index] { ended[index].set_value(); }));
      client_threads.reactor(lane + 1).Post([worker = workers.back().get()] { worker->Start(); });
    }
  }
  for (std::promise<void>& end : ended) end.get_future().get();
  for (const auto& worker : workers) EXPECT_EQ(worker->failures(), 0);

  client_threads.Ask<bool>(
      [&](std::function<void(bool)> done) { client->Close(kNsPerSecond, [done] { done(true); }); });
  server_threads.Ask<bool>([&](std::function<void(bool)> done) {
    server->Stop(10 * kNsPerSecond, [done] { done(true); });
  });
  client_threads.Join();
  server_threads.Join();
  EXPECT_EQ(server->stats().sessions, 0u);
  EXPECT_EQ(server->stats().writes, (kThreads - 1) * kDepth * (kIosPerLane / kDepth) * 1u);
  client.reset();
  server.reset();
  region.reset();
}

}  // namespace
}  // namespace ibnbd::rnbd
