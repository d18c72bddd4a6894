// SPDX-License-Identifier: Apache-2.0
// One session's open devices: answers SESS_INFO, OPEN, CLOSE and LIST, keeps the access rules, and
// tells the lanes of every path what is open.  Control thread.  OPEN is answered when every lane
// knows the device, CLOSE when no lane executes anything for it any more.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "proto/rnbd.h"
#include "rnbd/server.h"
#include "rnbd/server_exports.h"
#include "rnbd/server_io_lane.h"
#include "rtrs/log_limiter.h"
#include "rtrs/server_service.h"

namespace ibnbd::rnbd {

class ServerSession;

// What all sessions share.
struct ServerContext {
  const ServerOptions* options = nullptr;
  ExportProvider* provider = nullptr;
  OpenExports* exports = nullptr;
  std::vector<Reactor*> reactors;                    // [0]: control.
  std::vector<ReactorCounters>* counters = nullptr;  // By reactor.
  std::vector<ServerSession*> sessions;
  rtrs::LogLimiter log_limiter{20};
};

// The lanes of one path.  Shared by the path and by tasks on their way to its lanes.
struct IoPath {
  std::vector<std::unique_ptr<IoLane>> lanes;  // By cid.
  std::vector<std::uint32_t> reactors;         // By cid.
};

class ServerSession final : public ControlMessageHandler,
                            public std::enable_shared_from_this<ServerSession> {
 public:
  ServerSession(ServerContext& context, const rtrs::ServerSessionInfo& info);

  // The session is gone and nothing of it executes (V2): gives everything back.
  void Close();
  std::shared_ptr<IoPath> AddPath(const rtrs::ServerPathInfo& info);
  void RemovePath(const std::shared_ptr<IoPath>& path);
  void Revoke(const Export& exported);
  [[nodiscard]] std::uint32_t device_count() const {
    return static_cast<std::uint32_t>(devices_.size());
  }

  void OnControlMessage(IoRequest& request, proto::RnbdType type, const ControlPeer& peer) override;

 private:
  struct Device {
    enum class State : std::uint8_t {
      kOpening,  // Waits for the export's queues, or for lanes that have not heard of it.
      kOpen,     // IOs flow.
      kClosing,  // Waits for the end of what executes.
      kRevoked  // Taken away: IOs get -ENOTCONN until the client closes it or opens the name again.
    };
    State state = State::kOpening;
    std::string name;
    proto::AccessMode mode = proto::AccessMode::kReadOnly;
    std::uint16_t known_epoch = 0;       // As the client said when it opened it.
    std::shared_ptr<Export> exported;    // Whose counters hold us; null once they do not.
    bool revoke_pending = false;         // Taken away while it was being opened.
    bool forget = false;                 // Revoked and opened anew: nobody will close this id.
    OpenExport* open = nullptr;          // Null before and after it is used.
    std::uint64_t size_bytes = 0;        // As the lanes know it.
    std::uint64_t sync_errors_told = 0;  // When it was opened.
    std::vector<std::shared_ptr<QueueErrors>> errors;  // By cid, of all paths.
    std::vector<IoRequest*> closers;                   // CLOSE messages to be answered at the end.
  };
  using Devices = std::map<std::uint32_t, Device>;

  int OnSessInfo(IoRequest& request, bool peer_is_ibnbd);
  int OnOpen(IoRequest& request);
  int OnClose(IoRequest& request);
  int OnList(IoRequest& request);
  int OnFencePath(IoRequest& request, rtrs::PathFencer& fencer);
  int Reopen(Devices::iterator device, const proto::Open& open, IoRequest& request);
  int CheckPlace(const Export& exported);
  int CheckWriters(const Export& exported, const proto::Open& open);
  [[nodiscard]] WriterRecord::Opening OpeningOf(proto::AccessMode mode, std::uint16_t epoch) const;
  int StartOpen(const proto::Open& open, IoRequest& request);
  int EnterWriters(const Device& device);
  int TakeOpenAccess(Export& exported, const proto::Open& open);
  void OnExportReady(std::uint32_t id, IoRequest& request, absl::StatusOr<OpenExport*> open);
  void FinishOpen(std::uint32_t id, IoRequest& request);
  [[nodiscard]] std::uint32_t NewId();
  void ForgetRevoked(const std::string& name);
  void StartRemove(std::uint32_t id, Device& device);
  void OnRemoved(std::uint32_t id, bool revoked);
  void GiveBack(Device& device);
  void LogClient(const std::string& line);  // What clients cause: rate-limited.
  [[nodiscard]] LaneDevice MakeLaneDevice(const Device& device, std::uint32_t reactor) const;
  static void MakeErrors(Device& device, std::size_t cid_count);
  void InstallEverywhere(std::uint32_t id, absl::AnyInvocable<void()> done);
  // Runs `each(lane, cid, reactor, ack)` on every lane's thread, then `done` on the control thread
  // when all have called `ack`.
  template <class F>
  void OnEveryLane(F each, absl::AnyInvocable<void()> done);

  ServerContext& context_;
  const std::string name_;
  const std::uint64_t writer_;         // WriterOf() us.
  const std::uint16_t begins_at_ = 0;  // WriterRecord::Opening's.
  bool peer_is_ibnbd_ = false;         // As of its first path; all are the same client's.
  bool closed_ = false;
  Devices devices_;  // By id.
  std::uint32_t next_id_ = 0;
  std::vector<std::shared_ptr<IoPath>> paths_;
};

// What rtrs/ holds of a session.
std::unique_ptr<rtrs::ServerSessionService> OpenServerSession(ServerContext& context,
                                                              const rtrs::ServerSessionInfo& info);

}  // namespace ibnbd::rnbd
