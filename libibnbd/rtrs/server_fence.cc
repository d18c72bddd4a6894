// SPDX-License-Identifier: Apache-2.0
// FENCE_PATH: a client with several paths has lost one, and before it sends what was in flight
// there again over another, it asks that nothing of the old path can execute any more.  We end the
// path if we have not noticed ourselves, and answer when it is closed: its connections are drained
// and what executed has ended.  Control thread.
//
// Nobody can be made to wait for himself: a wait ends with the path that carries it, so that two
// paths which fence each other both end.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/mark.h"
#include "rtrs/server.h"

namespace ibnbd::rtrs {
namespace {

// Over one path, so that nobody can take them from others.  Our client has one at a time.
constexpr std::ptrdiff_t kFenceWaitsPerCarrierMax = 4;

}  // namespace

void Server::FencePath(ServerPath& carrier, const proto::Uuid& sess_uuid, proto::le16 recon_cnt,
                       PathFencer::Done done) {
  const proto::Uuid& carrier_uuid = carrier.request().sess_uuid;
  const proto::Uuid paths_uuid = carrier.request().paths_uuid;
  if (carrier_uuid == sess_uuid) return done(-EINVAL);
  if (!carrier.up() || stopping_) return done(-ECONNABORTED);
  const auto& paths = sessions_.at(paths_uuid).paths;
  const auto target = paths.find(sess_uuid);
  // A newer round is let in only when the older one is closed.
  if (target == paths.end() || IsNewerRound(target->second->request().recon_cnt, recon_cnt)) {
    SIM_MARK("server: fenced path was gone already");
    return done(0);
  }
  const std::ptrdiff_t waits =
      std::count_if(fence_waits_.begin(), fence_waits_.end(), [&](const FenceWait& wait) {
        return wait.paths_uuid == paths_uuid && wait.carrier == carrier_uuid;
      });
  if (waits >= kFenceWaitsPerCarrierMax) return done(-EBUSY);
  const std::int64_t deadline_ns = reactor().now_ns() + options_.path.handshake_timeout_ns;
  fence_waits_.push_back({paths_uuid, carrier_uuid, sess_uuid, deadline_ns, std::move(done)});
  if (!fence_timer_.armed()) fence_timer_.ArmAt(deadline_ns);
  if (target->second->closing()) return;
  SIM_MARK("server: fence broke the old path");
  target->second->Break("client has given it up", Blame::kNetwork);
}

template <class F>
void Server::EndFenceWaits(int error, F f) {
  std::vector<FenceWait> ended;
  for (std::size_t i = 0; i < fence_waits_.size();) {
    if (!f(fence_waits_[i])) {
      ++i;
      continue;
    }
    ended.push_back(std::move(fence_waits_[i]));
    fence_waits_.erase(fence_waits_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (FenceWait& wait : ended) wait.done(error);
}

void Server::OnPathGone(const proto::ConnReq& path) {
  EndFenceWaits(0, [&path](const FenceWait& wait) {
    return wait.paths_uuid == path.paths_uuid && wait.target == path.sess_uuid;
  });
}

void Server::OnCarrierBroken(const proto::ConnReq& path) {
  EndFenceWaits(-ECONNABORTED, [&path](const FenceWait& wait) {
    return wait.paths_uuid == path.paths_uuid && wait.carrier == path.sess_uuid;
  });
}

void Server::RefuseLateFences() {
  const std::int64_t now_ns = reactor().now_ns();
  EndFenceWaits(-EBUSY, [now_ns](const FenceWait& wait) { return wait.deadline_ns <= now_ns; });
  std::int64_t next_ns = -1;
  for (const FenceWait& wait : fence_waits_) {
    next_ns = next_ns < 0 ? wait.deadline_ns : std::min(next_ns, wait.deadline_ns);
  }
  if (next_ns >= 0) fence_timer_.ArmAt(next_ns);
}

}  // namespace ibnbd::rtrs
