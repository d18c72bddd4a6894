// SPDX-License-Identifier: Apache-2.0
// What a service (rnbd/) implements to be reached over RTRS sessions: RTRS knows sessions, paths,
// connections, chunks and requests, and nothing of what a user message means.
//
//   V1  Every request handed to OnRequest() is completed exactly once, by ServerRequest::Complete()
//   on the
//       thread of its lane; also if the path broke meanwhile (it is then *abandoned*: no answer
//       goes out, and the chunk's memory stays until then).
//   V2  A ServerPathService is destroyed after all requests of the path have been completed; a
//       ServerSessionService after all its paths.  So when a session's destructor runs, nothing of
//       it executes any more.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "base/intrusive_list.h"
#include "proto/rtrs.h"

namespace ibnbd::rtrs {

class ServerLane;

// One request, bound to one chunk: free, executing (with the service), or responding (waits for a
// send credit).  Made once per chunk of a path; a service derives from it to keep its own state
// there.
class ServerRequest : public ListHook {
 public:
  ServerRequest() = default;
  virtual ~ServerRequest() = default;

  // --- While executing, on the lane's thread. ---
  // The user message, copied out of the chunk: the peer cannot change it any more.
  [[nodiscard]] std::span<const std::byte> message() const { return wire_.user_message(); }
  // The data area: what the client wrote, or room for what it wants to read.  It stays writable
  // for the peer: use its contents, never decide by them twice.
  [[nodiscard]] std::span<std::byte> data() const { return data_; }
  [[nodiscard]] bool is_read() const { return wire_.is_read; }
  [[nodiscard]] std::uint32_t chunk_id() const { return chunk_id_; }
  // Slot in the IoRing of the lane's reactor that covers data(), or -1.
  [[nodiscard]] int registered_buffer() const { return registered_buffer_; }
  [[nodiscard]] ServerLane& lane() const { return *lane_; }
  // 0 or a negative errno.  A read that succeeds sends all of data() to the client.
  void Complete(int error);

 private:
  friend class ServerLane;
  friend class ChunkPool;
  friend class ChunkFence;
  proto::IoRequest wire_{};
  std::span<std::byte> data_;
  ServerLane* lane_ = nullptr;
  std::uint32_t chunk_id_ = 0;
  int registered_buffer_ = -1;
  int error_ = 0;
  std::uintptr_t next_waiter_ = 0;  // ChunkFence's.
  // The one atomic read-modify-write per IO: a peer may name any chunk on any connection of the
  // path, and two lanes must never execute one chunk.  Uncontended unless the peer misbehaves.
  enum class Turn : std::uint8_t {
    kFree,      // Whose lane gets the next request takes it.
    kTaken,     // By lane_.
    kAnswered,  // By lane_, which has not yet seen its answer land (keys per IO only).
    kWanted     // The same, and another lane waits until it has.
  };
  std::atomic<Turn> turn_{Turn::kFree};
  // Keys per IO; lane_'s.
  std::uint32_t unsettled_ = 0;  // Answers that have not yet landed.
  ServerLane* wanted_by_ = nullptr;
  std::uint32_t wanted_off_ = 0;
};

// The service's part of one lane; on the lane's thread.
class ServerLaneService {
 public:
  virtual ~ServerLaneService() = default;
  virtual void OnRequest(ServerRequest& request) = 0;
};

// The service's part of one path; made and destroyed on the control thread.
class ServerPathService {
 public:
  virtual ~ServerPathService() = default;  // V2.
  virtual std::unique_ptr<ServerRequest> CreateRequest() = 0;
  // Of connection `cid`, from the time the path has come up until all its requests are completed.
  virtual ServerLaneService& lane(std::uint32_t cid) = 0;
};

// What a path does for the service: ends another path of its session.  Control thread.
class PathFencer {
 public:
  using Done = absl::AnyInvocable<void(int error)>;
  // The client has given the path `sess_uuid` up in its round `recon_cnt`.  `done` gets 0 when
  // nothing of that round, or of one before, executes or can execute: at once if it is gone
  // already.  -EBUSY: it takes too long; -EINVAL: it is this path; -ECONNABORTED: this path broke.
  // Exactly once; maybe from inside.
  virtual void FencePath(const proto::Uuid& sess_uuid, proto::le16 recon_cnt, Done done) = 0;

 protected:
  ~PathFencer() = default;
};

struct ServerPathInfo {
  std::vector<std::uint32_t> reactors;  // Per connection: which reactor serves it.
  bool peer_is_ibnbd = false;           // Minor version >= 1.
  PathFencer* fencer = nullptr;         // Minor version >= 2: this path's, as long as it lives.
  std::string peer;                     // "10.0.0.1:4711".
};

// The service's part of one session; control thread.
class ServerSessionService {
 public:
  virtual ~ServerSessionService() = default;  // V2: the session is gone.
  virtual std::unique_ptr<ServerPathService> OpenPath(const ServerPathInfo& info) = 0;
  [[nodiscard]] virtual std::uint32_t device_count() const = 0;
};

struct ServerSessionInfo {
  std::string name;             // Never empty.
  std::uint64_t client_id = 0;  // Says who it is over restarts of its process; 0: it does not.
  proto::Uuid paths_uuid{};     // Random, the client's; one session's.
};

class ServerService {
 public:
  virtual ~ServerService() = default;
  // A session's first path has introduced itself.  Never null.
  virtual std::unique_ptr<ServerSessionService> OpenSession(const ServerSessionInfo& info) = 0;
};

}  // namespace ibnbd::rtrs
