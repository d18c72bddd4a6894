// SPDX-License-Identifier: Apache-2.0
// What the servers of ibnbd-hostile-server do that no server may do, one deed each, and how a
// client must end that meets it.
#pragma once

#include <functional>
#include <vector>

#include "tests/support/scripted_server.h"

namespace ibnbd {

enum class End {
  kRefused,   // No session.
  kRecovers,  // The path is lost, the next one is honest, all IO succeeds.
  kIgnored,   // All IO succeeds, and the path is not lost.
  kFails,     // A session, but then errors.
  kNothing,   // IO waits until it is cancelled, or fails because the server was away for too long.
  kCancelled  // IO waits until it is cancelled: the server lives, and nothing says that it never
              // will.
};

struct Deed {
  const char* what;
  End end;
  const char* text;  // Of the errors or the log.
  std::function<void(rnbd::ScriptedServer&)> arm;
};

// `lent`: what another client of this process has lent to another server by the time that it is
// looked at; outlives the deeds.
std::vector<Deed> AllDeeds(const fabric::RemoteAddress& lent);

}  // namespace ibnbd
