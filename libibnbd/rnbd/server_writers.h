// SPDX-License-Identifier: Apache-2.0
// Who has had a volume open for writing last.  A client that lost its server holds IOs, and sends
// them again when it is back; if somebody else had the volume open for writing in between, they
// would go over what that one wrote.  So each change of the writer begins a new *epoch*: a client
// is told the number, says it when it opens the volume again, and is refused if it is another one
// by then.  The server refuses, not the client, because being let in begins an epoch: a client that
// only looks, and goes away again, must not take the volume from the one that has it.
//
// Clients that may write at the same time (migration) are in one epoch.  A server that was started
// again does not know who was in it.  It takes the number that the first one says, and believes of
// any other with the same number that it was there together with him, if one of them is migrating:
// others do not come to share a number, but by chance, one time in 65,536.  For that a server draws
// the numbers of what it does not continue: the next one, counted up, might be another's by now.
// One per volume; control thread.
#pragma once

#include <array>
#include <cstdint>

#include "rtrs/server_service.h"

namespace ibnbd::rnbd {

// Which client opens something.  One with a client_id is the same over restarts of its process, any
// other as long as its session lives; never 0.
[[nodiscard]] std::uint64_t WriterOf(const rtrs::ServerSessionInfo& session);

// The number at which an epoch begins that follows no other: random, each session's own.
[[nodiscard]] std::uint16_t EpochDrawnFor(const rtrs::ServerSessionInfo& session);

class WriterRecord {
 public:
  struct Opening {             // For writing.
    std::uint64_t writer = 0;  // WriterOf().
    std::uint16_t epoch = 0;   // The one that it knows; 0: none, it has no old IOs.
    bool migration = false;  // It says that others may write: whose order is somebody else's care.
    bool beside_others = false;   // Somebody else has it open for writing now.
    std::uint16_t begins_at = 1;  // EpochDrawnFor() its session; not 0.
  };

  // 0; -EUCLEAN: somebody else has had it open for writing since.
  [[nodiscard]] int Check(const Opening& opening) const;
  // It knows the epoch, and has been in it: nobody but those beside it has written since.
  [[nodiscard]] bool WasHere(const Opening& opening) const;
  // Before the first write.  Requires: Check() says 0.
  void Enter(const Opening& opening);
  [[nodiscard]] std::uint16_t epoch() const { return epoch_; }  // 0: nobody has had it yet.

 private:
  [[nodiscard]] bool Has(std::uint64_t writer) const;

  std::uint16_t epoch_ = 0;
  bool told_ = false;  // By a client, after a restart: who else was in the epoch is not known.
  bool told_by_migration_ = false;
  // Of this epoch, the latest first; 0: none.  Who falls out at the end is not let in again.
  std::array<std::uint64_t, 4> writers_{};
};

}  // namespace ibnbd::rnbd
