// SPDX-License-Identifier: Apache-2.0
// What the tcp fabric alone costs: two threads of one process over the loopback interface, one
// writes 4 KiB with an immediate and the other answers with an immediate, as RTRS does for a block
// write; and the other way round, as for a block read.  Not a test.  Run it on an idle machine; it
// shows nothing of a network, of disks, or of the engine above.
//   tcp_bench [seconds per case] [longest spin in microseconds]
#include <sys/resource.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "base/arena.h"
#include "base/check.h"
#include "base/clock.h"
#include "fabric/open_fabric.h"
#include "reactor/io_ring.h"
#include "reactor/reactor.h"

namespace ibnbd {
namespace {

using fabric::CmEvent;
using fabric::Completion;
using fabric::Opcode;

struct Case {
  const char* name;
  std::uint32_t depth;
  std::uint32_t request_size;
  std::uint32_t response_size;
};

std::int64_t ThreadCpuNs() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * kNsPerSecond +
         (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * kNsPerUs;
}

// One end; a source on its reactor.
class End final : public ReactorSource {
 public:
  End(Reactor& reactor, fabric::Fabric& fabric, const Case& which, bool server)
      : reactor_(reactor), fabric_(fabric), case_(which), server_(server) {
    arena_ = *Arena::Create(std::size_t{256} * 256 * 1024);
    region_ = *fabric.Register(arena_.bytes(), fabric::Access::kRemoteWrite);
    poller_ = *fabric.CreatePoller(reactor);
    reactor_.AddSource(*this);
  }
  ~End() override { reactor_.RemoveSource(*this); }

  bool Poll() override {
    std::array<Completion, 32> batch;
    const std::size_t count = poller_->PollCompletions(batch);
    for (std::size_t i = 0; i < count; ++i) OnCompletion(batch[i]);
    CmEvent event;
    while (poller_->PollEvents({&event, 1}) == 1) OnEvent(event);
    return count > 0;
  }
  void Flush() override { poller_->Flush(); }

  fabric::ConnectionOptions Options() {
    receives_.assign(256, {});
    fabric::ConnectionOptions options;
    options.limits = {512, 512, 2, 0};
    options.receives = receives_;
    return options;
  }
  void Write(std::uint32_t slot, std::uint32_t size) {
    const std::size_t offset = std::size_t{slot} * 256 * 1024;
    const fabric::Sge sge{arena_.bytes().data() + offset, size, region_->lkey()};
    fabric::SendRequest request;
    request.opcode = Opcode::kWriteImm;
    request.imm = slot;
    request.signaled = (++posted_ % 16) == 0;
    request.remote = {peer_base + offset, peer_rkey};
    if (size > 0) request.sges = {&sge, 1};
    connection_->PostSend({&request, 1});
  }
  void OnCompletion(const Completion& completion) {
    if (completion.status != fabric::WcStatus::kOk) return;
    if (completion.opcode != Opcode::kReceiveWriteImm) return;
    const fabric::ReceiveRequest receive;
    connection_->PostReceive({&receive, 1});
    if (server_) {
      Write(completion.imm, case_.response_size);
      return;
    }
    done.store(done.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    if (stopping) {
      connection_->Disconnect();
    } else {
      Write(completion.imm, case_.request_size);
    }
  }
  void OnEvent(CmEvent& event) {
    if (event.kind == CmEvent::Kind::kIncoming) {
      connection_ = *event.incoming->Accept(*poller_, Options(), {});
    } else if (event.kind == CmEvent::Kind::kEstablished && !server_) {
      for (std::uint32_t i = 0; i < case_.depth; ++i) Write(i, case_.request_size);
    } else if (event.kind == CmEvent::Kind::kDisconnected) {
      ended = true;
    }
  }
  void Connect(const SocketAddress& address) {
    connection_ = *poller_->StartConnect(address, Options(), {});
  }
  // On the reactor's thread: until the connection is drained.
  void Finish() {
    while (!ended || !connection_->drained()) {
      if (!reactor_.RunTurn()) reactor_.Wait(kNsPerMs);
    }
    connection_.reset();
    listener.reset();
    poller_.reset();
  }

  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stopping{false};
  bool ended = false;
  std::uint64_t peer_base = 0;
  std::uint32_t peer_rkey = 0;
  std::unique_ptr<fabric::Listener> listener;
  fabric::Poller& poller() { return *poller_; }
  fabric::Region& region() { return *region_; }

 private:
  Reactor& reactor_;
  fabric::Fabric& fabric_;
  const Case& case_;
  const bool server_;
  Arena arena_;
  std::unique_ptr<fabric::Region> region_;
  std::unique_ptr<fabric::Poller> poller_;
  std::unique_ptr<fabric::Connection> connection_;
  std::vector<fabric::ReceiveRequest> receives_;
  std::uint64_t posted_ = 0;
};

struct Usage {
  std::atomic<std::int64_t> cpu_ns{0};
  std::atomic<std::uint64_t> enters{0}, sleeps{0};
};

void RunThread(Reactor& reactor, End& end, Usage& usage, std::atomic<bool>& stop) {
  while (!stop.load(std::memory_order_relaxed)) {
    if (!reactor.RunTurn()) reactor.Wait(kNsPerMs);
    if ((reactor.stats().turns & 1023) != 0) continue;
    usage.cpu_ns = ThreadCpuNs();
    usage.enters = reactor.ring()->enter_count();
    usage.sleeps = reactor.stats().sleeps;
  }
  end.Finish();
}

void Run(const Case& which, double seconds, const ReactorOptions& options) {
  MonotonicClock clock;
  auto fabric = *OpenFabric("tcp");
  auto server_reactor = *Reactor::Create(clock, options);
  auto client_reactor = *Reactor::Create(clock, options);
  {
    End server(*server_reactor, *fabric, which, true);
    End client(*client_reactor, *fabric, which, false);
    server.listener = *server.poller().Listen(*ResolveAddress("127.0.0.1", 0), 0);
    server.peer_base = reinterpret_cast<std::uintptr_t>(client.region().memory().data());
    server.peer_rkey = client.region().rkey();
    client.peer_base = reinterpret_cast<std::uintptr_t>(server.region().memory().data());
    client.peer_rkey = server.region().rkey();
    client.Connect(server.listener->local_address());
    std::array<Usage, 2> usage;
    std::atomic<bool> stop{false};
    std::thread server_thread([&] { RunThread(*server_reactor, server, usage[0], stop); });
    std::thread client_thread([&] { RunThread(*client_reactor, client, usage[1], stop); });
    const auto sleep_for = [&](double s) {
      std::this_thread::sleep_for(std::chrono::duration<double>(s));
    };
    sleep_for(0.2);
    std::array<std::int64_t, 2> cpu{usage[0].cpu_ns, usage[1].cpu_ns};
    std::array<std::uint64_t, 2> enters{usage[0].enters, usage[1].enters};
    std::array<std::uint64_t, 2> sleeps{usage[0].sleeps, usage[1].sleeps};
    const std::uint64_t done = client.done;
    const std::int64_t start_ns = clock.NowNs();
    sleep_for(seconds);
    const double ops = static_cast<double>(client.done - done);
    const double elapsed = static_cast<double>(clock.NowNs() - start_ns) / 1e9;
    std::printf("%-24s %9.0f op/s %8.2f us/op", which.name, ops / elapsed,
                elapsed * 1e6 * which.depth / ops);
    for (int i = 0; i < 2; ++i) {
      std::printf("  %s: cpu %5.2f us/op enter %5.3f sleep %5.3f", i == 0 ? "server" : "client",
                  static_cast<double>(usage[i].cpu_ns - cpu[i]) / 1e3 / ops,
                  static_cast<double>(usage[i].enters - enters[i]) / ops,
                  static_cast<double>(usage[i].sleeps - sleeps[i]) / ops);
    }
    std::printf("\n");
    client.stopping = true;
    stop = true;
    client_thread.join();
    server_thread.join();
  }
}

}  // namespace
}  // namespace ibnbd

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2.0;
  const ibnbd::Case cases[] = {
      {"4K write, depth 1", 1, 4096, 0},         {"4K read, depth 1", 1, 64, 4096},
      {"4K write, depth 32", 32, 4096, 0},       {"4K read, depth 32", 32, 64, 4096},
      {"128K write, depth 8", 8, 128 * 1024, 0}, {"128K read, depth 8", 8, 64, 128 * 1024},
  };
  ibnbd::ReactorOptions options;
  if (argc > 2) options.spin_ns_max = std::atoll(argv[2]) * ibnbd::kNsPerUs;
  for (const ibnbd::Case& which : cases) ibnbd::Run(which, seconds, options);
  return 0;
}
