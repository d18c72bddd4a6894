// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace ibnbd {
namespace {

// Standard error is a pipe from now on that nobody reads, and full.
void StopReadingStderr() {
  int ends[2] = {-1, -1};
  if (pipe(ends) != 0 || fcntl(ends[1], F_SETFL, O_NONBLOCK) != 0) _exit(1);
  for (const std::size_t size : {4096u, 1u}) {
    const char bytes[4096] = {};
    while (write(ends[1], bytes, size) > 0) {
    }
  }
  if (fcntl(ends[1], F_SETFL, 0) != 0 || dup2(ends[1], STDERR_FILENO) < 0) _exit(1);
}

TEST(CheckDeathTest, SaysWhatFailedAndWhere) {
  const int two = 2;
  CHECK_EQ(two, 2);
  EXPECT_EXIT(CHECK_LT(two, 2), testing::KilledBySignal(SIGABRT),
              "check_test.cc:[0-9]+: CHECK failed: \\(two\\) < \\(2\\)");
}

TEST(CheckDeathTest, WhatIsToBeDoneFirstIsDoneOnce) {
  const auto die = [] {
    before_check_fails = [] {
      (void)!write(STDERR_FILENO, "first ", 6);
      CHECK(false && "second");
    };
    CHECK(false && "not said");
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGABRT), "first .*CHECK failed: false && \"second\"");
}

TEST(CheckDeathTest, EndsTheProcessIfNobodyReadsWhatItSays) {
  const auto die = [] {
    StopReadingStderr();
    CHECK(false);
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGABRT), "");
}

TEST(CheckDeathTest, AndIfTheSignalIsHeldBackAndIgnored) {
  const auto die = [] {
    sigset_t all;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, nullptr);
    (void)signal(SIGABRT, SIG_IGN);
    StopReadingStderr();
    CHECK(false);
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGABRT), "");
}

TEST(CheckDeathTest, AndIfWhatIsToBeDoneFirstHangs) {
  const auto die = [] {
    before_check_fails = [] {
      while (true) (void)pause();
    };
    CHECK(false);
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGABRT), "");
}

}  // namespace
}  // namespace ibnbd
