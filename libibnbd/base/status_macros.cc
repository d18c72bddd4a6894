// SPDX-License-Identifier: Apache-2.0
#include "base/status_macros.h"

#include <cerrno>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace ibnbd {
namespace {
constexpr char kErrnoUrl[] = "ibnbd/errno";
}  // namespace

absl::Status ErrnoStatus(int error, absl::string_view what) {
  const int positive = error < 0 ? -error : error;
  char buffer[128];
  const char* text = strerror_r(positive, buffer, sizeof buffer);  // GNU variant: thread-safe.
  absl::Status status(absl::ErrnoToStatusCode(positive), absl::StrCat(what, ": ", text));
  status.SetPayload(kErrnoUrl, absl::Cord(absl::StrCat(positive)));
  return status;
}

int ErrnoFromStatus(const absl::Status& status) {
  if (status.ok()) return 0;
  if (auto payload = status.GetPayload(kErrnoUrl)) {
    int error = 0;
    if (absl::SimpleAtoi(std::string(*payload), &error) && error > 0) return -error;
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return -EINVAL;
    case absl::StatusCode::kNotFound:
      return -ENOENT;
    case absl::StatusCode::kAlreadyExists:
      return -EEXIST;
    case absl::StatusCode::kPermissionDenied:
      return -EPERM;
    case absl::StatusCode::kUnauthenticated:
      return -EACCES;
    case absl::StatusCode::kResourceExhausted:
      return -ENOMEM;
    case absl::StatusCode::kDeadlineExceeded:
      return -ETIMEDOUT;
    case absl::StatusCode::kCancelled:
      return -ECANCELED;
    case absl::StatusCode::kUnavailable:
      return -ENOTCONN;
    case absl::StatusCode::kUnimplemented:
      return -EOPNOTSUPP;
    case absl::StatusCode::kFailedPrecondition:
      return -EBUSY;
    case absl::StatusCode::kOutOfRange:
      return -ERANGE;
    default:
      return -EIO;
  }
}

absl::Status Annotate(const absl::Status& status, absl::string_view what) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(what, ": ", status.message()));
  if (auto payload = status.GetPayload(kErrnoUrl)) result.SetPayload(kErrnoUrl, *payload);
  return result;
}

}  // namespace ibnbd
