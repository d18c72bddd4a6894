// SPDX-License-Identifier: Apache-2.0
// The paths of a session: added, removed, weighted and shown while it runs.  Any thread of the
// application; what happens inside lambdas given to CallControl() happens on the control thread.
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "capi/control.h"
#include "capi/error.h"
#include "capi/handles.h"
#include "capi/path_finder.h"
#include "capi/session.h"

namespace ibnbd::capi {
namespace {

using rtrs::PathInfo;
using rtrs::PathOptions;
using rtrs::PathPolicyKind;
using rtrs::PathState;

// The address alone, of one as SocketAddress writes it.
std::string WithoutPort(const std::string& address) {
  absl::StatusOr<HostPort> parts = ParseHostPort(address);
  return parts.ok() ? std::move(parts->host) : address;
}

std::uint32_t StateOf(PathState state) {
  switch (state) {
    case PathState::kConnecting:
      return IBNBD_PATH_CONNECTING;
    case PathState::kUp:
      return IBNBD_PATH_UP;
    case PathState::kDraining:
      return IBNBD_PATH_DRAINING;
    case PathState::kBackoff:
      return IBNBD_PATH_PAUSING;
    case PathState::kClosing:
      return IBNBD_PATH_CLOSING;
  }
  return 0;
}

// As configured.
std::string TextOf(const std::string& source, const std::string& server) {
  return absl::StrCat(source.empty() ? "" : absl::StrCat(WithoutPort(source), "@"), server);
}

// As configured, too, for as long as it is not known where that is.
std::string TextOf(const PathInfo& path) {
  return path.server.empty() ? path.text : TextOf(path.source, path.server);
}

absl::Status CheckIsNew(rtrs::ClientSession& session, const PathOptions& options) {
  const std::string text = IsKnown(options) ? PathText(options) : options.text;
  for (const PathInfo& other : session.paths()) {
    if (TextOf(other) != text && other.text != options.text) continue;
    return absl::AlreadyExistsError(
        absl::StrCat("path ", TextOf(other), " is there already: its number is ", other.id));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::uint32_t> AddPath(rtrs::ClientSession& session, const PathOptions& options) {
  RETURN_IF_ERROR(CheckIsNew(session, options));
  return session.AddPath(options);
}

struct ibnbd_path_info Fill(const PathInfo& path) {
  struct ibnbd_path_info info = {};
  info.struct_size = sizeof info;
  info.id = path.id;
  info.state = StateOf(path.state);
  info.weight = path.weight;
  info.flags = path.state == PathState::kUp && path.drained_by_policy ? IBNBD_PATH_SLOW : 0;
  info.inflight = path.inflight;
  info.reads = path.reads;
  info.writes = path.writes;
  info.bytes = path.bytes;
  info.lost = path.lost;
  info.reconnects = path.reconnects;
  info.connect_failures = path.connect_failures;
  info.latency_ns = static_cast<std::uint64_t>(path.latency_ns);
  info.heartbeat_rtt_ns = static_cast<std::uint64_t>(path.heartbeat_rtt_ns);
  CopyText(TextOf(path), info.path);
  CopyText(path.addresses, info.address);
  CopyText(path.last_error, info.last_error);
  return info;
}

// The errno that says which of the refusals it is; the text says the rest.
int FailPath(const char* call, const absl::Status& status) {
  const std::string text(status.message());
  if (absl::IsNotFound(status)) return Fail(-ENOENT, "%s: %s", call, text.c_str());
  if (absl::IsFailedPrecondition(status)) return Fail(-EBUSY, "%s: %s", call, text.c_str());
  if (absl::IsAlreadyExists(status)) return Fail(-EEXIST, "%s: %s", call, text.c_str());
  if (absl::IsResourceExhausted(status)) return Fail(-ENOBUFS, "%s: %s", call, text.c_str());
  return Fail(call, status);
}

}  // namespace

std::string PathText(const PathOptions& path) {
  return TextOf(path.source ? path.source->ToString() : "", path.server.ToString());
}

}  // namespace ibnbd::capi

using ibnbd::kNsPerMs;
using ibnbd::capi::CallControl;
using ibnbd::capi::CallControlForStatus;
using ibnbd::capi::CheckSession;
using ibnbd::capi::Fail;
using ibnbd::capi::FailPath;
using ibnbd::capi::kLocalAnswerNs;
using ibnbd::capi::Succeed;

int ibnbd_session_add_path(ibnbd_session* session, const char* path, uint32_t weight,
                           uint32_t* id) {
  constexpr char kCall[] = "ibnbd_session_add_path";
  constexpr std::int64_t kFindNs = 2 * ibnbd::kNsPerSecond;
  if (const int error = CheckSession(kCall, session)) return error;
  if (path == nullptr) return Fail(-EINVAL, "%s: the path is NULL", kCall);
  auto options = ibnbd::capi::ParsePath(path, session->port);
  if (!options.ok()) return Fail(kCall, options.status());
  const absl::Status is_new =
      CallControlForStatus(*session, kLocalAnswerNs, [session, wanted = *options](auto done) {
        done(ibnbd::capi::CheckIsNew(session->client->session(), wanted));
      });
  if (!is_new.ok()) return FailPath(kCall, is_new);
  // Just now, if it can be, so that another name of one that is there is refused; or later.
  std::vector<ibnbd::rtrs::PathOptions> found = {*options};
  (void)session->finder->FindNow(found, kFindNs);
  options = found.front();
  options->weight = weight;
  // By value: it may run after we have given up.  Then nobody knows the path, and it goes again.
  auto added = CallControl<std::uint32_t>(
      *session, kLocalAnswerNs,
      [session, wanted = *options](auto done) {
        done(ibnbd::capi::AddPath(session->client->session(), wanted));
      },
      [session](const absl::StatusOr<std::uint32_t>& late) {
        if (!late.ok()) return;
        session->client->session().RemovePath(*late, [](const absl::Status&) {});
      });
  if (!added.ok()) return FailPath(kCall, added.status());
  if (id != nullptr) *id = *added;
  return Succeed();
}

int ibnbd_session_remove_path(ibnbd_session* session, uint32_t id, uint32_t timeout_ms) {
  constexpr char kCall[] = "ibnbd_session_remove_path";
  if (const int error = CheckSession(kCall, session)) return error;
  const absl::Status removed = CallControlForStatus(
      *session, timeout_ms * kNsPerMs,
      [session, id](auto done) { session->client->session().RemovePath(id, std::move(done)); });
  return removed.ok() ? Succeed() : FailPath(kCall, removed);
}

int ibnbd_session_set_path_weight(ibnbd_session* session, uint32_t id, uint32_t weight) {
  constexpr char kCall[] = "ibnbd_session_set_path_weight";
  if (const int error = CheckSession(kCall, session)) return error;
  const absl::Status set =
      CallControlForStatus(*session, kLocalAnswerNs, [session, id, weight](auto done) {
        done(session->client->session().SetPathWeight(id, weight));
      });
  return set.ok() ? Succeed() : FailPath(kCall, set);
}

int ibnbd_session_set_policy(ibnbd_session* session, uint32_t policy) {
  constexpr char kCall[] = "ibnbd_session_set_policy";
  using Kind = ibnbd::rtrs::PathPolicyKind;
  static_assert(static_cast<int>(Kind::kAdaptive) == IBNBD_POLICY_ADAPTIVE &&
                static_cast<int>(Kind::kRoundRobin) == IBNBD_POLICY_ROUND_ROBIN &&
                static_cast<int>(Kind::kMinInflight) == IBNBD_POLICY_MIN_INFLIGHT &&
                static_cast<int>(Kind::kMinLatency) == IBNBD_POLICY_MIN_LATENCY);
  if (const int error = CheckSession(kCall, session)) return error;
  if (policy > IBNBD_POLICY_MIN_LATENCY) {
    return Fail(-EINVAL, "%s: unknown policy %u", kCall, policy);
  }
  session->control->Post(
      [session, policy] { session->client->session().SetPolicy(static_cast<Kind>(policy)); });
  return Succeed();
}

int ibnbd_session_get_path_info(ibnbd_session* session, uint32_t index,
                                struct ibnbd_path_info* out) {
  constexpr char kCall[] = "ibnbd_session_get_path_info";
  if (const int error = CheckSession(kCall, session)) return error;
  if (const int error = ibnbd::capi::CheckInfo(kCall, out)) return error;
  auto info =
      CallControl<struct ibnbd_path_info>(*session, kLocalAnswerNs, [session, index](auto done) {
        const std::vector<ibnbd::rtrs::PathInfo> paths = session->client->session().paths();
        if (index >= paths.size()) {
          return done(absl::NotFoundError(absl::StrCat("there are ", paths.size(), " paths")));
        }
        done(ibnbd::capi::Fill(paths[index]));
      });
  if (!info.ok()) return FailPath(kCall, info.status());
  *out = *info;
  return Succeed();
}
