// SPDX-License-Identifier: Apache-2.0
#include "proto/wire_errno.h"

#include <gtest/gtest.h>

namespace ibnbd::proto {
namespace {

TEST(WireErrno, EveryErrorOfTheTableSurvivesTheRoundTrip) {
  for (const internal::ErrnoRow& row : internal::kErrnoTable) {
    EXPECT_EQ(WireFromErrno(-row.host), row.wire);
    EXPECT_EQ(ErrnoFromWire(row.wire), -row.host);
  }
}

TEST(WireErrno, ZeroIsSuccessInEveryLanguageAndNothingElseIs) {
  EXPECT_EQ(WireFromErrno(0), 0u);
  EXPECT_EQ(ErrnoFromWire(0), 0);
  EXPECT_EQ(NbdFromErrno(0), 0u);
  EXPECT_EQ(ErrnoFromNbd(0), 0);
  for (std::uint32_t wire = 1; wire <= kWireErrnoMax; ++wire) EXPECT_LT(ErrnoFromWire(wire), 0);
  for (int error = -5000; error <= 5000; ++error) {
    if (error == 0) continue;
    EXPECT_NE(WireFromErrno(error), 0u);
    EXPECT_LE(WireFromErrno(error), kWireErrnoMax);
    EXPECT_NE(NbdFromErrno(error), 0u);
  }
}

TEST(WireErrno, WhatTheTableLacksIsEio) {
  EXPECT_EQ(WireFromErrno(-512), kWireEio);    // ERESTARTSYS, a number of the kernel's own.
  EXPECT_EQ(WireFromErrno(ENOSPC), kWireEio);  // Positive: a mistake.
  EXPECT_EQ(WireFromErrno(-2147483647 - 1), kWireEio);
  EXPECT_EQ(ErrnoFromWire(511), -EIO);
  EXPECT_EQ(ErrnoFromWire(3), -EIO);
  EXPECT_EQ(NbdFromErrno(-512), kNbdEio);
  EXPECT_EQ(ErrnoFromNbd(2), -EIO);  // NBD has no ENOENT.
}

TEST(WireErrno, LinuxNumbersAreTheOnesOnTheWire) {
  EXPECT_EQ(WireFromErrno(-EPERM), 1u);
  EXPECT_EQ(WireFromErrno(-EIO), 5u);
  EXPECT_EQ(WireFromErrno(-EINVAL), 22u);
  EXPECT_EQ(WireFromErrno(-ENOSPC), 28u);
  EXPECT_EQ(WireFromErrno(-EOPNOTSUPP), 95u);
  EXPECT_EQ(WireFromErrno(-ENOTCONN), 107u);
  EXPECT_EQ(WireFromErrno(-EREMOTEIO), 121u);
}

TEST(WireErrno, NbdHearsTheNearestErrorItKnows) {
  EXPECT_EQ(NbdFromErrno(-EROFS), kNbdEperm);
  EXPECT_EQ(NbdFromErrno(-EACCES), kNbdEperm);
  EXPECT_EQ(NbdFromErrno(-EDQUOT), kNbdEnospc);
  EXPECT_EQ(NbdFromErrno(-EFBIG), kNbdEnospc);
  EXPECT_EQ(NbdFromErrno(-EOPNOTSUPP), kNbdEnotsup);
  EXPECT_EQ(NbdFromErrno(-ESHUTDOWN), kNbdEshutdown);
  EXPECT_EQ(NbdFromErrno(-ETIMEDOUT), kNbdEio);
  for (const std::uint32_t nbd : {kNbdEperm, kNbdEio, kNbdEnomem, kNbdEinval, kNbdEnospc,
                                  kNbdEoverflow, kNbdEnotsup, kNbdEshutdown}) {
    EXPECT_EQ(NbdFromErrno(ErrnoFromNbd(nbd)), nbd);
  }
}

}  // namespace
}  // namespace ibnbd::proto
