// SPDX-License-Identifier: Apache-2.0
// What the kernel says of itself in /sys, /proc and /etc, below a root that tests may replace by a
// tree of their own.  softroce and doctor read through it, on the main thread.  Nothing here fails:
// what is not there, or cannot be read, is absent; nobody reads more than kReadMax bytes of a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ibnbd::client {

class SystemTree {
 public:
  static constexpr std::size_t kReadMax = std::size_t{4} << 20;  // modules.dep: half a megabyte.

  // `root` goes before every path: "" is the machine itself.
  explicit SystemTree(std::string root = "") : root_(std::move(root)) {}

  [[nodiscard]] bool Exists(const std::string& path) const;
  [[nodiscard]] std::optional<std::string> Read(const std::string& path) const;
  // The first line, without blanks at its ends.
  [[nodiscard]] std::optional<std::string> ReadLine(const std::string& path) const;
  // Decimal, or hexadecimal after 0x; absent if there is anything else on the line.
  [[nodiscard]] std::optional<std::uint64_t> ReadNumber(const std::string& path) const;
  // The names in a directory, sorted; none when there is no directory.
  [[nodiscard]] std::vector<std::string> List(const std::string& path) const;
  // What access(2) says of this process.
  [[nodiscard]] bool MayReadAndWrite(const std::string& path) const;

 private:
  std::string root_;
};

enum class ModuleState {
  kLoaded,     // Or built in.
  kAvailable,  // modprobe would find it.
  kMissing,    // This kernel has none.
};
// `name` as the kernel writes it, with underscores.
ModuleState FindModule(const SystemTree& tree, const std::string& name);

// Whether this process has a capability; numbers as in <linux/capability.h>.
bool HasCapability(const SystemTree& tree, int capability);

}  // namespace ibnbd::client
