// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/server_process.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "fabric/faulty_fabric.h"
#include "fabric/open_fabric.h"
#include "fabric/traced_fabric.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

constexpr std::int64_t kLockWaitNs = 5 * kNsPerSecond;
constexpr std::uint32_t kThreadsDefaultMax = 4;
// The kernel takes a killed process's rings down after the process, and its sockets with them.
constexpr std::int64_t kAddressWaitNs = 2 * kNsPerSecond;
constexpr std::int64_t kAddressPauseNs = 20 * kNsPerMs;
constexpr std::uint64_t kChunkHeaderSize = 4096;  // rnbd::ServerOptions::io_size_max.

absl::StatusOr<std::unique_ptr<fabric::Fabric>> OpenDecorated(const std::string& scheme,
                                                              const Options& options,
                                                              ListenSockets* listening) {
  ASSIGN_OR_RETURN(std::unique_ptr<fabric::Fabric> result, OpenFabric(scheme, listening));
  if (!options.fault.empty()) {
    ASSIGN_OR_RETURN(const fabric::FaultSpec spec, fabric::ParseFaultSpec(options.fault));
    LOG_WARN("faults on purpose: ", spec.ToString());
    result = std::make_unique<fabric::FaultyFabric>(std::move(result), spec);
  }
  if (options.trace) {
    // At every level: who asks for a trace wants to see it.
    result = std::make_unique<fabric::TracedFabric>(
        std::move(result), [](const std::string& line) { LogLine(LogLevel::kInfo, line); });
  }
  return result;
}

// The host is an address of this machine.  Its port may be taken by the server before us.
absl::Status CheckLocal(const Uri& uri) {
  ASSIGN_OR_RETURN(const SocketAddress address, ResolveAddress(uri.host, 0));
  const UniqueFd probe(socket(address.family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!probe.valid()) return ErrnoStatus(errno, "socket");
  const auto* generic = reinterpret_cast<const sockaddr*>(address.bytes.data());
  if (bind(probe.get(), generic, address.length) != 0) return ErrnoStatus(errno, "bind");
  return absl::OkStatus();
}

absl::StatusOr<Settings> LoadSettings(const Options& options) {
  Settings config;
  if (!options.config_path.empty()) {
    ASSIGN_OR_RETURN(config, LoadConfig(options.config_path));
  }
  absl::StatusOr<Settings> merged = MergeSettings(options.settings, config);
  // The command line was checked when it was the only source; now only the file can be at fault.
  if (!merged.ok() && !options.config_path.empty()) {
    return Annotate(merged.status(), options.config_path);
  }
  return merged;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Create(const Options& options) {
  ASSIGN_OR_RETURN(Settings settings, LoadSettings(options));
  if (!settings.thread_count) {
    settings.thread_count = std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsDefaultMax);
  }
  if (!options.fault.empty()) RETURN_IF_ERROR(fabric::ParseFaultSpec(options.fault).status());
  return std::unique_ptr<ServerProcess>(new ServerProcess(options, std::move(settings)));
}

ServerProcess::ServerProcess(const Options& options, Settings settings)
    : options_(options), settings_(std::move(settings)), instance_id_(ReadInstanceId()) {}

absl::Status ServerProcess::Check() const {
  for (const ExportSpec& spec : settings_.exports) RETURN_IF_ERROR(CheckExportSource(spec));
  for (const std::string& text : settings_.listen) {
    ASSIGN_OR_RETURN(const Uri uri, ParseUri(text));
    absl::Status status = OpenFabric(uri.scheme).status();
    if (status.ok()) status = CheckLocal(uri);
    if (!status.ok()) return Annotate(status, absl::StrCat("listen on ", uri.ToString()));
  }
  return absl::OkStatus();
}

// What is missing, and what that means.
absl::Status ServerProcess::Miss(Missing missing, MissingPart part, const absl::Status& why) {
  if (missing == Missing::kFails) return why;
  part.why = std::string(why.message());
  LOG_ERROR(part.why, "; the others are served, this one is tried again");
  missing_.push_back(std::move(part));
  return absl::OkStatus();
}

absl::Status ServerProcess::Open(const ExportSpec& spec, std::int64_t lock_wait_ns) {
  ASSIGN_OR_RETURN(std::unique_ptr<rnbd::Backend> backend, OpenExportBackend(spec, lock_wait_ns));
  if (threads_ == nullptr) {
    exports_->Add(spec, std::move(backend));
  } else {
    threads_->RunOn(0, [&] { exports_->Add(spec, std::move(backend)); });
  }
  return absl::OkStatus();
}

absl::Status ServerProcess::OpenExports(Missing missing) {
  std::optional<SearchPath> search_path;
  if (settings_.search_path) {
    ASSIGN_OR_RETURN(search_path, SearchPath::Parse(*settings_.search_path));
  }
  exports_ = std::make_unique<ExportTable>(std::move(search_path));
  for (const ExportSpec& spec : settings_.exports) {
    if (absl::Status status = Open(spec, kLockWaitNs); !status.ok()) {
      RETURN_IF_ERROR(Miss(missing, {spec, "", ""}, status));
    }
  }
  return absl::OkStatus();
}

absl::Status ServerProcess::Start(ListenSockets& listening, Missing missing) {
  listening_ = &listening;
  ASSIGN_OR_RETURN(threads_, ReactorThreads::Create(*settings_.thread_count));
  for (const std::string& text : settings_.listen) {
    if (absl::Status status = Listen(text, kAddressWaitNs); !status.ok()) {
      RETURN_IF_ERROR(Miss(missing, {std::nullopt, text, ""}, status));
    }
  }
  return absl::OkStatus();
}

void ServerProcess::RetryMissing() {
  std::erase_if(missing_, [this](MissingPart& part) {
    bool present = false;  // By a reload.
    if (part.spec) {
      threads_->RunOn(0, [&] { present = exports_->SpecOf(part.spec->name) != nullptr; });
    }
    if (present) return true;
    const absl::Status status = part.spec ? Open(*part.spec, 0) : Listen(part.address, 0);
    if (status.ok()) {
      if (!part.spec) LOG_INFO("listening on ", addresses_.back());
      return true;
    }
    if (status.message() != part.why) LOG_ERROR(status.message());
    part.why = std::string(status.message());
    return false;
  });
}

absl::Status ServerProcess::Listen(const std::string& text, std::int64_t wait_ns) {
  ASSIGN_OR_RETURN(Uri uri, ParseUri(text));
  const std::string where = absl::StrCat("listen on ", uri.ToString());
  absl::StatusOr<Network*> network = NetworkFor(uri.scheme);
  if (!network.ok()) return Annotate(network.status(), where);
  absl::StatusOr<SocketAddress> address = ResolveAddress(uri.host, uri.port);
  if (!address.ok()) return Annotate(address.status(), where);
  absl::StatusOr<SocketAddress> bound;
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + wait_ns;
  while (true) {
    threads_->RunOn(0, [&] { bound = (*network)->server->Listen(*address); });
    if (ErrnoFromStatus(bound.status()) != -EADDRINUSE) break;
    if (MonotonicClock().NowNs() >= deadline_ns) break;
    std::this_thread::sleep_for(std::chrono::nanoseconds(kAddressPauseNs));
  }
  if (!bound.ok()) return Annotate(bound.status(), where);
  if (addresses_.empty()) first_port_ = bound->port;
  uri.port = bound->port;
  addresses_.push_back(uri.ToString());
  return absl::OkStatus();
}

absl::StatusOr<ServerProcess::Network*> ServerProcess::NetworkFor(const std::string& scheme) {
  for (const auto& network : networks_) {
    if (network->scheme == scheme) return network.get();
  }
  auto network = std::make_unique<Network>();
  network->scheme = scheme;
  ASSIGN_OR_RETURN(network->fabric, OpenDecorated(scheme, options_, listening_));
  if (absl::Status status = CreateServer(*network); !status.ok()) {
    DropPorts(*network);
    return status;
  }
  networks_.push_back(std::move(network));
  return networks_.back().get();
}

absl::Status ServerProcess::CreateServer(Network& network) {
  std::vector<rtrs::Port*> ports;
  for (std::size_t i = 0; i < threads_->size(); ++i) {
    absl::StatusOr<std::unique_ptr<rtrs::Port>> port;
    threads_->RunOn(i, [&] { port = rtrs::Port::Create((*threads_)[i], *network.fabric); });
    if (!port.ok()) return port.status();
    network.ports.push_back(*std::move(port));
    ports.push_back(network.ports.back().get());
  }
  absl::StatusOr<std::unique_ptr<rnbd::Server>> server;
  threads_->RunOn(0, [&] {
    server = rnbd::Server::Create(std::move(ports), ServerOptionsFromSettings(), *exports_);
  });
  if (!server.ok()) return server.status();
  network.server = *std::move(server);
  return absl::OkStatus();
}

rnbd::ServerOptions ServerProcess::ServerOptionsFromSettings() const {
  rnbd::ServerOptions options;
  options.queue_depth = settings_.queue_depth.value_or(options.queue_depth);
  options.io_size_max = settings_.io_size.value_or(options.io_size_max);
  options.keys_per_io = settings_.invalidate.value_or(false);
  options.sessions_max = settings_.session_count_max.value_or(options.sessions_max);
  options.chunk_memory_max = settings_.memory_max.value_or(options.chunk_memory_max);
  if (settings_.memory) options.memory = FindMemoryProvider(*settings_.memory);
  options.instance_id = instance_id_;
  return options;
}

std::string ServerProcess::MemoryBill() const {
  const rnbd::ServerOptions options = ServerOptionsFromSettings();
  const std::uint64_t chunk = options.io_size_max + kChunkHeaderSize;
  const std::uint64_t session = options.queue_depth * chunk;
  return absl::StrCat(
      "memory: ", SizeText(session), " per session (", options.queue_depth, " chunks of ",
      SizeText(chunk), "), at most ", SizeText(options.chunk_memory_max), " in all: ",
      std::min<std::uint64_t>(options.sessions_max, options.chunk_memory_max / session),
      " sessions", options.keys_per_io ? "; a key per IO" : "");
}

// What reload removes goes at once; what it changes goes if nobody has it open.
void ServerProcess::ApplyRemovals(const ExportTable::Plan& plan) {
  for (const std::string& name : plan.remove) {
    const std::shared_ptr<rnbd::Export> exported = exports_->Remove(name);
    for (const auto& network : networks_) network->server->Revoke(*exported);
    LOG_INFO("export ", name, ": removed");
  }
  for (const ExportSpec& spec : plan.replace) (void)exports_->Remove(spec.name);
  for (const std::string& name : plan.busy) {
    LOG_ERROR("reload: export ", name, ": in use: stays as it was");
  }
}

// Opening may wait for a lock, so it happens here on the main thread; `instead` is tried if it
// fails.
void ServerProcess::OpenAndAdd(const ExportSpec& spec, const ExportSpec* instead,
                               std::int64_t lock_deadline_ns) {
  const auto lock_wait_ns = [lock_deadline_ns] {
    return std::max<std::int64_t>(lock_deadline_ns - MonotonicClock().NowNs(), 0);
  };
  absl::StatusOr<std::unique_ptr<rnbd::Backend>> backend = OpenExportBackend(spec, lock_wait_ns());
  const ExportSpec* opened = &spec;
  if (!backend.ok()) {
    LOG_ERROR("reload: ", std::string(backend.status().message()));
    if (instead == nullptr) return;
    backend = OpenExportBackend(*instead, lock_wait_ns());
    opened = instead;
    if (!backend.ok()) {
      LOG_ERROR("reload: ", std::string(backend.status().message()));
      return;
    }
  }
  threads_->RunOn(0, [&] { exports_->Add(*opened, *std::move(backend)); });
}

absl::Status ServerProcess::Reload() {
  if (options_.config_path.empty()) {
    return absl::FailedPreconditionError("there is no --config file to read");
  }
  ASSIGN_OR_RETURN(Settings wanted, LoadSettings(options_));
  if (!wanted.thread_count) wanted.thread_count = settings_.thread_count;
  std::erase_if(missing_, [&wanted](const MissingPart& part) {  // Nobody wants it any more.
    return part.spec && std::find(wanted.exports.begin(), wanted.exports.end(), *part.spec) ==
                            wanted.exports.end();
  });
  const std::vector<std::string> changed = ChangedSettings(settings_, wanted);
  if (!changed.empty()) {
    LOG_WARN("reload: ", absl::StrJoin(changed, ", "), ": takes effect after a restart");
  }
  ExportTable::Plan plan;
  std::vector<ExportSpec> replaced;
  threads_->RunOn(0, [&] {
    plan = exports_->PlanFor(wanted.exports);
    for (const ExportSpec& spec : plan.replace) replaced.push_back(*exports_->SpecOf(spec.name));
    ApplyRemovals(plan);
  });
  // One wait for all of them: meanwhile nobody feeds the watchdog.
  const std::int64_t lock_deadline_ns = MonotonicClock().NowNs() + kLockWaitNs;
  for (const ExportSpec& spec : plan.add) OpenAndAdd(spec, nullptr, lock_deadline_ns);
  for (std::size_t i = 0; i < plan.replace.size(); ++i) {
    OpenAndAdd(plan.replace[i], &replaced[i], lock_deadline_ns);
  }
  return absl::OkStatus();
}

void ServerProcess::LogStats() {
  threads_->RunOn(0, [this] {
    for (const auto& network : networks_) {
      const rnbd::ServerStats stats = network->server->stats();
      LOG_INFO("stats ", network->scheme, " sessions ", stats.sessions, " sessions_total ",
               stats.sessions_total, " connects_refused ", stats.connects_refused, " paths_broken ",
               stats.paths_broken, " chunk_memory ", stats.chunk_memory);
      LOG_INFO("stats ", network->scheme, " reads ", stats.reads, " read_bytes ", stats.read_bytes,
               " writes ", stats.writes, " write_bytes ", stats.write_bytes, " flushes ",
               stats.flushes, " discards ", stats.discards, " zeroes ", stats.zeroes, " errors ",
               stats.errors);
      for (const rnbd::Server::SessionInfo& session : network->server->sessions()) {
        LOG_INFO("stats session ", session.name, " peer ", session.peer, " connections ",
                 session.connections, " devices ", session.devices, " executing ",
                 session.executing);
      }
    }
  });
}

void ServerProcess::StartStop(std::int64_t deadline_ns, std::function<void()> done) {
  threads_->RunOn(0, [&] {
    // All on reactor 0; the last one reports.
    auto remaining = std::make_shared<std::size_t>(networks_.size());
    for (const auto& network : networks_) {
      network->server->Stop(deadline_ns, [remaining, done] {
        if (--*remaining == 0) done();
      });
    }
  });
}

ServerProcess::~ServerProcess() {
  if (threads_ == nullptr) return;
  threads_->RunOn(0, [this] {
    for (const auto& network : networks_) network->server.reset();
    exports_->Clear();
  });
  for (const auto& network : networks_) DropPorts(*network);
  networks_.clear();
}

// Each on the thread that it belongs to.
void ServerProcess::DropPorts(Network& network) {
  for (std::size_t i = 0; i < network.ports.size(); ++i) {
    threads_->RunOn(i, [&] { network.ports[i].reset(); });
  }
}

}  // namespace ibnbd
