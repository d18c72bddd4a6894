// SPDX-License-Identifier: Apache-2.0
// The session's paths as its user sees them, and the fences: how the session makes sure that
// nothing of a path that broke can execute any more before what was in flight on it goes on
// elsewhere.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/canary.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"
#include "rtrs/client_session_impl.h"

namespace ibnbd::rtrs {
namespace {

// A living server answers within its own bound, 10 s: what still executes may take as long.
constexpr std::int64_t kFenceTimeoutNs = 30 * kNsPerSecond;
constexpr std::int64_t kFenceRetryNs = 100 * kNsPerMs;

}  // namespace

absl::string_view PathStateName(PathState state) {
  switch (state) {
    case PathState::kConnecting:
      return "connecting";
    case PathState::kUp:
      return "up";
    case PathState::kDraining:
      return "draining";
    case PathState::kBackoff:
      return "pausing";
    case PathState::kClosing:
      return "closing";
  }
  return "";
}

// True: some path is not fenced yet, and somebody will call again.
bool ClientSession::Impl::AdvanceFences() {
  const bool waits = fence_.outstanding || fence_timer_.armed();
  for (const auto& path : paths_) {
    if (!path->unfenced) continue;
    ClientPath* carrier = Carrier();
    // One that is connecting again is fenced, too: the server may keep it out for long, and the
    // round in the message keeps its new life out of it.
    if (!path->drained() || carrier == nullptr || waits) return true;
    if (carrier->limits().peer_fences && !IBNBD_CANARY(10)) {
      SendFence(*path, *carrier);
      return true;  // Until it is answered.
    }
    // The best there is: our end of the old path is gone.
    SIM_MARK("client: fail-over without a fence");
    path->unfenced = false;
    OnFenced(*path);
    return AdvanceFences();  // OnFenced() may have ended the path.
  }
  return false;
}

void ClientSession::Impl::SendFence(ClientPath& target, ClientPath& carrier) {
  fence_.fence = proto::FencePath{};
  fence_.fence.recon_cnt = proto::le16(static_cast<std::uint16_t>(target.unfenced_round));
  fence_.fence.sess_uuid = target.uuid();
  fence_.message = proto::AsBytes(fence_.fence);
  fence_.outstanding = true;
  fence_.target_id = target.id();
  fence_.target_round = target.unfenced_round;
  fence_.carrier_id = carrier.id();
  fence_.carrier_round = carrier.round();
  fence_timer_.ArmAfter(kFenceTimeoutNs);
  lanes_[0]->SubmitOn(carrier.number(), fence_);
}

void ClientSession::Impl::OnFenceDone(int error) {
  fence_.outstanding = false;
  fence_timer_.Cancel();
  if (close_requested_) return;
  const auto target = std::find_if(paths_.begin(), paths_.end(), [this](const auto& path) {
    return path->id() == fence_.target_id;
  });
  if (error == 0) {
    SIM_MARK("client: path fenced");
    // It may have come back meanwhile, and even be lost again.
    if (target != paths_.end() && (*target)->unfenced &&
        (*target)->unfenced_round == fence_.target_round) {
      (*target)->unfenced = false;
      OnFenced(**target);
    }
  } else if (error == -EBUSY) {
    SIM_MARK("client: fence tried again");
    fence_timer_.ArmAfter(kFenceRetryNs);  // Something of it still executes: a slow disk.
    return;
  } else if (error != -ECONNABORTED && error != -ENOTCONN) {
    const auto carrier = std::find_if(paths_.begin(), paths_.end(), [this](const auto& path) {
      return path->id() == fence_.carrier_id && path->round() == fence_.carrier_round;
    });
    if (carrier != paths_.end()) (*carrier)->Break(ErrnoStatus(error, "FENCE_PATH refused"));
  }
  if (state_ == State::kDown) return TryGoUp();
  (void)AdvanceFences();
}

// The answer is late: who carries it is no better than the path that was lost.  Or the pause before
// another attempt is over.
void ClientSession::Impl::OnFenceTimer() {
  if (fence_.outstanding) {
    for (const auto& path : paths_) {
      if (path->id() != fence_.carrier_id || path->round() != fence_.carrier_round) continue;
      return path->Break(absl::DeadlineExceededError("FENCE_PATH: no answer"));
    }
    return;
  }
  if (state_ == State::kDown) return TryGoUp();
  (void)AdvanceFences();
}

void ClientSession::Impl::OnFenced(ClientPath& path) {
  if (state_ == State::kUp) {
    PostToLanes([number = path.number()](ClientLane& lane) { lane.OnFenced(number); });
  }
  if (path.closing()) path.Close();
}

// An idle session with one path has no timer of this kind.
void ClientSession::Impl::StartProbes() {
  ClientPath* first = Carrier();
  if (options_.probe_interval_ns <= 0 || probe_timer_.armed()) return;
  if (first != nullptr && HasOtherPathUp(*first)) {
    probe_timer_.ArmAfter(options_.probe_interval_ns);
  }
}

void ClientSession::Impl::OnProbeTimer() {
  ++looks_;
  for (const auto& path : paths_) {
    if (path->enabled() && path->up()) path->Look(looks_);
  }
  for (const auto& path : paths_) {
    if (path->enabled() && path->up()) path->Judge();
  }
  StartProbes();
}

absl::StatusOr<std::uint32_t> ClientSession::Impl::AddPath(const PathOptions& options) {
  const std::string what =
      absl::StrCat("session ", options_.name, ": add a path to ", TargetOf(options));
  if (close_requested_ || state_ == State::kIdle) {
    return absl::FailedPreconditionError(absl::StrCat(what, ": the session is not running"));
  }
  if (paths_.size() >= kClientPathsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": it has ", paths_.size(), " paths, and more are not possible"));
  }
  if (options.weight > kPathWeightMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": weight ", options.weight, " is not in 0..", kPathWeightMax));
  }
  ClientPath& path = NewPath(options);
  path.Start();
  return path.id();
}

void ClientSession::Impl::FindWay(ClientPath& path) {
  options_.finder->Find(path.options(), [this, alive = std::weak_ptr<const bool>(alive_),
                                         id = path.id()](absl::StatusOr<PathOptions> found) {
    if (!alive.expired()) OnPathFound(id, std::move(found));
  });
}

// A name may turn out to lead where another path does, which somebody who has given it its address
// twice wants.
void ClientSession::Impl::OnPathFound(std::uint32_t id, absl::StatusOr<PathOptions> found) {
  ClientPath* path = FindPath(id);
  if (path == nullptr) return;
  const auto way = [](const PathOptions& options) {
    return absl::StrCat(options.source ? options.source->ToString() : "", "@",
                        options.server.ToString());
  };
  for (const auto& other : paths_) {
    if (!found.ok() || IsKnown(path->options()) || other.get() == path) break;
    if (other->closing() || !IsKnown(other->options())) continue;
    if (way(other->options()) != way(*found)) continue;
    found = absl::AlreadyExistsError(
        absl::StrCat("it leads to ", found->server.ToString(), ", as path ", other->id(), " does"));
  }
  path->OnFound(std::move(found));
}

void ClientSession::Impl::RemovePath(std::uint32_t id, std::function<void(absl::Status)> done) {
  ClientPath* path = FindPath(id);
  const std::string what = absl::StrCat("session ", options_.name, ": remove path ", id);
  absl::Status status;
  if (path == nullptr || close_requested_) {
    status = absl::NotFoundError(absl::StrCat(what, ": there is no such path"));
  } else if (std::count_if(paths_.begin(), paths_.end(),
                           [](const auto& other) { return other->removed == nullptr; }) == 1) {
    status = absl::FailedPreconditionError(absl::StrCat(what, ": it is the last one"));
  }
  if (!status.ok()) {
    return reactor_.Post([done = std::move(done), status] { done(status); });
  }
  path->removed = std::move(done);
  path->Close();
}

absl::Status ClientSession::Impl::SetPathWeight(std::uint32_t id, std::uint32_t weight) {
  ClientPath* path = FindPath(id);
  if (path == nullptr) {
    return absl::NotFoundError(absl::StrCat("session ", options_.name, ": there is no path ", id));
  }
  if (weight > kPathWeightMax) {
    return absl::InvalidArgumentError(absl::StrCat("session ", options_.name, ": weight ", weight,
                                                   " is not in 0..", kPathWeightMax));
  }
  path->set_weight(weight);
  PostToLanes(
      [number = path->number(), weight](ClientLane& lane) { lane.SetWeight(number, weight); });
  return absl::OkStatus();
}

void ClientSession::Impl::SetPolicy(PathPolicyKind kind) {
  policy_ = kind;
  PostToLanes([kind](ClientLane& lane) { lane.SetPolicy(kind); });
}

void ClientSession::Impl::SetHeartbeat(std::int64_t interval_ns) {
  options_.heartbeat_interval_ns = interval_ns;
  for (const auto& path : paths_) path->RestartHeartbeat();
}

std::int64_t ClientSession::Impl::heartbeat_interval_ns() const {
  return HeartbeatInterval(options_, limits_);
}

std::vector<PathInfo> ClientSession::Impl::paths() const {
  std::vector<PathInfo> infos;
  infos.reserve(paths_.size());
  for (const auto& path : paths_) infos.push_back(path->Info());
  // The lanes' last word on that; it counts for as long as they have a choice.
  const auto up = std::count_if(infos.begin(), infos.end(),
                                [](const PathInfo& info) { return info.state == PathState::kUp; });
  if (up < 2 || policy_ != PathPolicyKind::kAdaptive) {
    for (PathInfo& info : infos) info.drained_by_policy = false;
  }
  return infos;
}

ClientSessionStats ClientSession::Impl::stats() const {
  ClientSessionStats sum = gone_stats_;
  for (const auto& path : paths_) {
    const ClientSessionStats& stats = path->stats();
    sum.connect_rounds += stats.connect_rounds;
    sum.reconnects += stats.reconnects;
    sum.connect_failures += stats.connect_failures;
    sum.heartbeats_sent += stats.heartbeats_sent;
    sum.heartbeats_missed += stats.heartbeats_missed;
    if (sum.heartbeat_rtt_ns == 0) sum.heartbeat_rtt_ns = stats.heartbeat_rtt_ns;
  }
  return sum;
}

std::string ClientSession::Impl::Describe() const {
  return absl::StrJoin(paths_, "; ", [](std::string* out, const auto& path) {
    absl::StrAppend(out, path->Describe());
  });
}

}  // namespace ibnbd::rtrs
