// SPDX-License-Identifier: Apache-2.0
// Where the paths of a session lead: their names are looked up, and the fabric is told, which then
// has what it needs for them (an RDMA device, and all memory registered with it).  Both may take
// their time, and neither can be interrupted: each search of a name runs on a thread of its own,
// and a look-up of a name that takes too long is left to itself.  Any thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fabric/fabric.h"
#include "reactor/reactor.h"
#include "rtrs/client_session.h"

namespace ibnbd::capi {

// "[SRC@]DST[:PORT]" towards the server of the session's URI, in one spelling; nothing is looked
// up: numbers only are known then, and names are left to a PathFinder.
absl::StatusOr<rtrs::PathOptions> ParsePath(absl::string_view text, std::uint16_t default_port);

class PathFinder final : public rtrs::PathFinder {
 public:
  explicit PathFinder(fabric::Fabric& fabric);
  ~PathFinder();  // Close().
  PathFinder(const PathFinder&) = delete;
  PathFinder& operator=(const PathFinder&) = delete;

  // Finds those that can be found, each from what `path.text` says; the others are as they were,
  // without an address.  Waits for names at most `timeout_ns`, and not long for the last ones once
  // there is something to begin with.  An error if there is nothing, or if one can never be found.
  absl::Status FindNow(std::vector<rtrs::PathOptions>& paths, std::int64_t timeout_ns);

  // For Find(): where answers go.  Not null until Close().
  void SetControl(Reactor* control);
  void Find(const rtrs::PathOptions& path, DoneFn done) override;
  // Nothing of the session is used when it returns: what tells the fabric just now ends first.
  void Close();

 private:
  struct Shared;  // With the threads that are under way.
  static absl::Status StartThread(std::shared_ptr<Shared> shared, const rtrs::PathOptions& path,
                                  DoneFn deliver);
  static void* RunThread(void* argument);
  const std::shared_ptr<Shared> shared_;
};

}  // namespace ibnbd::capi
