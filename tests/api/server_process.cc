// SPDX-License-Identifier: Apache-2.0
#include "tests/api/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

ServerProcess::ServerProcess() {
  char name[] = "/tmp/ibnbd-api-test.XXXXXX";
  const int fd = ::mkstemp(name);
  CHECK(fd >= 0 && ::ftruncate(fd, 16 << 20) == 0);
  ::close(fd);
  file_ = name;
  Start("tcp://127.0.0.1:0");
}

ServerProcess::~ServerProcess() {
  Kill();
  ::unlink(file_.c_str());
}

void ServerProcess::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

// Between two lives of the server its port may be the local end of somebody else's connection for a
// moment.
void ServerProcess::Restart() {
  const std::string listen = uri_;
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (TryStart(listen)) return;
    Kill();
    ::usleep(100'000);
  }
  std::fprintf(stderr, "%s did not start again on %s\n", IBNBD_SERVER_PROGRAM, listen.c_str());
  std::abort();
}

void ServerProcess::Start(const std::string& listen) {
  if (TryStart(listen)) return;
  std::fprintf(stderr, "%s did not start\n", IBNBD_SERVER_PROGRAM);
  std::abort();
}

bool ServerProcess::TryStart(const std::string& listen) {
  int out[2];
  CHECK(::pipe2(out, O_CLOEXEC) == 0);
  const std::string disk = "disk=" + file_;
  pid_ = ::fork();
  CHECK(pid_ >= 0);
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(out[1], STDOUT_FILENO);
    ::execl(IBNBD_SERVER_PROGRAM, "ibnbd-server", "--listen", listen.c_str(), "--export",
            "mem=mem:64M", "--export", "ro=mem:8M,ro", "--export", disk.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(out[1]);
  std::FILE* lines = ::fdopen(out[0], "r");
  char line[256];
  constexpr char kPrefix[] = "listening on ";
  uri_.clear();
  while (uri_.empty() && std::fgets(line, sizeof line, lines) != nullptr) {
    if (std::strncmp(line, kPrefix, sizeof kPrefix - 1) != 0) continue;
    uri_ = line + sizeof kPrefix - 1;
    uri_.erase(uri_.find_last_not_of(" \n") + 1);
  }
  // The pipe stays open: the server may say more.
  return !uri_.empty();
}
