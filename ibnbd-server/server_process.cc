// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/server_process.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <iterator>
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
// A file system, or a name server, that does not answer by then hangs.  At a start that can fail,
// and where others wait to be served.
constexpr std::int64_t kStartPatienceNs = 30 * kNsPerSecond;
constexpr std::int64_t kCheckPatienceNs = 5 * kNsPerSecond;
constexpr std::int64_t kPatienceNs = 1 * kNsPerSecond;
// Each that is begun has this, even where those before it have used up everything; but after so
// long no further one is: there may be hundreds, and a watchdog is to be fed.
constexpr std::int64_t kPatienceMinNs = 100 * kNsPerMs;
constexpr std::int64_t kBeginNs = 1 * kNsPerSecond;
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

absl::Status CheckSource(const ExportSpec& spec) {
  const auto check = [spec]() -> absl::StatusOr<bool> {
    const absl::Status status = CheckExportSource(spec);
    if (!status.ok()) return status;
    return true;
  };
  const std::string what = absl::StrCat("export ", spec.name, ": ", spec.source);
  return BoundedCall().Get<bool>(what, check, kCheckPatienceNs).status();
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
  for (const ExportSpec& spec : settings_.exports) RETURN_IF_ERROR(CheckSource(spec));
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

ServerProcess::Deadline ServerProcess::DeadlineIn(std::int64_t lock_wait_ns,
                                                  std::int64_t patience_ns) {
  const std::int64_t now_ns = MonotonicClock().NowNs();
  const std::int64_t answers_ns = now_ns + lock_wait_ns + patience_ns;
  return {now_ns + lock_wait_ns, answers_ns, answers_ns + kBeginNs};
}

absl::StatusOr<std::unique_ptr<rnbd::Backend>> ServerProcess::OpenBackend(
    const ExportSpec& spec, const Deadline& deadline) {
  // It is there by now, or has been waited for already.
  if (opener_.IsUnderWay(spec)) return opener_.Open(spec, 0, 0);
  const std::int64_t now_ns = MonotonicClock().NowNs();
  if (now_ns >= deadline.begin_ns) {
    return absl::UnavailableError(absl::StrCat(
        "export ", spec.name, ": others took too long to open, this one is opened later"));
  }
  return opener_.Open(spec, std::max<std::int64_t>(deadline.locks_ns - now_ns, 0),
                      std::max(deadline.answers_ns - now_ns, kPatienceMinNs));
}

void ServerProcess::Add(const ExportSpec& spec, std::unique_ptr<rnbd::Backend> backend) {
  if (threads_ == nullptr) {
    exports_->Add(spec, std::move(backend));
  } else {
    threads_->RunOn(0, [&] { exports_->Add(spec, std::move(backend)); });
  }
}

absl::Status ServerProcess::Open(const ExportSpec& spec, const Deadline& deadline) {
  ASSIGN_OR_RETURN(std::unique_ptr<rnbd::Backend> backend, OpenBackend(spec, deadline));
  Add(spec, std::move(backend));
  return absl::OkStatus();
}

absl::Status ServerProcess::OpenExports(Missing missing) {
  std::optional<SearchPath> search_path;
  if (settings_.search_path) {
    ASSIGN_OR_RETURN(search_path, SearchPath::Parse(*settings_.search_path));
  }
  exports_ = std::make_unique<ExportTable>(std::move(search_path));
  const bool heir = missing == Missing::kIsTriedAgain;
  Deadline deadline = DeadlineIn(kLockWaitNs, heir ? kPatienceNs : kStartPatienceNs);
  if (!heir) deadline.begin_ns = INT64_MAX;  // It is all or nothing.
  for (const ExportSpec& spec : settings_.exports) {
    if (absl::Status status = Open(spec, deadline); !status.ok()) {
      RETURN_IF_ERROR(Miss(missing, {spec, "", ""}, status));
    }
  }
  return absl::OkStatus();
}

absl::Status ServerProcess::Start(ListenSockets& listening, Missing missing) {
  listening_ = &listening;
  ASSIGN_OR_RETURN(threads_, ReactorThreads::Create(*settings_.thread_count));
  for (const std::string& text : settings_.listen) {
    const bool heir = missing == Missing::kIsTriedAgain;
    absl::Status status = Listen(text, kAddressWaitNs, heir ? kPatienceNs : kStartPatienceNs);
    if (!status.ok()) {
      RETURN_IF_ERROR(Miss(missing, {std::nullopt, text, ""}, status));
    }
  }
  return absl::OkStatus();
}

// True: it is not missing any more.
bool ServerProcess::Retry(MissingPart& part, const Deadline& deadline) {
  if (part.spec) {
    bool present = false;  // By a reload, or its predecessor is back.
    threads_->RunOn(0, [&] { present = exports_->SpecOf(part.spec->name) != nullptr; });
    if (present) opener_.Forget(*part.spec);
    if (present) return true;
  }
  const absl::Status status =
      part.spec ? Open(*part.spec, deadline) : Listen(part.address, 0, kPatienceMinNs);
  if (status.ok()) {
    if (!part.spec) LOG_INFO("listening on ", addresses_.back());
    return true;
  }
  if (status.message() != part.why) LOG_ERROR(status.message());
  part.why = std::string(status.message());
  return false;
}

bool ServerProcess::IsUnderWay(const MissingPart& part) const {
  if (part.spec) return opener_.IsUnderWay(*part.spec);
  const auto name = names_.find(part.address);
  return name != names_.end() && name->second.IsUnderWay();
}

void ServerProcess::RetryMissing() {
  const Deadline deadline = DeadlineIn(0, 0);
  std::vector<MissingPart> parts = std::exchange(missing_, {});
  std::vector<MissingPart> tried;
  for (MissingPart& part : parts) {
    if (MonotonicClock().NowNs() >= deadline.begin_ns && !IsUnderWay(part)) {
      missing_.push_back(std::move(part));
    } else if (!Retry(part, deadline)) {
      tried.push_back(std::move(part));
    }
  }
  std::move(tried.begin(), tried.end(), std::back_inserter(missing_));
}

absl::Status ServerProcess::Listen(const std::string& text, std::int64_t wait_ns,
                                   std::int64_t patience_ns) {
  ASSIGN_OR_RETURN(Uri uri, ParseUri(text));
  const std::string where = absl::StrCat("listen on ", uri.ToString());
  absl::StatusOr<Network*> network = NetworkFor(uri.scheme);
  if (!network.ok()) return Annotate(network.status(), where);
  LateCall<SocketAddress>& name = names_[text];
  absl::StatusOr<SocketAddress> address = name.Get(
      "who resolves the name", [uri] { return ResolveAddress(uri.host, uri.port); },
      name.IsUnderWay() ? 0 : patience_ns);
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

// `instead` is tried if it fails.
void ServerProcess::OpenAndAdd(const ExportSpec& spec, const ExportSpec* instead,
                               const Deadline& deadline) {
  const absl::Status status = Open(spec, deadline);
  if (status.ok()) return;
  LOG_ERROR("reload: ", status.message());
  if (instead == nullptr) return MissIfLate(spec, status);
  const absl::Status restored = Open(*instead, deadline);
  if (restored.ok()) return opener_.Forget(spec);
  LOG_ERROR("reload: ", restored.message());
  MissIfLate(spec, status);
  MissIfLate(*instead, restored);  // Whichever of them is there first.
}

// What does not answer now, or was not begun, may be there later.
void ServerProcess::MissIfLate(const ExportSpec& spec, const absl::Status& status) {
  if (!opener_.IsUnderWay(spec) && !absl::IsUnavailable(status)) return;
  if (std::any_of(missing_.begin(), missing_.end(),
                  [&spec](const MissingPart& part) { return part.spec == spec; })) {
    return;
  }
  missing_.push_back({spec, "", std::string(status.message())});
}

absl::Status ServerProcess::Reload() {
  if (options_.config_path.empty()) {
    return absl::FailedPreconditionError("there is no --config file to read");
  }
  ASSIGN_OR_RETURN(Settings wanted,
                   config_.Get<Settings>(
                       options_.config_path, [options = options_] { return LoadSettings(options); },
                       kPatienceNs));
  if (!wanted.thread_count) wanted.thread_count = settings_.thread_count;
  std::erase_if(missing_, [&wanted](const MissingPart& part) {  // Nobody wants it any more.
    return part.spec && std::find(wanted.exports.begin(), wanted.exports.end(), *part.spec) ==
                            wanted.exports.end();
  });
  opener_.ForgetAllBut(wanted.exports);
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
  const Deadline deadline = DeadlineIn(kLockWaitNs, kPatienceNs);
  for (const ExportSpec& spec : plan.add) OpenAndAdd(spec, nullptr, deadline);
  for (std::size_t i = 0; i < plan.replace.size(); ++i) {
    OpenAndAdd(plan.replace[i], &replaced[i], deadline);
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
