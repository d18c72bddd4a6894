// SPDX-License-Identifier: Apache-2.0
// Volumes that need no export line: a name is looked up under a directory, which may depend on the
// session ("/srv/volumes/%SESSNAME%").  Both names come from the peer, so the kernel resolves them
// and lets nobody out: openat2() with RESOLVE_BENEATH.  Control thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"
#include "ibnbd-server/backends/volume.h"

namespace ibnbd {

class SearchPath {
 public:
  // `pattern` is absolute; %SESSNAME%, if it is there, is a whole component of it.
  static absl::StatusOr<SearchPath> Parse(absl::string_view pattern);

  // Which file a name stands for, without opening it: one volume has one identity, whatever link
  // leads to it.
  struct Identity {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    auto operator<=>(const Identity&) const = default;
  };
  // kNotFound if there is no such file, kInvalidArgument or kPermissionDenied for names that lead
  // out.
  [[nodiscard]] absl::StatusOr<Identity> Find(absl::string_view session_name,
                                              absl::string_view name) const;
  [[nodiscard]] absl::StatusOr<std::unique_ptr<Volume>> Open(absl::string_view session_name,
                                                             absl::string_view name,
                                                             const VolumeOptions& options) const;

 private:
  [[nodiscard]] absl::StatusOr<UniqueFd> OpenRoot(absl::string_view session_name) const;

  std::string prefix_;  // The directory before the token; all of it without one.
  std::string suffix_;  // What follows the token, without slashes around it.
  bool per_session_ = false;
};

}  // namespace ibnbd
