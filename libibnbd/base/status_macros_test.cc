// SPDX-License-Identifier: Apache-2.0
#include "base/status_macros.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace ibnbd {
namespace {

TEST(ErrnoStatus, NamesWhatWasAttemptedAndKeepsTheErrno) {
  for (const int sign : {1, -1}) {
    const absl::Status status = ErrnoStatus(sign * EACCES, "attach /dev/sdb: open");
    EXPECT_EQ(status.message(), "attach /dev/sdb: open: Permission denied");
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
    EXPECT_EQ(ErrnoFromStatus(status), -EACCES);
  }
}

TEST(ErrnoStatus, AnnotationKeepsTheErrnoAndTheCause) {
  const absl::Status status = Annotate(ErrnoStatus(ENOSPC, "write"), "export vol0");
  EXPECT_EQ(status.message(), "export vol0: write: No space left on device");
  EXPECT_EQ(ErrnoFromStatus(status), -ENOSPC);
  EXPECT_TRUE(Annotate(absl::OkStatus(), "nothing").ok());
}

TEST(ErrnoStatus, EveryOtherStatusHasANearErrno) {
  EXPECT_EQ(ErrnoFromStatus(absl::OkStatus()), 0);
  EXPECT_EQ(ErrnoFromStatus(absl::NotFoundError("x")), -ENOENT);
  EXPECT_EQ(ErrnoFromStatus(absl::InvalidArgumentError("x")), -EINVAL);
  EXPECT_EQ(ErrnoFromStatus(absl::UnknownError("x")), -EIO);
}

absl::Status Fail(bool fail) { return fail ? absl::AbortedError("stop") : absl::OkStatus(); }
absl::StatusOr<std::unique_ptr<int>> Make(bool fail) {
  if (fail) return absl::NotFoundError("nothing");
  return std::make_unique<int>(5);
}
absl::Status Chain(bool fail_first, bool fail_second, int* out) {
  RETURN_IF_ERROR(Fail(fail_first));
  ASSIGN_OR_RETURN(std::unique_ptr<int> made, Make(fail_second));
  *out = *made;
  return absl::OkStatus();
}

TEST(StatusMacros, ReturnTheFirstErrorAndElseGoOn) {
  int out = 0;
  EXPECT_EQ(Chain(true, true, &out).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Chain(false, true, &out).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(out, 0);
  EXPECT_TRUE(Chain(false, false, &out).ok());
  EXPECT_EQ(out, 5);
}

}  // namespace
}  // namespace ibnbd
