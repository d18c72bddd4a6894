// SPDX-License-Identifier: Apache-2.0
// See control_server.h.
#include "ibnbd-client/daemon/control_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/daemon/control_socket.h"

namespace ibnbd::client {
namespace {

// For a client to say what it wants, and to take the answer.
constexpr absl::Duration kTalkTime = absl::Seconds(5);

// One that only says no more is still there.
bool HasLeft(int client) {
  pollfd one{.fd = client, .events = 0, .revents = 0};
  return ::poll(&one, 1, 0) > 0 && (one.revents & (POLLHUP | POLLERR)) != 0;
}

bool IsMapping(Command command) { return command == Command::kMap || command == Command::kRemap; }

std::string Line(const Json& answer) {
  return answer.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void Say(int client, const std::string& answer) {
  // A client that has left does not want its answer.
  (void)WriteAll(client, answer, absl::Now() + kTalkTime, "control answer");
}

}  // namespace

ControlServer::ControlServer(UniqueFd listening, DeviceTable& table)
    : listening_(std::move(listening)), stop_(::eventfd(0, EFD_CLOEXEC)), table_(table) {
  CHECK(stop_.valid());
}

ControlServer::~ControlServer() { CHECK(!acceptor_.joinable()); }

std::unique_ptr<ControlServer> ControlServer::Start(UniqueFd listening, DeviceTable& table) {
  std::unique_ptr<ControlServer> server(new ControlServer(std::move(listening), table));
  server->acceptor_ = std::thread([server = server.get()] { server->Accept(); });
  return server;
}

void ControlServer::Accept() {
  const auto has_room = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return workers_ < kWorkersMax || stopping_;
  };
  while (true) {
    pollfd both[2] = {{.fd = listening_.get(), .events = POLLIN, .revents = 0},
                      {.fd = stop_.get(), .events = POLLIN, .revents = 0}};
    if (::poll(both, 2, -1) < 0 && errno != EINTR) CHECK(false);
    if (both[1].revents != 0) return;
    if (both[0].revents == 0) continue;
    UniqueFd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!client.valid()) {
      if (errno == EINTR || errno == EAGAIN || errno == ECONNABORTED) continue;
      LOG_ERROR("accept on the control socket: ", std::strerror(errno));
      absl::SleepFor(absl::Milliseconds(100));  // Out of descriptors, most likely.
      continue;
    }
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&has_room));
      if (stopping_) return;
      ++workers_;
    }
    std::thread([this, client = std::move(client)]() mutable {
      Serve(std::move(client));
    }).detach();
  }
}

void ControlServer::Serve(UniqueFd client) {
  const auto line =
      ReadLine(client.get(), kRequestSizeMax, absl::Now() + kTalkTime, "control request");
  const auto request = line.ok() ? ParseRequest(*line) : line.status();
  if (!request.ok()) {
    Say(client.get(), ErrorAnswer(request.status()));
  } else if (IsMapping(request->command)) {
    ServeMapping({std::move(client), *request});
  } else {
    Answer({std::move(client), *request});
  }
  client.Reset();
  absl::MutexLock lock(&mutex_);
  --workers_;
}

void ControlServer::ServeMapping(Asker asker) {
  bool refused = false;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    if (mapping_ < kMappingMax) {
      ++mapping_;
    } else if (parked_.size() < kParkedMax) {
      parked_.push_back(std::move(asker));
      return;
    } else {
      refused = true;
    }
  }
  if (refused) {
    Say(asker.client.get(), ErrorAnswer(absl::ResourceExhaustedError(
                                absl::StrCat("map: ", kParkedMax, " others wait for their turn"))));
    return;
  }
  while (true) {
    if (!HasLeft(asker.client.get())) Answer(asker);
    absl::MutexLock lock(&mutex_);
    if (parked_.empty()) {
      --mapping_;
      return;
    }
    asker = std::move(parked_.front());
    parked_.pop_front();
  }
}

void ControlServer::Answer(const Asker& asker) {
  const auto answer = Run(asker);
  Say(asker.client.get(), answer.ok() ? Line(*answer) : ErrorAnswer(answer.status()));
}

absl::StatusOr<Json> ControlServer::Map(const Asker& asker) {
  MapRequest map = asker.request.map;
  map.survives_us = true;
  ASSIGN_OR_RETURN(const DeviceReport report,
                   table_.Map(map, asker.request.if_needed,
                              [client = asker.client.get()] { return !HasLeft(client); }));
  return Json{{"device", ToJson(report)}};
}

absl::StatusOr<Json> ControlServer::Run(const Asker& asker) {
  const ControlRequest& request = asker.request;
  const auto with_device = [](const absl::StatusOr<DeviceReport>& report) -> absl::StatusOr<Json> {
    if (!report.ok()) return report.status();
    return Json{{"device", ToJson(*report)}};
  };
  switch (request.command) {
    case Command::kMap:
      return Map(asker);
    case Command::kUnmap:
      RETURN_IF_ERROR(table_.Unmap(request.device, request.timeout_ms, request.force));
      return Json::object();
    case Command::kRemap:
      return with_device(table_.Remap(request.device, request.timeout_ms, request.force));
    case Command::kResize:
      return with_device(table_.Refresh(request.device, request.timeout_ms));
    case Command::kSet:
      return Set(request);
    case Command::kSessions:
    case Command::kAddPath:
    case Command::kRemovePath:
    case Command::kWeighPath:
      return RunOnSession(request);
    case Command::kIos: {
      ASSIGN_OR_RETURN(const auto ios, table_.ListIos(request.device, request.timeout_ms));
      Json list = Json::array();
      for (const ibnbd_io_info& io : ios) list.push_back(ToJson(io));
      return Json{{"ios", list}};
    }
    case Command::kShow:
      return with_device(table_.Show(request.device));
    case Command::kList:
      break;
  }
  Json devices = Json::array();
  for (const DeviceReport& report : table_.List()) devices.push_back(ToJson(report));
  return Json{{"devices", devices}};
}

absl::StatusOr<Json> ControlServer::RunOnSession(const ControlRequest& request) {
  if (request.command == Command::kSessions && request.device.empty()) {
    Json sessions = Json::array();
    for (const SessionReport& report : table_.ListSessions()) sessions.push_back(ToJson(report));
    return Json{{"sessions", sessions}};
  }
  const auto change = [&request](SessionTable& sessions, const SessionKey& key) {
    switch (request.command) {
      case Command::kAddPath:
        return sessions.AddPath(key, request.path, request.weight.value_or(kPathWeightDefault),
                                request.wait, request.timeout_ms);
      case Command::kRemovePath:
        return sessions.RemovePath(key, request.path, request.force, request.timeout_ms);
      case Command::kWeighPath:
        return sessions.SetPathWeight(key, request.path, *request.weight);
      default:
        return sessions.Set(key, {{}, request.policy, request.dead_after_ms});
    }
  };
  ASSIGN_OR_RETURN(const SessionReport report, request.command == Command::kSessions
                                                   ? table_.ShowSession(request.device)
                                                   : table_.ChangeSession(request.device, change));
  return Json{{"session", ToJson(report)}};
}

// The loss policy is the device's, the rest its session's.
absl::StatusOr<Json> ControlServer::Set(const ControlRequest& request) {
  Json answer = Json::object();
  if (request.fail_after_ms.has_value()) {
    ASSIGN_OR_RETURN(
        const DeviceReport report,
        table_.SetFailAfter(request.device, *request.fail_after_ms, request.timeout_ms));
    answer["device"] = ToJson(report);
  }
  if (!request.policy.has_value() && !request.dead_after_ms.has_value()) return answer;
  ASSIGN_OR_RETURN(const Json session, RunOnSession(request));
  answer.update(session);
  return answer;
}

bool ControlServer::Stop(std::int64_t timeout_ms) {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  const std::uint64_t one = 1;
  CHECK(::write(stop_.get(), &one, sizeof(one)) == sizeof(one));
  if (acceptor_.joinable()) acceptor_.join();
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return workers_ == 0; };
  absl::MutexLock lock(&mutex_);
  parked_.clear();
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), absl::Milliseconds(timeout_ms));
}

}  // namespace ibnbd::client
