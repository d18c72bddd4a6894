// SPDX-License-Identifier: Apache-2.0
// Puts the parts of the server together: the RTRS server below, sessions and open exports above.
#include "rnbd/server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "proto/rtrs.h"
#include "reactor/reactor.h"
#include "rnbd/server_exports.h"
#include "rnbd/server_session.h"
#include "rtrs/server.h"

namespace ibnbd::rnbd {
namespace {

// What a queue must be able to hold, unless a backend's bookkeeping would become absurd: it embeds
// its state in the IOs (BackendIo::scratch).
constexpr std::uint64_t kQueueIosMax = 1u << 16;

absl::Status CheckOptions(const ServerOptions& options) {
  const rtrs::ChunkGeometry geometry{options.queue_depth, options.io_size_max};
  if (options.queue_depth < 1 || options.queue_depth > proto::kQueueDepthMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue depth ", options.queue_depth, ": must be 1 to 65535"));
  }
  if (options.io_size_max < 4096 || options.io_size_max % 4096 != 0 ||
      options.io_size_max > 1u << 27) {
    return absl::InvalidArgumentError(
        absl::StrCat("IO size ", options.io_size_max, ": must be a multiple of 4096 up to 128M"));
  }
  if (!proto::ImmBudgetFits(options.queue_depth, geometry.chunk_size())) {
    return absl::InvalidArgumentError(absl::StrCat("queue depth ", options.queue_depth,
                                                   " with IO size ", options.io_size_max,
                                                   ": the product is beyond the protocol"));
  }
  if (options.chunk_memory_max < geometry.byte_count()) {
    return absl::InvalidArgumentError(absl::StrCat("chunk memory ", options.chunk_memory_max,
                                                   ": one session needs ", geometry.byte_count()));
  }
  if (options.handshake_timeout_ns <= 0 || options.heartbeat_interval_ns <= 0) {
    return absl::InvalidArgumentError("time-outs must be positive");
  }
  return absl::OkStatus();
}

rtrs::ServerOptions MakeTransportOptions(const ServerOptions& options) {
  rtrs::ServerOptions transport;
  transport.path.geometry = {options.queue_depth, options.io_size_max};
  transport.path.memory = options.memory;
  if (options.keys_per_io) transport.path.keys = rtrs::KeyPolicy::kPerIo;
  transport.path.handshake_timeout_ns = options.handshake_timeout_ns;
  transport.path.heartbeat_interval_ns = options.heartbeat_interval_ns;
  transport.path.heartbeat_missed_max = options.heartbeat_missed_max;
  transport.sessions_max = options.sessions_max;
  transport.connections_per_session_max = options.connections_per_session_max;
  transport.handshakes_max = options.handshakes_max;
  transport.handshake_connections_max =
      std::max(options.handshake_connections_max, options.connections_per_session_max);
  transport.chunk_memory_max = options.chunk_memory_max;
  return transport;
}

std::vector<Reactor*> ReactorsOf(const std::vector<rtrs::Port*>& ports) {
  std::vector<Reactor*> reactors;
  for (rtrs::Port* port : ports) reactors.push_back(&port->reactor());
  return reactors;
}

}  // namespace

class Server::Impl final : public rtrs::ServerService {
 public:
  Impl(std::vector<rtrs::Port*> ports, const ServerOptions& options, ExportProvider& provider)
      : options_(options),
        counters_(ports.size()),
        exports_(ReactorsOf(ports),
                 static_cast<std::uint32_t>(std::min<std::uint64_t>(
                     kQueueIosMax, std::uint64_t{options.queue_depth} * options.sessions_max)),
                 [this] { FinishStopIfEmpty(); }),
        transport_(ports, MakeTransportOptions(options), *this),
        stop_timer_(ports[0]->reactor().timers(), [this] { FinishStop(); }) {
    context_.options = &options_;
    context_.provider = &provider;
    context_.exports = &exports_;
    context_.reactors = ReactorsOf(ports);
    context_.counters = &counters_;
  }

  [[nodiscard]] bool gone() const { return transport_.closed() && exports_.empty(); }
  rtrs::Server& transport() { return transport_; }

  void Stop(std::int64_t deadline_ns, std::function<void()> done) {
    stop_done_ = std::move(done);
    stop_timer_.ArmAt(context_.reactors[0]->clock().NowNs() + deadline_ns);
    transport_.Stop(deadline_ns, [this] { FinishStopIfEmpty(); });
  }
  void Revoke(const Export& exported) {
    for (ServerSession* session : context_.sessions) session->Revoke(exported);
  }
  [[nodiscard]] ServerStats stats() const;

  // rtrs::ServerService
  std::unique_ptr<rtrs::ServerSessionService> OpenSession(
      const rtrs::ServerSessionInfo& info) override {
    return OpenServerSession(context_, info);
  }

 private:
  void FinishStopIfEmpty() {
    if (gone()) FinishStop();
  }
  void FinishStop() {
    stop_timer_.Cancel();
    if (stop_done_ == nullptr) return;
    // In a turn of its own: the callee may destroy the server.
    context_.reactors[0]->Post(std::exchange(stop_done_, nullptr));
  }

  const ServerOptions options_;
  std::vector<ReactorCounters> counters_;
  ServerContext context_;
  OpenExports exports_;
  rtrs::Server transport_;
  Timer stop_timer_;
  std::function<void()> stop_done_;
};

ServerStats Server::Impl::stats() const {
  ServerStats stats;
  const rtrs::ServerStats& transport = transport_.stats();
  stats.sessions = transport.sessions;
  stats.sessions_total = transport.sessions_total;
  stats.connects_refused = transport.connects_refused;
  stats.paths_broken = transport.paths_broken;
  stats.chunk_memory = transport.chunk_memory;
  const auto add = [](std::uint64_t* sum, const ReactorCounters::Counter& counter) {
    *sum += counter.load(std::memory_order_relaxed);
  };
  for (const ReactorCounters& counters : counters_) {
    add(&stats.reads, counters.reads);
    add(&stats.writes, counters.writes);
    add(&stats.flushes, counters.flushes);
    add(&stats.discards, counters.discards);
    add(&stats.zeroes, counters.zeroes);
    add(&stats.errors, counters.errors);
    add(&stats.read_bytes, counters.read_bytes);
    add(&stats.write_bytes, counters.write_bytes);
  }
  return stats;
}

absl::StatusOr<std::unique_ptr<Server>> Server::Create(std::vector<rtrs::Port*> ports,
                                                       const ServerOptions& options,
                                                       ExportProvider& exports) {
  CHECK(!ports.empty());
  RETURN_IF_ERROR(CheckOptions(options));
  return std::unique_ptr<Server>(
      new Server(std::make_unique<Impl>(std::move(ports), options, exports)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  if (impl_->gone()) return;
  // Stop() has run out of time: something still executes in these chunks.  The memory stays.
  LOG_ERROR("server: requests still execute, their memory is left behind");
  (void)impl_.release();  // Deliberately not freed.
}

absl::StatusOr<SocketAddress> Server::Listen(const SocketAddress& address) {
  return impl_->transport().Listen(address);
}

void Server::Stop(std::int64_t deadline_ns, std::function<void()> done) {
  impl_->Stop(deadline_ns, std::move(done));
}

void Server::Revoke(const Export& exported) { impl_->Revoke(exported); }

ServerStats Server::stats() const { return impl_->stats(); }

std::vector<Server::SessionInfo> Server::sessions() const {
  std::vector<SessionInfo> infos;
  for (rtrs::Server::SessionInfo& info : impl_->transport().sessions()) {
    infos.push_back({std::move(info.name), std::move(info.peer), info.connections, info.devices,
                     info.executing});
  }
  return infos;
}

}  // namespace ibnbd::rnbd
