// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/daemon/runtime_lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace ibnbd::client {
namespace {

class RuntimeLockTest : public testing::Test {
 protected:
  RuntimeLockTest() {
    char name[] = "/tmp/ibnbd-lock.XXXXXX";
    directory_ = ::mkdtemp(name);
    path_ = directory_ + "/lock";
  }
  ~RuntimeLockTest() override { std::filesystem::remove_all(directory_); }

  // A process that has the lock.
  pid_t Holder(bool first_thread_ends = false) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      const auto lock = LockRuntime(path_);
      const char answer = lock.ok() ? 'y' : 'n';
      if (first_thread_ends) std::thread(::pause).detach();
      (void)!::write(ready[1], &answer, 1);
      if (first_thread_ends) ::syscall(SYS_exit, 0);
      while (true) ::pause();
    }
    ::close(ready[1]);
    char answer = 0;
    EXPECT_EQ(::read(ready[0], &answer, 1), 1);
    EXPECT_EQ(answer, 'y');
    ::close(ready[0]);
    return child;
  }

  std::string directory_, path_;
};

TEST_F(RuntimeLockTest, ASecondDaemonIsRefusedAndToldWhoHasIt) {
  const pid_t holder = Holder();
  const auto lock = LockRuntime(path_);
  EXPECT_TRUE(absl::IsAlreadyExists(lock.status()));
  EXPECT_TRUE(absl::StrContains(lock.status().message(), absl::StrCat("process ", holder)));
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
}

TEST_F(RuntimeLockTest, ItGoesWithItsProcess) {
  const pid_t holder = Holder();
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
  EXPECT_TRUE(LockRuntime(path_).ok());
}

// The kernel gives it back late if a thread of it waits for a device.  So stands a process whose
// first thread is gone and another is not.
TEST_F(RuntimeLockTest, AProcessThatIsDeadAndNotGoneYetIsNoObstacle) {
  const pid_t holder = Holder(/*first_thread_ends=*/true);
  const auto dead = [&] {
    std::ifstream status(absl::StrCat("/proc/", holder, "/status"));
    const std::string text{std::istreambuf_iterator<char>(status), {}};
    return absl::StrContains(text, "State:\tZ");
  };
  while (!dead()) std::this_thread::yield();
  const auto lock = LockRuntime(path_);
  EXPECT_TRUE(lock.ok()) << lock.status();
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
}

}  // namespace
}  // namespace ibnbd::client
