// SPDX-License-Identifier: Apache-2.0
// Who may open an export how (proto/README.md, access modes): readers always, one writer, and a
// second one while either is migrating.  The server enforces what was opened on every IO.
#pragma once

#include <cerrno>

#include "proto/rnbd.h"
#include "rnbd/server.h"

namespace ibnbd::rnbd {

[[nodiscard]] inline bool IsWriter(proto::AccessMode mode) {
  return mode != proto::AccessMode::kReadOnly;
}

// 0: granted and counted.  Otherwise a negative errno.
[[nodiscard]] inline int TakeAccess(Export& exported, proto::AccessMode mode) {
  if (!IsWriter(mode)) {
    ++exported.reader_count;
    return 0;
  }
  if (exported.read_only || exported.backend->geometry().read_only) return -EROFS;
  const std::uint32_t writers_max = mode == proto::AccessMode::kMigration ? 2 : 1;
  if (exported.writer_count >= writers_max) return -EPERM;
  ++exported.writer_count;
  return 0;
}

inline void ReturnAccess(Export& exported, proto::AccessMode mode) {
  --(IsWriter(mode) ? exported.writer_count : exported.reader_count);
}

}  // namespace ibnbd::rnbd
