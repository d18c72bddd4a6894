// SPDX-License-Identifier: Apache-2.0
// The public face of the client session; the work is in client_session_impl.cc and client_lane*.cc.
#include "rtrs/client_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/names.h"
#include "rtrs/client_session_impl.h"

namespace ibnbd::rtrs {

absl::StatusOr<std::unique_ptr<ClientSession>> ClientSession::Create(
    const ClientSessionOptions& options, Port& control, std::span<Port* const> lane_ports,
    ClientSessionObserver& observer) {
  const std::string& name = options.name;
  if (name.empty() || name.size() > proto::kSessionNameMax || proto::HasControlCharacter(name) ||
      name.find_first_of("/.") != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("session name '", name, "': 1 to ", proto::kSessionNameMax,
                     " characters are wanted, without '/', '.' and control characters"));
  }
  if (lane_ports.empty() || lane_ports.size() >= proto::kConsMax) {
    return absl::InvalidArgumentError(absl::StrCat("session ", name, ": ", lane_ports.size(),
                                                   " lanes; 1 to ", proto::kConsMax - 1,
                                                   " are possible"));
  }
  if (options.connect_timeout_ns <= 0 || options.heartbeat_interval_ns < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("session ", name, ": time-outs must be greater than 0"));
  }
  if (options.more_paths.size() >= kClientPathsMax) {
    return absl::InvalidArgumentError(absl::StrCat("session ", name, ": ",
                                                   options.more_paths.size() + 1,
                                                   " paths; at most ", kClientPathsMax));
  }
  return std::unique_ptr<ClientSession>(
      new ClientSession(std::make_unique<Impl>(options, control, lane_ports, observer)));
}

ClientSession::ClientSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ClientSession::~ClientSession() = default;

void ClientSession::Start() { impl_->Start(); }
void ClientSession::Close() { impl_->Close(); }
void ClientSession::ResetPaths(const absl::Status& why) { impl_->ResetPaths(why); }
absl::StatusOr<std::uint32_t> ClientSession::AddPath(const PathOptions& options) {
  return impl_->AddPath(options);
}
void ClientSession::RemovePath(std::uint32_t id, std::function<void(absl::Status)> done) {
  impl_->RemovePath(id, std::move(done));
}
absl::Status ClientSession::SetPathWeight(std::uint32_t id, std::uint32_t weight) {
  return impl_->SetPathWeight(id, weight);
}
void ClientSession::SetPolicy(PathPolicyKind kind) { impl_->SetPolicy(kind); }
PathPolicyKind ClientSession::policy() const { return impl_->policy(); }
void ClientSession::SetHeartbeat(std::int64_t interval_ns) { impl_->SetHeartbeat(interval_ns); }
std::int64_t ClientSession::heartbeat_interval_ns() const { return impl_->heartbeat_interval_ns(); }
std::vector<PathInfo> ClientSession::paths() const { return impl_->paths(); }
void ClientSession::SubmitControl(ClientRequest& request) { impl_->SubmitControl(request); }
bool ClientSession::up() const { return impl_->up(); }
const SessionLimits& ClientSession::limits() const { return impl_->limits(); }
ClientSessionStats ClientSession::stats() const { return impl_->stats(); }
std::string ClientSession::Describe() const { return impl_->Describe(); }
std::size_t ClientSession::lane_count() const { return impl_->lane_count(); }
ClientLane& ClientSession::lane(std::size_t index) { return impl_->lane(index); }

}  // namespace ibnbd::rtrs
