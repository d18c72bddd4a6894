// SPDX-License-Identifier: Apache-2.0
// The machine that softroce runs on: modprobe, the addresses of network devices, and time.
#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "ibnbd-client/softroce/softroce.h"

namespace ibnbd::client {
namespace {

constexpr std::int64_t kModprobeSeconds = 30;
constexpr std::size_t kComplaintMax = 4096;

// The programs of the system: modprobe is not in an ordinary user's PATH.
const char* const kEnvironment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", nullptr};
constexpr const char* kModprobes[] = {"/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe"};

// What comes out of the pipe until its end, or until the deadline: false.
bool ReadComplaint(int fd, std::int64_t deadline_ns, std::string& complaint) {
  const MonotonicClock clock;
  char buffer[512];
  while (true) {
    const std::int64_t left_ms = (deadline_ns - clock.NowNs()) / kNsPerMs;
    if (left_ms <= 0) return false;
    pollfd item{fd, POLLIN, 0};
    const int ready = poll(&item, 1, static_cast<int>(left_ms));
    if (ready < 0 && errno != EINTR) return true;
    if (ready <= 0) continue;
    const ssize_t size = read(fd, buffer, sizeof buffer);
    if (size <= 0) return true;
    if (complaint.size() < kComplaintMax) complaint.append(buffer, static_cast<std::size_t>(size));
  }
}

// One line, without modprobe's name in front.
absl::Status Complain(const std::string& module, std::string complaint, int wait_status) {
  for (char& c : complaint) c = c == '\n' ? ' ' : c;
  absl::StripAsciiWhitespace(&complaint);
  if (absl::StartsWith(complaint, "modprobe: ")) complaint.erase(0, 10);
  if (complaint.empty()) complaint = absl::StrCat("it ended with status ", wait_status);
  return absl::UnavailableError(absl::StrCat("modprobe ", module, ": ", complaint));
}

absl::StatusOr<pid_t> SpawnModprobe(const std::string& module, int error_fd) {
  std::string name = "modprobe", separator = "--", argument = module;
  char* const arguments[] = {name.data(), separator.data(), argument.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, error_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, error_fd, STDERR_FILENO);
  pid_t pid = -1;
  int error = ENOENT;
  for (const char* program : kModprobes) {
    error = posix_spawn(&pid, program, &actions, nullptr, arguments,
                        const_cast<char* const*>(kEnvironment));
    if (error != ENOENT) break;
  }
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) {
    return absl::NotFoundError(
        absl::StrCat("modprobe ", module, ": modprobe is not installed: apt-get install kmod"));
  }
  if (error != 0) return ErrnoStatus(error, absl::StrCat("modprobe ", module));
  return pid;
}

absl::Status RunModprobe(const std::string& module) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "modprobe: pipe");
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  ASSIGN_OR_RETURN(const pid_t pid, SpawnModprobe(module, writer.get()));
  writer.Reset();
  std::string complaint;
  const std::int64_t deadline_ns = MonotonicClock().NowNs() + kModprobeSeconds * kNsPerSecond;
  if (!ReadComplaint(reader.get(), deadline_ns, complaint)) {
    // In the kernel it may be beyond a signal's reach: nobody waits for that.
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, WNOHANG);
    return absl::DeadlineExceededError(
        absl::StrCat("modprobe ", module, ": not done after ", kModprobeSeconds, " seconds"));
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return ErrnoStatus(errno, absl::StrCat("modprobe ", module));
  }
  return status == 0 ? absl::OkStatus() : Complain(module, std::move(complaint), status);
}

std::string AddressText(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET) {
    sockaddr_in ipv4{};
    std::memcpy(&ipv4, address, sizeof ipv4);
    inet_ntop(AF_INET, &ipv4.sin_addr, text, sizeof text);
  } else if (address->sa_family == AF_INET6) {
    sockaddr_in6 ipv6{};
    std::memcpy(&ipv6, address, sizeof ipv6);
    if (IN6_IS_ADDR_LINKLOCAL(&ipv6.sin6_addr)) return "";
    inet_ntop(AF_INET6, &ipv6.sin6_addr, text, sizeof text);
  }
  return text;
}

class RealHost final : public SoftRoceHost {
 public:
  const SystemTree& tree() override { return tree_; }
  RdmaLinks& links() override { return *links_; }
  absl::Status LoadModule(const std::string& name) override { return RunModprobe(name); }
  std::vector<std::string> Addresses(const std::string& netdev) override;
  void Pause() override { poll(nullptr, 0, 1000 / kPausesPerSecond); }

 private:
  const SystemTree tree_;
  const std::unique_ptr<RdmaLinks> links_ = KernelRdmaLinks();
};

std::vector<std::string> RealHost::Addresses(const std::string& netdev) {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  for (const ifaddrs* item = list; item != nullptr; item = item->ifa_next) {
    if (item->ifa_addr == nullptr || netdev != item->ifa_name) continue;
    const std::string text = AddressText(item->ifa_addr);
    if (!text.empty()) addresses.push_back(text);
  }
  freeifaddrs(list);
  return addresses;
}

}  // namespace

std::unique_ptr<SoftRoceHost> ThisHost() { return std::make_unique<RealHost>(); }

}  // namespace ibnbd::client
