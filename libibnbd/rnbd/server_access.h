// SPDX-License-Identifier: Apache-2.0
// Who may open an export how (proto/README.md, access modes): readers always, one writer, and a
// second one that is migrating, or that comes back to one that is.  A new one that wants the
// volume for itself is kept out while anybody writes, migrating or not: after a migration the guest
// may keep the mode for as long as it lives.  The server enforces what was opened on every IO.
#pragma once

#include <cerrno>

#include "proto/rnbd.h"
#include "rnbd/server.h"

namespace ibnbd::rnbd {

[[nodiscard]] inline bool IsWriter(proto::AccessMode mode) {
  return mode != proto::AccessMode::kReadOnly;
}

// 0: granted and counted.  Otherwise a negative errno.  `comes_back`: it has had the volume open
// together with the one that migrates (WriterRecord::WasHere()).
[[nodiscard]] inline int TakeAccess(Export& exported, proto::AccessMode mode, bool comes_back) {
  if (!IsWriter(mode)) {
    ++exported.reader_count;
    return 0;
  }
  if (exported.read_only || exported.backend->geometry().read_only) return -EROFS;
  const bool migrates = mode == proto::AccessMode::kMigration;
  const bool beside = migrates || (comes_back && exported.migrating_count > 0);
  if (exported.writer_count >= (beside ? 2u : 1u)) return -EPERM;
  ++exported.writer_count;
  exported.migrating_count += migrates ? 1 : 0;
  return 0;
}

inline void ReturnAccess(Export& exported, proto::AccessMode mode) {
  --(IsWriter(mode) ? exported.writer_count : exported.reader_count);
  exported.migrating_count -= mode == proto::AccessMode::kMigration ? 1 : 0;
}

}  // namespace ibnbd::rnbd
