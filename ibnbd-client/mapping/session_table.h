// SPDX-License-Identifier: Apache-2.0
// The sessions of this process: one per server and name, shared by the volumes that are mapped from
// it, with a queue on each loop.  Opened by the first volume, closed after the last.  Thread-safe;
// calls may wait for a server, but only those that want the same one.
#pragma once

#include <ibnbd/ibnbd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/socket_address.h"
#include "ibnbd-client/devices/device_loops.h"

namespace ibnbd::client {

// How a session reaches its server.
struct Ways {
  std::string source;  // The local address to come from, on the way that the URI says; "": any.
  std::string more;    // Other ways, "[SRC@]DST[:PORT]", separated by spaces.
};

class SessionTable {
 public:
  // `client_id`: of a client that goes on with its devices after a restart, see ibnbd.h; 0: of one
  // that does not.  `name` "": made from the host name and the client id, so that it stays.
  // `memory`: as ibnbd_session_options has it, or "".  `loops` outlives the table.
  SessionTable(DeviceLoops& loops, std::string name, std::uint64_t client_id, std::string memory);
  ~SessionTable();  // Requires: all were released.
  SessionTable(const SessionTable&) = delete;
  SessionTable& operator=(const SessionTable&) = delete;

  // The session of that name ("": the table's) with the server of `uri`, whose export is ignored.
  // Waits for it at most `timeout_ms`; `retry`: also for a server that is not there yet.
  // Release() it.
  // A session that is there gets the ways that it has not been given yet.
  absl::StatusOr<ibnbd_session*> Acquire(const Uri& uri, const std::string& name, const Ways& ways,
                                         std::uint32_t timeout_ms, bool retry);
  void Release(const Uri& uri, const std::string& name);
  [[nodiscard]] std::uint64_t client_id() const { return client_id_; }

 private:
  struct Entry {
    absl::Mutex opening;  // Held while it is opened or closed.
    ibnbd_session* session ABSL_GUARDED_BY(opening) = nullptr;
    std::set<std::string> paths ABSL_GUARDED_BY(opening);  // That it was given.
    int users ABSL_GUARDED_BY(opening) = 0;
  };
  static absl::Status AddPaths(Entry& entry, const std::set<std::string>& paths)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.opening);
  std::shared_ptr<Entry> EntryOf(const Uri& uri, const std::string& name);
  absl::StatusOr<ibnbd_session*> Open(const std::string& server, const std::string& name,
                                      const Ways& ways, std::uint32_t timeout_ms, bool retry);

  DeviceLoops& loops_;
  const std::string name_;
  const std::uint64_t client_id_;
  const std::string memory_;
  absl::Mutex mutex_;
  // By server and name.
  std::map<std::pair<std::string, std::string>, std::shared_ptr<Entry>> entries_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace ibnbd::client
