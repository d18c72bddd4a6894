// SPDX-License-Identifier: Apache-2.0
// See device_users.h.
#include "ibnbd-client/mapping/device_users.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ibnbd::client {
namespace {

namespace fs = std::filesystem;

// The disk, or one of its partitions.
struct Part {
  std::string name;    // "ublkb0p1"
  std::string number;  // "259:1"
};

std::string FirstLine(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Names in a directory; none if it cannot be read: processes come and go.
std::vector<std::string> NamesIn(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  return names;
}

std::vector<Part> PartsOf(const std::string& disk, const fs::path& sys) {
  std::vector<Part> parts{{disk, FirstLine(sys / "dev")}};
  std::error_code error;
  for (const std::string& name : NamesIn(sys)) {
    if (fs::exists(sys / name / "partition", error)) {
      parts.push_back({name, FirstLine(sys / name / "dev")});
    }
  }
  return parts;
}

std::string Holder(const std::vector<Part>& parts, const fs::path& sys) {
  for (const Part& part : parts) {
    const fs::path base = part.name == parts.front().name ? sys : sys / part.name;
    const auto holders = NamesIn(base / "holders");
    if (!holders.empty()) return absl::StrCat("held by ", holders.front());
  }
  return "";
}

// Of one mount namespace.  By number, and by name, as file systems of several devices have no
// number of their own here.
std::string MountIn(const fs::path& mountinfo, const std::vector<Part>& parts) {
  std::ifstream file(mountinfo);
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 6 || fields.end() - dash < 3) continue;
    for (const Part& part : parts) {
      if (fields[2] == part.number || dash[2] == "/dev/" + part.name) {
        return absl::StrCat("mounted at ", fields[4]);
      }
    }
  }
  return "";
}

std::string Swap(const fs::path& swaps, const std::vector<Part>& parts) {
  std::ifstream file(swaps);
  for (std::string line; std::getline(file, line);) {
    for (const Part& part : parts) {
      if (line.substr(0, line.find(' ')) == "/dev/" + part.name) return "used for swap";
    }
  }
  return "";
}

bool HasOpen(const fs::path& descriptors, const std::vector<Part>& parts) {
  for (const std::string& name : NamesIn(descriptors)) {
    std::error_code error;
    const std::string target = fs::read_symlink(descriptors / name, error).string();
    for (const Part& part : parts) {
      if (!error && target == "/dev/" + part.name) return true;
    }
  }
  return false;
}

std::string Process(const fs::path& proc, const std::vector<Part>& parts) {
  std::set<std::string> namespaces;
  for (const std::string& pid : NamesIn(proc)) {
    int number = 0;
    if (!absl::SimpleAtoi(pid, &number)) continue;
    std::error_code error;
    const std::string mounts = fs::read_symlink(proc / pid / "ns/mnt", error).string();
    if (namespaces.insert(mounts).second) {
      const std::string mount = MountIn(proc / pid / "mountinfo", parts);
      if (!mount.empty()) return mount;
    }
    if (HasOpen(proc / pid / "fd", parts)) {
      return absl::StrCat("open in ", FirstLine(proc / pid / "comm"), " (", pid, ")");
    }
  }
  return "";
}

}  // namespace

std::string UserOf(const std::string& node, const std::string& root) {
  const std::string disk = fs::path(node).filename().string();
  const fs::path sys = fs::path(root + "/sys/block") / disk;
  const std::vector<Part> parts = PartsOf(disk, sys);
  if (parts.front().number.empty()) return "";  // It is not there.
  std::string user = Holder(parts, sys);
  if (user.empty()) user = Swap(root + "/proc/swaps", parts);
  if (user.empty()) user = Process(root + "/proc", parts);
  return user;
}

}  // namespace ibnbd::client
