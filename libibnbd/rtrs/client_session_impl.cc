// SPDX-License-Identifier: Apache-2.0
#include "rtrs/client_session_impl.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mark.h"
#include "base/status_macros.h"

namespace ibnbd::rtrs {
namespace {

// Only one path can create the session at the server: the first has its chance before the others.
constexpr std::int64_t kFirstPathAheadNs = 200 * kNsPerMs;

}  // namespace

ClientSession::Impl::Impl(const ClientSessionOptions& options, Port& control,
                          std::span<Port* const> lane_ports, ClientSessionObserver& observer)
    : options_(options),
      reactor_(control.reactor()),
      observer_(observer),
      prng_(options.seed),
      session_uuid_(DrawUuid(prng_)),
      policy_(options.policy),
      start_timer_(reactor_.timers(), [this] { StartOthers(); }),
      probe_timer_(reactor_.timers(), [this] { OnProbeTimer(); }),
      fence_(*this),
      fence_timer_(reactor_.timers(), [this] { OnFenceTimer(); }) {
  lanes_.push_back(std::make_unique<ClientLane>(control, reactor_, *this, 0));
  for (Port* port : lane_ports) {
    const auto cid = static_cast<std::uint32_t>(lanes_.size());
    lanes_.push_back(std::make_unique<ClientLane>(*port, reactor_, *this, cid));
  }
  for (const auto& lane : lanes_) lane_list_.push_back(lane.get());
  NewPath({options.server, options.source, kPathWeightDefault, options.text});
  for (const PathOptions& path : options.more_paths) NewPath(path);
}

ClientSession::Impl::~Impl() { CHECK(state_ == State::kClosed || state_ == State::kIdle); }

ClientPath& ClientSession::Impl::NewPath(const PathOptions& options) {
  const auto number = static_cast<std::uint32_t>(std::countr_one(numbers_used_));
  CHECK_LT(number, kClientPathsMax);
  numbers_used_ |= 1u << number;
  paths_.push_back(std::make_unique<ClientPath>(options_, options, next_path_id_++, number,
                                                session_uuid_, prng_.Fork(), lane_list_, reactor_,
                                                *this));
  // The number may have been another path's, whose weight the lanes still know.
  if (options.weight != kPathWeightDefault || state_ != State::kIdle) {
    PostToLanes(
        [number, weight = options.weight](ClientLane& lane) { lane.SetWeight(number, weight); });
  }
  return *paths_.back();
}

void ClientSession::Impl::Start() {
  CHECK(state_ == State::kIdle);
  state_ = State::kDown;
  if (policy_ != PathPolicyKind::kAdaptive) SetPolicy(policy_);
  paths_.front()->Start();
  if (paths_.size() > 1) start_timer_.ArmAfter(kFirstPathAheadNs);
}

void ClientSession::Impl::StartOthers() {
  start_timer_.Cancel();
  for (const auto& path : paths_) {
    if (path->idle() && !path->closing()) path->Start();
  }
}

ClientPath* ClientSession::Impl::FindPath(std::uint32_t id) {
  for (const auto& path : paths_) {
    if (path->id() == id && path->removed == nullptr) return path.get();
  }
  return nullptr;
}

ClientPath* ClientSession::Impl::Carrier() {
  for (const auto& path : paths_) {
    if (path->up() && !path->closing()) return path.get();
  }
  return nullptr;
}

bool ClientSession::Impl::HasOtherPathUp(const ClientPath& path) const {
  return std::any_of(paths_.begin(), paths_.end(), [&path](const auto& other) {
    return other.get() != &path && other->up() && !other->closing();
  });
}

bool ClientSession::Impl::IsOtherPathAlive(const ClientPath& path, std::uint32_t cid,
                                           std::uint64_t after_look) const {
  return std::any_of(paths_.begin(), paths_.end(), [&](const auto& other) {
    return other.get() != &path && other->up() && other->alive_look(cid) > after_look;
  });
}

void ClientSession::Impl::AskOtherPaths(const ClientPath& path, std::uint32_t cid) {
  for (const auto& other : paths_) {
    if (other.get() != &path && other->up()) other->SendHeartbeat(cid);
  }
}

bool ClientSession::Impl::IsLaneBusy(std::uint32_t cid) const {
  return std::any_of(paths_.begin(), paths_.end(),
                     [cid](const auto& path) { return path->up() && path->inflight(cid) > 0; });
}

bool ClientSession::Impl::MayCreateSession(const ClientPath& path) const {
  return !HasOtherPathUp(path);
}

// The first path that gets an answer says what the session has; the others must agree, and so must
// every path for ever once the session was up: permits and the sizes of IOs depend on it.
absl::StatusOr<SessionLimits> ClientSession::Impl::OnPathOffer(ClientPath& path,
                                                               const SessionLimits& offer) {
  const bool others = std::any_of(paths_.begin(), paths_.end(), [&path](const auto& other) {
    return other.get() != &path && other->has_offer();
  });
  if (paths_.size() > 1 &&
      DealPermits(offer.queue_depth, static_cast<std::uint32_t>(lane_count()), 0).count < 2) {
    return absl::FailedPreconditionError(
        absl::StrCat("connect: the server's queue depth ", offer.queue_depth, " is too small for ",
                     lanes_.size(), " connections and several paths"));
  }
  if (!was_up_ && !others) {
    limits_ = offer;
    return offer;
  }
  if (offer.queue_depth != limits_.queue_depth || offer.io_size_max < limits_.io_size_max) {
    return absl::FailedPreconditionError(absl::StrCat(
        "connect: the server changed what it grants: queue depth ", limits_.queue_depth, " to ",
        offer.queue_depth, ", io size ", limits_.io_size_max, " to ", offer.io_size_max));
  }
  SessionLimits limits = offer;
  limits.io_size_max = limits_.io_size_max;
  return limits;
}

void ClientSession::Impl::OnPathUp(ClientPath& path) {
  if (close_requested_ || path.closing()) return path.Break(absl::CancelledError("closed"));
  if (path.might_have_created() && HasOtherPathUp(path)) {
    // Another was faster.  If the server was restarted in between, they lead to different ones.
    SIM_MARK("client: a path joins again");
    path.HurryBack();
    return path.Break(absl::UnavailableError("another path was up first: connecting again"));
  }
  path.unfenced = false;  // The server let it in: its old life is over.
  if (state_ == State::kUp) {
    path.Enable();
    StartProbes();
    (void)AdvanceFences();  // Others may have waited for its fence.
    return;
  }
  limits_.peer_is_ibnbd = path.limits().peer_is_ibnbd;
  limits_.peer_fences = path.limits().peer_fences;
  limits_.chunk_size = path.limits().chunk_size;
  TryGoUp();
  StartOthers();
}

void ClientSession::Impl::OnPathDown(ClientPath& path, const absl::Status& why) {
  if (fence_.outstanding && fence_.carrier_id == path.id()) fence_timer_.Cancel();
  if (state_ != State::kUp) return;  // It never carried anything but fences.
  if (!HasOtherPathUp(path)) return GoDown(why);
  if (path.enabled() && !path.closing()) {
    SIM_MARK("client: fail-over");
    ++gone_stats_.failovers;
  }
}

void ClientSession::Impl::GoDown(const absl::Status& why) {
  state_ = State::kDown;
  lanes_aborting_ = static_cast<std::uint32_t>(lanes_.size());
  PostToLanes([](ClientLane& lane) { lane.Abort(); });
  observer_.OnSessionDown(why);
}

void ClientSession::Impl::OnPathFailed(ClientPath&, const absl::Status& why, bool fatal) {
  if (state_ != State::kDown || close_requested_ || Carrier() != nullptr) return;
  StartOthers();
  // While another one is still trying nothing is decided.
  const bool others_try = std::any_of(
      paths_.begin(), paths_.end(), [](const auto& path) { return path->connecting_first_time(); });
  if (!others_try) observer_.OnConnectFailed(why, fatal);
}

void ClientSession::Impl::OnPathDrained(ClientPath& path) {
  if (close_requested_) path.unfenced = false;
  if (path.closing() && !path.unfenced) return path.Close();
  if (state_ == State::kDown) return TryGoUp();
  (void)AdvanceFences();
}

void ClientSession::Impl::OnLaneAborted(std::uint32_t) {
  if (--lanes_aborting_ == 0) TryGoUp();
}

void ClientSession::Impl::TryGoUp() {
  if (state_ != State::kDown || close_requested_ || lanes_aborting_ > 0) return;
  if (Carrier() == nullptr || AdvanceFences()) return;
  state_ = State::kUp;
  was_up_ = true;
  for (const auto& path : paths_) {
    if (path->up()) path->Enable();
  }
  StartProbes();
  PostToLanes([](ClientLane& lane) { lane.Open(); });
  lanes_[0]->Open();  // On this thread: the observer may use it at once.
  observer_.OnSessionUp();
}

void ClientSession::Impl::ResetPaths(const absl::Status& why) {
  for (const auto& path : paths_) path->Break(why);
}

void ClientSession::Impl::Close() {
  if (std::exchange(close_requested_, true)) return;
  fence_timer_.Cancel();
  start_timer_.Cancel();
  probe_timer_.Cancel();
  const bool was_up = state_ == State::kUp;
  // In the order of the states: down first, so that the lanes give up what they have.
  if (was_up) GoDown(absl::CancelledError("closed"));
  state_ = State::kClosing;
  for (std::size_t i = paths_.size(); i-- > 0;) {
    if (paths_[i]->drained()) paths_[i]->unfenced = false;
    paths_[i]->Close();
  }
}

void ClientSession::Impl::OnPathShutDown(ClientPath& path) {
  const ClientSessionStats& stats = path.stats();
  gone_stats_.connect_rounds += stats.connect_rounds;
  gone_stats_.reconnects += stats.reconnects;
  gone_stats_.connect_failures += stats.connect_failures;
  gone_stats_.heartbeats_sent += stats.heartbeats_sent;
  gone_stats_.heartbeats_missed += stats.heartbeats_missed;
  numbers_used_ &= ~(1u << path.number());
  const std::function<void(absl::Status)> removed = std::move(path.removed);
  std::erase_if(paths_, [&path](const auto& entry) { return entry.get() == &path; });
  if (removed != nullptr) removed(absl::OkStatus());
  if (close_requested_ && paths_.empty()) ShutDownLanes();
}

void ClientSession::Impl::ShutDownLanes() {
  lanes_pending_ = static_cast<std::uint32_t>(lanes_.size());
  PostToLanes([](ClientLane& lane) { lane.ShutDown(); });
}

void ClientSession::Impl::OnLaneShutDown(std::uint32_t) {
  if (--lanes_pending_ > 0) return;
  state_ = State::kClosed;
  observer_.OnSessionClosed();  // May destroy us.
}

void ClientSession::Impl::SubmitControl(ClientRequest& request) {
  CHECK(state_ == State::kUp);
  lanes_[0]->Submit(request);
}

}  // namespace ibnbd::rtrs
