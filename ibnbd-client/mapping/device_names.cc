// SPDX-License-Identifier: Apache-2.0
// See device_names.h.
#include "ibnbd-client/mapping/device_names.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/devices/kernel_device.h"

namespace ibnbd::client {
namespace {

constexpr const char* kFresh = ".new";  // Until it is written.
constexpr const char* kHeldLine = "IBNBD_HELD=1\n";

// Whether its writer was to take it away by himself.
bool WasHeld(int fd) {
  char text[8192];
  const ssize_t size = ::read(fd, text, sizeof(text));
  return size > 0 &&
         absl::EndsWith(absl::string_view(text, static_cast<std::size_t>(size)), kHeldLine);
}

// What udev leaves as it is in the names of links; bytes above ASCII too, if they are UTF-8.
bool StaysInNames(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::string_view("#+-.:=@_").find(c) != absl::string_view::npos;
}

std::string Escaped(const std::string& text, bool keep_slashes) {
  std::string out;
  bool begins = true;  // A path component: "." and ".." must not be ones.
  for (const char c : text) {
    const bool stays = (keep_slashes && c == '/') || (StaysInNames(c) && !(begins && c == '.'));
    if (stays) {
      out += c;
    } else {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(c));
    }
    begins = c == '/';
  }
  return out;
}

}  // namespace

std::string LinkNameOf(const Uri& uri) {
  std::string server = Escaped(uri.host, false);
  if (uri.port != kDefaultPort) absl::StrAppend(&server, ":", uri.port);
  std::string name = Escaped(uri.export_name, true);
  while (!name.empty() && name.front() == '/') name.erase(0, 1);
  return absl::StrCat("ibnbd/", server, "/", name);
}

std::string DeviceNames::FileOf(const std::string& node) const {
  return absl::StrCat(directory_, "/", std::filesystem::path(node).filename().string());
}

// The lock is taken before anybody can see the file.
absl::StatusOr<UniqueFd> DeviceNames::Replace(const std::string& node, const Uri& uri,
                                              bool hold) const {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  const std::string path = FileOf(node);
  const std::string fresh = path + kFresh;
  const std::string text =
      absl::StrCat("IBNBD_LINK=", LinkNameOf(uri), "\n", hold ? kHeldLine : "");
  (void)::unlink(fresh.c_str());
  UniqueFd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!file.valid()) return ErrnoStatus(errno, path);
  if (hold && ::flock(file.get(), LOCK_EX | LOCK_NB) != 0) return ErrnoStatus(errno, path);
  const ssize_t written = ::write(file.get(), text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size())) {
    return ErrnoStatus(written < 0 ? errno : ENOSPC, path);
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, path);
  return file;
}

absl::Status DeviceNames::Write(const std::string& node, const Uri& uri) const {
  return Replace(node, uri, false).status();
}

absl::StatusOr<UniqueFd> DeviceNames::WriteHeld(const std::string& node, const Uri& uri) const {
  return Replace(node, uri, true);
}

void DeviceNames::Remove(const std::string& node) const { (void)::unlink(FileOf(node).c_str()); }

void DeviceNames::RemoveStale(const std::vector<std::string>* known) const {
  std::error_code error;
  std::vector<std::string> nodes;
  for (const auto& entry : std::filesystem::directory_iterator(directory_, error)) {
    if (entry.path().extension() != kFresh)
      nodes.push_back("/dev/" + entry.path().filename().string());
  }
  for (const std::string& node : nodes) {
    if (known != nullptr && std::find(known->begin(), known->end(), node) != known->end()) continue;
    const UniqueFd file(::open(FileOf(node).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!file.valid() || ::flock(file.get(), LOCK_EX | LOCK_NB) != 0) continue;
    // Whose file says nothing may live, of a version before, if the device does.
    const bool may_live = known == nullptr || SizeOfBlockDevice(node) != 0;
    if (may_live && !WasHeld(file.get())) continue;
    LOG_INFO(FileOf(node), ": the device that it names was left by a process that was killed");
    Remove(node);
    Announce(node);
  }
}

void DeviceNames::Announce(const std::string& node) {
  const std::string disk = std::filesystem::path(node).filename().string();
  std::ofstream(absl::StrCat("/sys/block/", disk, "/uevent")) << "change";
}

}  // namespace ibnbd::client
