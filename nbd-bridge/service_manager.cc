// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/service_manager.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "nbd-bridge/listener.h"

namespace ibnbd::bridge {
namespace {

// A client is two descriptors of one name: its socket, and a file with its state.
constexpr char kClientPrefix[] = "nbd-client-";
constexpr std::size_t kDescriptorsOfClient = 2;
// The next process gets all names in one variable of its environment, which Linux limits to 128
// KiB: with more it could not be started at all.  A name has up to 24 bytes.
constexpr std::size_t kClientsMax = 2048;

absl::StatusOr<UniqueFd> FileWith(const std::string& text) {
  UniqueFd file(memfd_create("nbd-client", MFD_CLOEXEC));
  if (!file.valid()) return ErrnoStatus(errno, "memfd_create");
  const ssize_t size = write(file.get(), text.data(), text.size());
  if (size != static_cast<ssize_t>(text.size())) {
    return ErrnoStatus(size < 0 ? errno : ENOSPC, "write its state");
  }
  return file;
}

absl::Status Leave(const HandedClient& client, const std::string& name) {
  ASSIGN_OR_RETURN(const UniqueFd state, FileWith(client.state));
  const std::array<int, 2> fds = {client.socket.get(), state.get()};
  const std::string message = absl::StrCat("FDSTORE=1\nFDNAME=", name);
  const int result = sd_pid_notify_with_fds(0, 0, message.c_str(), fds.data(), fds.size());
  return result < 0 ? ErrnoStatus(result, "give it to the service manager") : absl::OkStatus();
}

std::string TextOf(int file) {
  std::string text(kHandedStateMax, '\0');
  const ssize_t size = pread(file, text.data(), text.size(), 0);
  text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
  return text;
}

}  // namespace

absl::StatusOr<Kept> TakeFromServiceManager() {
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(1, &names);
  if (count < 0) return ErrnoStatus(count, "socket activation");
  Kept kept;
  std::map<std::string, HandedClient> clients;
  for (int i = 0; i < count; ++i) {
    UniqueFd fd(SD_LISTEN_FDS_START + i);
    const std::string name = names != nullptr && names[i] != nullptr ? names[i] : "";
    if (!absl::StartsWith(name, kClientPrefix)) {
      kept.given.sockets.push_back(std::move(fd));
      continue;
    }
    HandedClient& client = clients[name];
    if (sd_is_socket(fd.get(), AF_UNSPEC, SOCK_STREAM, 0) > 0) {
      client.socket = std::move(fd);
    } else {
      client.state = TextOf(fd.get());
    }
  }
  for (int i = 0; names != nullptr && i < count; ++i) std::free(names[i]);
  std::free(names);
  for (auto& [name, client] : clients) {
    kept.names.push_back(name);
    if (client.socket.valid()) kept.given.clients.push_back(std::move(client));
  }
  return kept;
}

void ForgetInServiceManager(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const int result = sd_notify(0, absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", name).c_str());
    if (result < 0) {
      LOG_WARN(ErrnoStatus(result, "the service manager keeps a client that is served").message());
    }
  }
}

bool HasServiceManager() { return std::getenv("NOTIFY_SOCKET") != nullptr; }

std::size_t KeptClientsMax() {
  std::size_t descriptors = 0;
  const char* limit = std::getenv("FDSTORE");
  if (limit == nullptr || !absl::SimpleAtoi(limit, &descriptors)) return kClientsMax;
  return std::min(descriptors / kDescriptorsOfClient, kClientsMax);
}

bool LeaveToServiceManager(const std::vector<HandedClient>& clients) {
  constexpr std::uint64_t kPatienceUs = 5'000'000;
  bool all = true;
  std::size_t number = 0;
  const std::size_t clients_max = KeptClientsMax();
  for (const HandedClient& client : clients) {
    if (++number > clients_max) {
      all = false;
      LOG_ERROR("closed the connections of ", clients.size() - clients_max,
                " clients: the service manager keeps those of ", clients_max,
                " (FileDescriptorStoreMax=, two descriptors for each)");
      break;
    }
    const auto status = Leave(client, absl::StrCat(kClientPrefix, ::getpid(), "-", number));
    if (status.ok()) continue;
    all = false;
    LOG_ERROR("closed the connection of ", PeerOf(client.socket.get()), ": ", status.message());
  }
  if (clients.empty()) return true;
  // Until it has looked at them: what comes from a process that is gone is nobody's.
  if (const int result = sd_notify_barrier(0, kPatienceUs); result < 0) {
    all = false;
    LOG_ERROR(ErrnoStatus(result, "the service manager may not have taken the clients").message());
  }
  return all;
}

}  // namespace ibnbd::bridge
