// SPDX-License-Identifier: Apache-2.0
// The sessions of this process: one per server and name, shared by the volumes that are mapped from
// it, with a queue on each loop.  Opened by the first volume, closed after the last.  What a
// session was told outlives it, until Forget(): a volume that is mapped again, and the next
// process, find its paths.  Thread-safe; calls may wait for a server, but only those that want the
// same one.
#pragma once

#include <ibnbd/ibnbd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ibnbd-client/devices/device_loops.h"
#include "ibnbd-client/mapping/session_settings.h"

namespace ibnbd::client {

// When somebody who wants a session is content.
enum class SessionHaste {
  kFirstTry,  // The server has answered, or refused.
  kRetry,     // It is there: one that is not there yet is waited for.
  kNone,      // It may come when it likes.
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

  // What a session was told with a volume, for the case that it cannot be mapped after all.
  struct Told {
    std::uint64_t by = 0;
    bool begun = false;  // Nothing had been told before.
    std::uint32_t policy_before = 0, dead_after_ms_before = 0;
  };
  // The session of that key.  Waits for it at most `timeout_ms`, but with kNone only for others who
  // open it just now; what they are told by the server, who waited for them takes for an answer to
  // the same question.  One that is there is told what it has not been told yet.  Release() it, or
  // Abandon() it, which takes back what nobody else has wished meanwhile.
  absl::StatusOr<ibnbd_session*> Acquire(const SessionKey& key, const SessionWishes& wishes,
                                         std::uint32_t timeout_ms, SessionHaste haste, Told* told);
  void Release(const SessionKey& key);
  void Abandon(const SessionKey& key, const Told& told);

  // What sessions were told: of a former process; of these, to be written down; of one that nobody
  // will want again.
  void Restore(const std::vector<SessionRecord>& records);
  [[nodiscard]] std::vector<SessionRecord> RecordsOf(const std::vector<SessionKey>& keys) const;
  void Forget(const SessionKey& key);

  // Below: commands about a session that is open, or will be.
  [[nodiscard]] SessionReport Report(const SessionKey& key);
  // `wait`: until it is up, at most `timeout_ms`; if that fails it is taken away again.
  absl::Status AddPath(const SessionKey& key, const std::string& path, std::uint32_t weight,
                       bool wait, std::uint32_t timeout_ms);
  // `path`: as FindPath() has it.  `force`: even if no other one is up.
  absl::Status RemovePath(const SessionKey& key, const std::string& path, bool force,
                          std::uint32_t timeout_ms);
  absl::Status SetPathWeight(const SessionKey& key, const std::string& path, std::uint32_t weight);
  // Policy and patience.
  absl::Status Set(const SessionKey& key, const SessionWishes& wishes);

  // For a watchdog: asks every session's thread for a sign of life; true if all have answered the
  // question before.  Never waits.
  [[nodiscard]] bool AllAlive();
  [[nodiscard]] std::string NameOf(const SessionKey& key) const;  // As the server knows it.
  [[nodiscard]] std::uint64_t client_id() const { return client_id_; }

 private:
  // All under mutex_.
  struct Entry {
    bool taken = false;  // Somebody has his Turn: he opens, closes or tells it.
    // Changed in a Turn only, the session and the last of its users.  users > 0: it will not be
    // closed.
    ibnbd_session* session = nullptr;
    int users = 0;
    // Of the last kFirstTry that failed.
    struct {
      std::uint64_t number = 0;
      Ways ways;
      std::uint32_t timeout_ms = 0;
      absl::Status why;
    } failure;
  };
  class Turn;
  using EntryPtr = std::shared_ptr<Entry>;
  using SettingsFn = std::function<void(SessionSettings&)>;

  EntryPtr EntryOf(const SessionKey& key);
  // For the time of a call; null: it is not open.  Release() it.
  ibnbd_session* Pin(const SessionKey& key);
  // In a Turn: one user less; the last one closes the session.
  void Leave(const SessionKey& key, Entry& entry);
  // Runs `live` with the session; with one that is not open, `settled` while nobody opens it.
  absl::Status WithSession(const SessionKey& key,
                           const std::function<absl::Status(ibnbd_session*)>& live,
                           const std::function<absl::Status()>& settled);
  void Change(const SessionKey& key, const SettingsFn& change);  // If there are any.
  void ForgetPath(const SessionKey& key, std::uint32_t id);      // Of an open session.
  void ChangeSettled(const SessionKey& key, const SettingsFn& change);
  [[nodiscard]] SessionReport ReportOf(const SessionKey& key, ibnbd_session* session) const;
  absl::StatusOr<ibnbd_session*> Open(const SessionKey& key, const SessionWishes& wishes,
                                      std::uint32_t timeout_ms, SessionHaste haste, Told* told);
  void TakeBack(const SessionKey& key, const Told& told, Entry& entry);  // In a Turn.
  // Names may lead where other paths do: the first of them stays.
  static void DropTwins(ibnbd_session* session, SessionSettings* settings);
  // Of a session that was forgotten, while a command kept it open, and is wanted again.
  void Remember(const SessionKey& key, ibnbd_session* session);
  absl::Status Tell(const SessionKey& key, ibnbd_session* session, const SessionWishes& wishes,
                    Told* told);
  void KeepPath(const SessionKey& key, ibnbd_session* session, const std::string& path);
  absl::Status AddLivePath(const SessionKey& key, ibnbd_session* session, const std::string& path,
                           std::uint32_t weight, std::uint32_t wait_ms, std::uint64_t told_by);

  DeviceLoops& loops_;
  const std::string name_;
  const std::uint64_t client_id_;
  const std::string memory_;
  std::atomic<std::uint64_t> last_told_{0};
  mutable absl::Mutex mutex_;
  std::map<SessionKey, EntryPtr> entries_ ABSL_GUARDED_BY(mutex_);  // They stay: they are few.
  std::map<SessionKey, SessionSettings> settings_ ABSL_GUARDED_BY(mutex_);
};

// One at a time has it, for the time of the object.
class SessionTable::Turn {
 public:
  Turn(SessionTable& table, Entry& entry, absl::Duration patience = absl::InfiniteDuration());
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  [[nodiscard]] bool is_ours() const { return ours_; }  // False: `patience` ended first.
  // How the try ended that was waited for, if it went these ways, and waited as long as there is
  // time left.
  [[nodiscard]] absl::Status FailureOf(const Ways& ways, std::uint32_t left_ms) const;

 private:
  SessionTable& table_;
  Entry& entry_;
  std::uint64_t failures_before_ = 0;
  bool ours_ = false;
};

}  // namespace ibnbd::client
