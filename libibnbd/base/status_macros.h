// SPDX-License-Identifier: Apache-2.0
// Early returns for absl::Status, which this Abseil (20220623) lacks, and the one way to turn an
// errno into a Status whose text names what was attempted.
#pragma once

#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace ibnbd {

// "attach /dev/sdb: open: Permission denied".  `error` is a positive or a negative errno.  The
// errno stays readable: ErrnoFromStatus() gives it back.
absl::Status ErrnoStatus(int error, absl::string_view what);

// A negative errno for any Status: the one it was made from, or the nearest match of its code.
int ErrnoFromStatus(const absl::Status& status);

// The same Status with "what: " before its text; the errno is kept.
absl::Status Annotate(const absl::Status& status, absl::string_view what);

}  // namespace ibnbd

#define IBNBD_CONCAT_INNER(a, b) a##b
#define IBNBD_CONCAT(a, b) IBNBD_CONCAT_INNER(a, b)
#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)
#define ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                             \
  if (!result.ok()) return std::move(result).status();    \
  target = *std::move(result)
#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_IMPL(IBNBD_CONCAT(status_or_, __LINE__), target, expression)
