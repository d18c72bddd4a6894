// SPDX-License-Identifier: Apache-2.0
// Opening and closing sessions, and the calls that ask about one.  Any thread of the application;
// what happens inside lambdas given to Post() or CallControl() happens on the control thread.
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_split.h"
#include "base/log.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "capi/control.h"
#include "capi/error.h"
#include "capi/handles.h"
#include "capi/path_finder.h"
#include "capi/session.h"
#include "fabric/open_fabric.h"

namespace ibnbd::capi {
namespace {

constexpr std::uint32_t kQueuesMax = 64;
constexpr std::uint32_t kFlagsKnown = IBNBD_SESSION_RETRY | IBNBD_SESSION_ONE_THREAD |
                                      IBNBD_SESSION_PATHS_ONLY | IBNBD_SESSION_NO_WAIT;
constexpr std::uint32_t kDeadAfterMsMin = 1000;
constexpr std::uint32_t kDeadAfterMsMax = 3'600'000;
constexpr std::size_t kNameSizeMax = 255;
constexpr std::int64_t kRoundTimeoutNsMin = 2 * kNsPerSecond;  // Of one connection round.
constexpr std::int64_t kRoundTimeoutNsMax = 10 * kNsPerSecond;
constexpr std::int64_t kTeardownGraceNs = 10 * kNsPerSecond;  // For the network to let go.

std::string MakeSessionName() {
  static std::atomic<std::uint32_t> counter{0};
  char host[HOST_NAME_MAX + 1] = "localhost";
  (void)::gethostname(host, sizeof host - 1);
  std::string name = absl::StrCat(host, "-", ::getpid(), "-", counter.fetch_add(1));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '.' || c == '/'; }, '-');
  return name;
}

// The incarnation: no smaller in a process that was started later.
std::uint32_t SecondsSinceBoot() {
  timespec now{};
  (void)::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint32_t>(now.tv_sec);
}

absl::Status CheckDeadAfter(std::uint32_t ms) {
  if (ms == 0 || (ms >= kDeadAfterMsMin && ms <= kDeadAfterMsMax)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("dead_after_ms is ", ms, ": must be 0 or ",
                                                 kDeadAfterMsMin, " to ", kDeadAfterMsMax));
}

std::int64_t HeartbeatNs(std::uint32_t dead_after_ms) {
  return dead_after_ms * kNsPerMs / rtrs::kHeartbeatsToDeath;
}

absl::Status CheckOptions(const ibnbd_session_options& options) {
  if (options.queue_count == 0 || options.queue_count > kQueuesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue_count is ", options.queue_count, ": must be 1 to ", kQueuesMax));
  }
  if ((options.flags & ~kFlagsKnown) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown flags 0x", absl::Hex(options.flags & ~kFlagsKnown)));
  }
  if (options.io_depth_max == 0) return absl::InvalidArgumentError("io_depth_max is 0");
  RETURN_IF_ERROR(CheckDeadAfter(options.dead_after_ms));
  if (options.dead_after_ms != 0 && options.heartbeat_ms != 0) {
    return absl::InvalidArgumentError("dead_after_ms and heartbeat_ms: set one of them");
  }
  if (options.reserved1 != 0) return absl::InvalidArgumentError("reserved1 is not 0");
  if ((options.flags & IBNBD_SESSION_PATHS_ONLY) != 0 && options.paths == nullptr) {
    return absl::InvalidArgumentError("IBNBD_SESSION_PATHS_ONLY without paths");
  }
  if ((options.flags & IBNBD_SESSION_PATHS_ONLY) != 0 && options.source != nullptr) {
    return absl::InvalidArgumentError("source with IBNBD_SESSION_PATHS_ONLY: say SRC@DST in paths");
  }
  if (options.memory != nullptr && FindMemoryProvider(options.memory) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory \"", options.memory, "\": expected ", kMemoryProviderNames));
  }
  if (options.client_id != 0 && options.name == nullptr) {
    return absl::InvalidArgumentError("client_id without a name: both are kept over restarts");
  }
  if (options.name == nullptr) return absl::OkStatus();
  const absl::string_view name = options.name;
  if (name.empty() || name.size() > kNameSizeMax ||
      name.find_first_of("/.") != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("session name \"", name, "\": must have 1 to ",
                                                   kNameSizeMax, " bytes, without '/' and '.'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ibnbd_queue>> CreateQueue(ibnbd_session& session,
                                                         const ibnbd_session_options& options,
                                                         std::uint32_t index) {
  auto queue = std::make_unique<ibnbd_queue>(session, index);
  queue->one_thread = (options.flags & IBNBD_SESSION_ONE_THREAD) != 0;
  queue->outstanding_max = options.io_depth_max;
  queue->owner.store(pthread_self());
  ReactorOptions reactor_options;
  reactor_options.thread_bound = queue->one_thread;
  ASSIGN_OR_RETURN(queue->reactor, Reactor::Create(session.clock, reactor_options));
  ASSIGN_OR_RETURN(queue->port, rtrs::Port::Create(*queue->reactor, *session.fabric));
  queue->reactor->AddSource(*queue);
  // From here on the queue must be taken down by TearDownQueue(); nothing below returns early but
  // for the lack of memory.
  if (absl::Status status =
          queue->bounce.Create(*session.fabric, options.bounce_bytes, *session.memory);
      !status.ok()) {
    queue->reactor->RemoveSource(*queue);
    queue->port.reset();
    queue->reactor->RunTurn();
    return status;
  }
  return queue;
}

rnbd::Client::Options ClientOptions(const ibnbd_session& session,
                                    const ibnbd_session_options& options,
                                    std::vector<rtrs::PathOptions> paths) {
  rnbd::Client::Options result;
  result.session.name = session.name;
  result.session.server = paths.front().server;
  result.session.source = paths.front().source;
  result.session.text = paths.front().text;
  result.session.more_paths.assign(paths.begin() + 1, paths.end());
  result.session.finder = session.finder.get();
  result.session.client_id = options.client_id;
  result.session.incarnation = SecondsSinceBoot();
  result.session.connect_timeout_ns =
      std::clamp(options.connect_timeout_ms * kNsPerMs, kRoundTimeoutNsMin, kRoundTimeoutNsMax);
  result.session.heartbeat_interval_ns = options.heartbeat_ms != 0
                                             ? options.heartbeat_ms * kNsPerMs
                                             : HeartbeatNs(options.dead_after_ms);
  // Uniqueness, not secrecy.  A failure leaves the clock, the pid and the address of a variable.
  std::uint64_t seed = static_cast<std::uint64_t>(session.clock.NowNs()) ^
                       reinterpret_cast<std::uintptr_t>(&session) ^
                       static_cast<std::uint64_t>(::getpid()) << 32;
  (void)!::getrandom(&seed, sizeof seed, 0);
  result.session.seed = seed;
  return result;
}

void TearDownQueue(ibnbd_queue& queue) {
  queue.reactor->RemoveSource(queue);
  queue.port.reset();
  queue.reactor->RunTurn();  // Forgets the removed sources.
  queue.reactor.reset();
}

absl::Status Build(ibnbd_session& session, const ibnbd_session_options& options,
                   std::vector<rtrs::PathOptions> paths) {
  for (std::uint32_t i = 0; i < options.queue_count; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<ibnbd_queue> queue, CreateQueue(session, options, i));
    session.queues.push_back(std::move(queue));
  }
  ASSIGN_OR_RETURN(session.control, Reactor::Create(session.clock, ReactorOptions{}));
  ASSIGN_OR_RETURN(session.control_port, rtrs::Port::Create(*session.control, *session.fabric));
  std::vector<rtrs::Port*> lane_ports;
  lane_ports.reserve(session.queues.size());
  for (const auto& queue : session.queues) lane_ports.push_back(queue->port.get());
  ASSIGN_OR_RETURN(session.client,
                   rnbd::Client::Create(ClientOptions(session, options, std::move(paths)),
                                        *session.control_port, lane_ports));
  return absl::OkStatus();
}

void* RunControlThread(void* argument) {
  auto& session = *static_cast<ibnbd_session*>(argument);
  (void)::pthread_setname_np(::pthread_self(), "ibnbd-control");
  session.control->Run();
  return nullptr;
}

absl::Status StartControlThread(ibnbd_session& session) {
  const int error = StartThreadWithoutSignals(&session.thread, RunControlThread, &session);
  if (error != 0) return ErrnoStatus(error, "start the control thread");
  session.thread_started = true;
  return absl::OkStatus();
}

absl::Status Connect(ibnbd_session& session, const ibnbd_session_options& options) {
  if ((options.flags & IBNBD_SESSION_NO_WAIT) != 0) {
    session.control->Post([&session] { session.client->Start(true, nullptr); });
    return absl::OkStatus();
  }
  const bool retry = (options.flags & IBNBD_SESSION_RETRY) != 0;
  return CallControlForStatus(
      session, options.connect_timeout_ms * kNsPerMs,
      [&session, retry](auto done) { session.client->Start(retry, std::move(done)); });
}

// All of them; the one that the URI says is the first.
absl::StatusOr<std::vector<rtrs::PathOptions>> PathsOf(const Uri& uri,
                                                       const ibnbd_session_options& options) {
  std::vector<rtrs::PathOptions> paths;
  if ((options.flags & IBNBD_SESSION_PATHS_ONLY) == 0) {
    const bool v6 = uri.host.find(':') != std::string::npos;
    const std::string source = options.source == nullptr ? "" : absl::StrCat(options.source, "@");
    ASSIGN_OR_RETURN(
        rtrs::PathOptions first,
        ParsePath(absl::StrCat(source, v6 ? "[" : "", uri.host, v6 ? "]" : ""), uri.port));
    paths.push_back(std::move(first));
  }
  const char* more = options.paths == nullptr ? "" : options.paths;
  for (const absl::string_view text : absl::StrSplit(more, ' ', absl::SkipEmpty())) {
    ASSIGN_OR_RETURN(rtrs::PathOptions path, ParsePath(text, uri.port));
    paths.push_back(std::move(path));
  }
  if (paths.empty()) return absl::InvalidArgumentError("paths is empty");
  return paths;
}

absl::StatusOr<std::unique_ptr<ibnbd_session>> Open(const char* uri_text,
                                                    const ibnbd_session_options& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(Uri uri, ParseUri(uri_text));
  auto session = std::make_unique<ibnbd_session>();
  if (options.memory != nullptr) session->memory = FindMemoryProvider(options.memory);
  session->name = options.name != nullptr ? options.name : MakeSessionName();
  uri.export_name.clear();
  session->uri = uri.ToString();
  session->port = uri.port;
  ASSIGN_OR_RETURN(std::vector<rtrs::PathOptions> paths, PathsOf(uri, options));
  ASSIGN_OR_RETURN(session->fabric, OpenFabric(uri.scheme));
  session->finder = std::make_unique<PathFinder>(*session->fabric);
  if ((options.flags & IBNBD_SESSION_NO_WAIT) == 0) {
    RETURN_IF_ERROR(session->finder->FindNow(paths, options.connect_timeout_ms * kNsPerMs));
  }
  absl::Status status = Build(*session, options, std::move(paths));
  if (status.ok()) status = StartControlThread(*session);
  if (status.ok()) session->finder->SetControl(session->control.get());
  if (status.ok()) status = Connect(*session, options);
  if (status.ok()) return session;
  status = Annotate(status, session->uri);
  TearDown(std::move(session), 0);
  return status;
}

// True when nothing of the network is left.
bool CloseClient(ibnbd_session& session, std::int64_t deadline_ns) {
  auto closed = CallControl<bool>(session, deadline_ns + kTeardownGraceNs,
                                  [&session, deadline_ns](auto done) {
                                    if (session.client->closed()) {
                                      done(true);
                                    } else {
                                      session.client->Close(deadline_ns, [done] { done(true); });
                                    }
                                  });
  return closed.ok();
}

// Runs turns until no IO is outstanding or the time is over; all queues are ours.
bool DrainQueues(ibnbd_session& session, std::int64_t timeout_ns) {
  const std::int64_t deadline_ns = session.clock.NowNs() + timeout_ns;
  const auto outstanding = [&session] {
    return std::any_of(session.queues.begin(), session.queues.end(),
                       [](const auto& queue) { return queue->outstanding != 0; });
  };
  while (outstanding()) {
    const std::int64_t left_ns = deadline_ns - session.clock.NowNs();
    if (left_ns <= 0) return false;
    Event never;  // Waits a little, and runs turns.
    WaitAndDrive(session, never, std::min(left_ns, kNsPerMs));
  }
  return true;
}

void CutOff(ibnbd_session& session) {
  for (const auto& device : session.devices) {
    device->closing.store(true);
    device->cut.store(true);
    for (const auto& queue : session.queues) queue->bounce.CancelWaiting(*device, -ECANCELED);
  }
}

void StopControlThread(ibnbd_session& session) {
  if (!session.thread_started) return;
  session.control->Stop();
  ::pthread_join(session.thread, nullptr);
  session.thread_started = false;
}

void Destroy(std::unique_ptr<ibnbd_session> session) {
  if (session->finder != nullptr) session->finder->Close();
  StopControlThread(*session);
  session->client.reset();
  for (const auto& buffer : session->buffers) ForgetHandle(buffer.get());
  for (const auto& device : session->devices) ForgetHandle(device.get());
  session->buffers.clear();
  if (session->control != nullptr) {
    session->control_port.reset();
    session->control->RunTurn();
    session->control.reset();
  }
  for (const auto& queue : session->queues) TearDownQueue(*queue);
  session->landed_on.clear();
  session->queues.clear();
}

}  // namespace

int StartThreadWithoutSignals(pthread_t* thread, void* (*run)(void*), void* argument) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // Inherited by the thread.
  const int error = ::pthread_create(thread, nullptr, run, argument);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error;
}

bool TearDown(std::unique_ptr<ibnbd_session> session, std::int64_t timeout_ns) {
  for (const auto& queue : session->queues) queue->owner.store(pthread_self());
  for (const auto& queue : session->queues) queue->reactor->AdoptThread();
  for (const auto& device : session->devices) device->closing.store(true);
  const std::int64_t deadline_ns = session->clock.NowNs() + timeout_ns;
  const bool all_done = DrainQueues(*session, timeout_ns);
  bool closed = true;
  if (!all_done) CutOff(*session);
  if (session->thread_started) {
    const std::int64_t left_ns = std::max<std::int64_t>(deadline_ns - session->clock.NowNs(), 0);
    closed = CloseClient(*session, all_done ? left_ns : 0);
  }
  if (closed && DrainQueues(*session, kTeardownGraceNs)) {
    Destroy(std::move(session));
    return all_done;
  }
  // The network still holds memory of IOs: better lost than reused under it.
  LOG_ERROR("session ", session->name, " to ", session->uri,
            ": could not be taken down in time, its memory is left behind");
  (void)session.release();
  return false;
}

}  // namespace ibnbd::capi

using ibnbd::kNsPerMs;
using ibnbd::capi::CallControl;
using ibnbd::capi::CheckSession;
using ibnbd::capi::Fail;
using ibnbd::capi::Succeed;

int ibnbd_session_open(const char* uri, const struct ibnbd_session_options* options,
                       ibnbd_session** out) {
  constexpr char kCall[] = "ibnbd_session_open";
  if (out == nullptr) return Fail(-EINVAL, "%s: the place for the session is NULL", kCall);
  *out = nullptr;
  if (uri == nullptr) return Fail(-EINVAL, "%s: the URI is NULL", kCall);
  if (ibnbd::capi::InCallback()) {
    return Fail(-EDEADLK, "%s: must not be called from a done callback", kCall);
  }
  ibnbd_session_options chosen = IBNBD_SESSION_OPTIONS_INIT;
  if (const int error = ibnbd::capi::CopyOptions(kCall, options, chosen)) return error;
  auto session = ibnbd::capi::Open(uri, chosen);
  if (!session.ok()) return Fail(kCall, session.status());
  *out = session->release();
  ibnbd::capi::RememberHandle(*out);
  return Succeed();
}

int ibnbd_session_close(ibnbd_session* session, uint32_t timeout_ms) {
  constexpr char kCall[] = "ibnbd_session_close";
  if (session == nullptr) return Succeed();
  if (const int error = CheckSession(kCall, session)) return error;
  if (!ibnbd::capi::ForgetHandle(session)) return Fail(-EINVAL, "%s: closed already", kCall);
  const std::string uri = session->uri;
  if (ibnbd::capi::TearDown(std::unique_ptr<ibnbd_session>(session), timeout_ms * kNsPerMs)) {
    return Succeed();
  }
  return Fail(-ETIMEDOUT, "%s: %s: IOs were outstanding after %u ms and have been cancelled", kCall,
              uri.c_str(), timeout_ms);
}

int ibnbd_session_get_info(ibnbd_session* session, struct ibnbd_session_info* out) {
  constexpr char kCall[] = "ibnbd_session_get_info";
  if (const int error = CheckSession(kCall, session)) return error;
  if (const int error = ibnbd::capi::CheckInfo(kCall, out)) return error;
  auto info = CallControl<struct ibnbd_session_info>(
      *session, ibnbd::capi::kLocalAnswerNs, [session](auto done) {
        ibnbd::rtrs::ClientSession& engine = session->client->session();
        struct ibnbd_session_info filled = {};
        filled.struct_size = sizeof filled;
        filled.queue_count = static_cast<std::uint32_t>(session->queues.size());
        filled.queue_depth = engine.limits().queue_depth;
        filled.io_size_max = engine.limits().io_size_max;
        filled.connected = engine.up() ? 1 : 0;
        filled.reconnects = engine.stats().reconnects;
        filled.connect_failures = engine.stats().connect_failures;
        filled.policy = static_cast<std::uint32_t>(engine.policy());
        filled.dead_after_ms = static_cast<std::uint32_t>(
            (engine.heartbeat_interval_ns() * ibnbd::rtrs::kHeartbeatsToDeath + kNsPerMs / 2) /
            kNsPerMs);
        filled.heartbeat_rtt_ns = static_cast<std::uint64_t>(engine.stats().heartbeat_rtt_ns);
        for (const ibnbd::rtrs::PathInfo& path : engine.paths()) {
          if (filled.address[0] != 0 && path.state != ibnbd::rtrs::PathState::kUp) continue;
          ibnbd::capi::CopyText(path.addresses, filled.address);
          if (path.state == ibnbd::rtrs::PathState::kUp) break;
        }
        done(filled);
      });
  if (!info.ok()) return Fail(kCall, info.status());
  *out = *info;
  return Succeed();
}

int ibnbd_session_is_alive(ibnbd_session* session) {
  if (const int error = CheckSession("ibnbd_session_is_alive", session)) return error;
  if (session->life_asked.exchange(true, std::memory_order_acq_rel)) return 0;
  session->control->Post(
      [session] { session->life_asked.store(false, std::memory_order_release); });
  return 1;
}

int ibnbd_session_set_dead_after(ibnbd_session* session, uint32_t dead_after_ms) {
  constexpr char kCall[] = "ibnbd_session_set_dead_after";
  if (const int error = CheckSession(kCall, session)) return error;
  const absl::Status fits = ibnbd::capi::CheckDeadAfter(dead_after_ms);
  if (!fits.ok()) return Fail(kCall, fits);
  session->control->Post([session, dead_after_ms] {
    session->client->session().SetHeartbeat(ibnbd::capi::HeartbeatNs(dead_after_ms));
  });
  return Succeed();
}

int ibnbd_session_ping(ibnbd_session* session, uint32_t timeout_ms, uint64_t* round_trip_ns) {
  constexpr char kCall[] = "ibnbd_session_ping";
  if (const int error = CheckSession(kCall, session)) return error;
  auto time_ns = CallControl<std::int64_t>(*session, timeout_ms * kNsPerMs, [session](auto done) {
    session->client->Ping(std::move(done));
  });
  if (!time_ns.ok()) return Fail(kCall, ibnbd::Annotate(time_ns.status(), session->uri));
  if (round_trip_ns != nullptr) *round_trip_ns = static_cast<std::uint64_t>(*time_ns);
  return Succeed();
}

int ibnbd_session_list(ibnbd_session* session, uint32_t timeout_ms, ibnbd_export_fn fn,
                       void* opaque) {
  constexpr char kCall[] = "ibnbd_session_list";
  if (const int error = CheckSession(kCall, session)) return error;
  if (fn == nullptr) return Fail(-EINVAL, "%s: the callback is NULL", kCall);
  auto exports = CallControl<std::vector<ibnbd::rnbd::ExportEntry>>(
      *session, timeout_ms * kNsPerMs,
      [session](auto done) { session->client->ListExports(std::move(done)); });
  if (!exports.ok()) return Fail(kCall, ibnbd::Annotate(exports.status(), session->uri));
  for (const ibnbd::rnbd::ExportEntry& entry : *exports) {
    struct ibnbd_export_info info = {};
    info.struct_size = sizeof info;
    ibnbd::capi::CopyText(entry.name, info.name);
    info.size = entry.size_bytes;
    info.logical_block_size = entry.logical_block_size;
    info.flags = (entry.read_only ? IBNBD_EXPORT_READ_ONLY : 0) |
                 (entry.write_cache ? IBNBD_EXPORT_WRITE_CACHE : 0);
    info.reader_count = entry.reader_count;
    info.writer_count = entry.writer_count;
    if (const int stop = fn(opaque, &info)) return stop;
  }
  return Succeed();
}
