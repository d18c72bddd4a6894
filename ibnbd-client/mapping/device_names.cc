// SPDX-License-Identifier: Apache-2.0
// See device_names.h.
#include "ibnbd-client/mapping/device_names.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace ibnbd::client {
namespace {

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

absl::Status DeviceNames::Add(const std::string& node, const Uri& uri) const {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  const std::string path = FileOf(node);
  std::ofstream file(path, std::ios::trunc);
  file << "IBNBD_LINK=" << LinkNameOf(uri) << '\n';
  file.close();
  if (!file) return ErrnoStatus(errno, path);
  Announce(node);
  return absl::OkStatus();
}

void DeviceNames::Remove(const std::string& node) const {
  (void)std::remove(FileOf(node).c_str());  // It may not be there.
}

void DeviceNames::Announce(const std::string& node) {
  const std::string disk = std::filesystem::path(node).filename().string();
  std::ofstream(absl::StrCat("/sys/block/", disk, "/uevent")) << "change";
}

}  // namespace ibnbd::client
