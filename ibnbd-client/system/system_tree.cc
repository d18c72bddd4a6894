// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/system/system_tree.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/unique_fd.h"

namespace ibnbd::client {
namespace {

// "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz" is rdma_rxe; file names may have dashes.
bool NamesModule(absl::string_view path, const std::string& name) {
  const std::size_t slash = path.rfind('/');
  if (slash != absl::string_view::npos) path.remove_prefix(slash + 1);
  const std::size_t dot = path.find(".ko");
  if (dot == absl::string_view::npos || dot != name.size()) return false;
  return std::equal(name.begin(), name.end(), path.begin(),
                    [](char a, char b) { return a == (b == '-' ? '_' : b); });
}

}  // namespace

bool SystemTree::Exists(const std::string& path) const {
  return access((root_ + path).c_str(), F_OK) == 0;
}

std::optional<std::string> SystemTree::Read(const std::string& path) const {
  // Not blocking: a fifo in somebody's tree is no reason to wait.
  const UniqueFd fd(open((root_ + path).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return std::nullopt;
  std::string text;
  char buffer[4096];
  while (text.size() < kReadMax) {
    const ssize_t size =
        read(fd.get(), buffer, std::min(sizeof buffer, SystemTree::kReadMax - text.size()));
    if (size < 0) return std::nullopt;
    if (size == 0) break;
    text.append(buffer, static_cast<std::size_t>(size));
  }
  return text;
}

std::optional<std::string> SystemTree::ReadLine(const std::string& path) const {
  std::optional<std::string> text = Read(path);
  if (!text.has_value()) return std::nullopt;
  text->erase(std::min(text->find('\n'), text->size()));
  absl::StripAsciiWhitespace(&*text);
  return text;
}

std::optional<std::uint64_t> SystemTree::ReadNumber(const std::string& path) const {
  const std::optional<std::string> line = ReadLine(path);
  if (!line.has_value()) return std::nullopt;
  std::uint64_t number = 0;
  if (absl::StartsWith(*line, "0x") ? absl::SimpleHexAtoi(*line, &number)
                                    : absl::SimpleAtoi(*line, &number)) {
    return number;
  }
  return std::nullopt;
}

std::vector<std::string> SystemTree::List(const std::string& path) const {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(root_ + path, error);
  while (!error && entry != std::filesystem::directory_iterator()) {
    names.push_back(entry->path().filename().string());
    entry.increment(error);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool SystemTree::MayReadAndWrite(const std::string& path) const {
  return access((root_ + path).c_str(), R_OK | W_OK) == 0;
}

ModuleState FindModule(const SystemTree& tree, const std::string& name) {
  if (tree.Exists("/sys/module/" + name)) return ModuleState::kLoaded;
  const std::optional<std::string> release = tree.ReadLine("/proc/sys/kernel/osrelease");
  if (!release.has_value()) return ModuleState::kMissing;
  const std::string directory = absl::StrCat("/lib/modules/", *release, "/");
  // Without parameters, a module that is built in has no directory in /sys/module.
  const std::string builtin = tree.Read(directory + "modules.builtin").value_or("");
  for (const absl::string_view line : absl::StrSplit(builtin, '\n')) {
    if (NamesModule(line, name)) return ModuleState::kLoaded;
  }
  const std::string modules = tree.Read(directory + "modules.dep").value_or("");
  for (const absl::string_view line : absl::StrSplit(modules, '\n')) {
    if (NamesModule(line.substr(0, line.find(':')), name)) return ModuleState::kAvailable;
  }
  return ModuleState::kMissing;
}

bool HasCapability(const SystemTree& tree, int capability) {
  const std::string status = tree.Read("/proc/self/status").value_or("");
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    if (!absl::StartsWith(line, "CapEff:")) continue;
    line.remove_prefix(7);
    std::uint64_t mask = 0;
    if (!absl::SimpleHexAtoi(absl::StripAsciiWhitespace(line), &mask)) return false;
    return capability >= 0 && capability < 64 && (mask >> capability & 1) != 0;
  }
  return false;
}

}  // namespace ibnbd::client
