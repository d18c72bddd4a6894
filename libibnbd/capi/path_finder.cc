// SPDX-License-Identifier: Apache-2.0
#include "capi/path_finder.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "capi/session.h"

namespace ibnbd::capi {
namespace {

using rtrs::PathOptions;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;

// How long those that were found wait for those that were not yet.
constexpr nanoseconds kForLastOnes = std::chrono::seconds(1);

struct Ends {
  std::optional<HostPort> from;
  HostPort to;
};

absl::StatusOr<Ends> SplitPath(absl::string_view text, std::uint16_t default_port) {
  const std::pair<absl::string_view, absl::string_view> sides =
      absl::StrSplit(text, absl::MaxSplits('@', 1));
  const bool has_source = absl::string_view::npos != text.find('@');
  if (text.empty() || (has_source && (sides.first.empty() || sides.second.empty()))) {
    return absl::InvalidArgumentError("[SRC@]DST[:PORT] is wanted");
  }
  Ends ends;
  ASSIGN_OR_RETURN(ends.to, ParseHostPort(has_source ? sides.second : text, BareIpv6::kTaken));
  if (!ends.to.port.has_value()) ends.to.port = default_port;
  if (ends.to.port == 0) return absl::InvalidArgumentError("its port is 0");
  if (!has_source) return ends;
  ASSIGN_OR_RETURN(ends.from, ParseHostPort(sides.first, BareIpv6::kTaken));
  if (ends.from->port.has_value()) return absl::InvalidArgumentError("a source has no port");
  return ends;
}

// `path` without text, at addresses.
absl::Status Locate(const Ends& ends, Names names, PathOptions& path) {
  ASSIGN_OR_RETURN(const SocketAddress server, ResolveAddress(ends.to.host, *ends.to.port, names));
  std::optional<SocketAddress> source;
  if (ends.from.has_value()) {
    ASSIGN_OR_RETURN(source, ResolveAddress(ends.from->host, 0, names));
    if (source->family != server.family) {
      return absl::InvalidArgumentError("source and destination are of different kinds");
    }
  }
  path.server = server;
  path.source = source;
  return absl::OkStatus();
}

absl::Status TellFabric(fabric::Fabric& fabric, const PathOptions& path) {
  return fabric.AddPeer(path.server, path.source ? &*path.source : nullptr);
}

}  // namespace

absl::StatusOr<PathOptions> ParsePath(absl::string_view text, std::uint16_t default_port) {
  const std::string what = absl::StrCat("path \"", text, "\"");
  const absl::StatusOr<Ends> ends = SplitPath(text, default_port);
  if (!ends.ok()) return Annotate(ends.status(), what);
  PathOptions path;
  const absl::Status located = Locate(*ends, Names::kRefused, path);
  if (absl::IsInvalidArgument(located)) return Annotate(located, what);
  if (located.ok()) {
    path.text = PathText(path);
    return path;
  }
  const bool v6 = ends->to.host.find(':') != std::string::npos;
  path.text = absl::StrCat(ends->from ? ends->from->host : "", ends->from ? "@" : "", v6 ? "[" : "",
                           ends->to.host, v6 ? "]:" : ":", *ends->to.port);
  return path;
}

struct PathFinder::Shared {
  explicit Shared(fabric::Fabric& its_fabric) : fabric(its_fabric) {}
  // On a thread that may wait.
  absl::StatusOr<PathOptions> Search(PathOptions path) {
    absl::StatusOr<Ends> ends = SplitPath(path.text, 0);  // It has its port.
    const absl::Status located = ends.ok() ? Locate(*ends, Names::kLookedUp, path) : ends.status();
    // One that was known is tried where it was: that names fail may come of what it is to mend.
    if (!located.ok() && !IsKnown(path)) return located;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (closed) return absl::CancelledError("closed");
      ++telling;
    }
    const absl::Status told = TellFabric(fabric, path);
    const std::lock_guard<std::mutex> lock(mutex);
    if (--telling == 0) idle.notify_all();
    if (!told.ok()) return told;
    return path;
  }

  fabric::Fabric& fabric;  // Unless closed.
  std::mutex mutex;
  std::condition_variable idle;
  Reactor* control = nullptr;
  bool closed = false;
  int telling = 0;  // Threads that use the fabric.
};

PathFinder::PathFinder(fabric::Fabric& fabric) : shared_(std::make_shared<Shared>(fabric)) {}

PathFinder::~PathFinder() { Close(); }

void PathFinder::SetControl(Reactor* control) {
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  shared_->control = control;
}

void PathFinder::Close() {
  std::unique_lock<std::mutex> lock(shared_->mutex);
  shared_->closed = true;
  shared_->control = nullptr;
  shared_->idle.wait(lock, [this] { return shared_->telling == 0; });
}

namespace {

struct Search {  // What a thread is given.
  std::function<absl::StatusOr<PathOptions>()> work;
  rtrs::PathFinder::DoneFn deliver;
};

}  // namespace

void* PathFinder::RunThread(void* argument) {
  const std::unique_ptr<Search> search(static_cast<Search*>(argument));
  (void)::pthread_setname_np(::pthread_self(), "ibnbd-find");
  search->deliver(search->work());
  return nullptr;
}

absl::Status PathFinder::StartThread(std::shared_ptr<Shared> shared, const PathOptions& path,
                                     DoneFn deliver) {
  auto search = std::make_unique<Search>();
  search->work = [shared = std::move(shared), path] { return shared->Search(path); };
  search->deliver = std::move(deliver);
  pthread_t thread{};
  if (const int error = StartThreadWithoutSignals(&thread, RunThread, search.get())) {
    return ErrnoStatus(error, absl::StrCat("find ", path.text, ": start a thread"));
  }
  (void)search.release();  // The thread's.
  ::pthread_detach(thread);
  return absl::OkStatus();
}

void PathFinder::Find(const PathOptions& path, DoneFn done) {
  const auto deliver = [shared = shared_, done = std::move(done)](absl::StatusOr<PathOptions> it) {
    const std::lock_guard<std::mutex> lock(shared->mutex);
    if (shared->control == nullptr) return;
    shared->control->Post([done, it = std::move(it)] { done(it); });
  };
  if (const absl::Status status = StartThread(shared_, path, deliver); !status.ok()) {
    deliver(status);
  }
}

absl::Status PathFinder::FindNow(std::vector<PathOptions>& paths, std::int64_t timeout_ns) {
  struct Answers {  // Also of threads that nobody waits for any more.
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<absl::StatusOr<PathOptions>> all;  // By path.
    std::size_t missing = 0;
  };
  const absl::Status late =
      absl::DeadlineExceededError(absl::StrCat("no answer within ", timeout_ns / kNsPerMs, " ms"));
  auto answers = std::make_shared<Answers>();
  answers->all.assign(paths.size(), late);
  std::size_t found = 0;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const std::lock_guard<std::mutex> lock(answers->mutex);
    if (IsKnown(paths[i])) {
      const absl::Status told = TellFabric(shared_->fabric, paths[i]);
      answers->all[i] = told.ok() ? absl::StatusOr<PathOptions>(paths[i]) : told;
      found += told.ok() ? 1 : 0;
      continue;
    }
    const absl::Status started =
        StartThread(shared_, paths[i], [answers, i](absl::StatusOr<PathOptions> answer) {
          const std::lock_guard<std::mutex> done(answers->mutex);
          answers->all[i] = std::move(answer);
          --answers->missing;
          answers->changed.notify_all();
        });
    if (!started.ok()) answers->all[i] = started;
    answers->missing += started.ok() ? 1 : 0;
  }
  std::unique_lock<std::mutex> lock(answers->mutex);
  const auto any = [&] {
    return std::any_of(answers->all.begin(), answers->all.end(),
                       [](const auto& answer) { return answer.ok(); });
  };
  const auto none_missing = [&] { return answers->missing == 0; };
  answers->changed.wait_for(lock, nanoseconds(timeout_ns), [&] { return none_missing() || any(); });
  answers->changed.wait_for(lock, std::min<nanoseconds>(kForLastOnes, nanoseconds(timeout_ns)),
                            none_missing);
  absl::Status first;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const absl::StatusOr<PathOptions>& answer = answers->all[i];
    if (answer.ok()) {
      paths[i].server = answer->server;
      paths[i].source = answer->source;
      continue;
    }
    if (first.ok()) first = Annotate(answer.status(), absl::StrCat("path \"", paths[i].text, "\""));
    paths[i].server = {};
    paths[i].source = std::nullopt;
  }
  return any() ? absl::OkStatus() : first;
}

}  // namespace ibnbd::capi
