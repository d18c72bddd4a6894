// SPDX-License-Identifier: Apache-2.0
// A directory that stands for a machine's /, for the tests of what reads /sys, /proc and /etc.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "ibnbd-client/system/system_tree.h"

namespace ibnbd::client {

class FakeTree {
 public:
  FakeTree() {
    std::string pattern = testing::TempDir() + "/ibnbd-tree.XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    root_ = pattern;
    tree_ = SystemTree(root_);
  }
  ~FakeTree() { std::filesystem::remove_all(root_, ignored_); }
  FakeTree(const FakeTree&) = delete;
  FakeTree& operator=(const FakeTree&) = delete;

  [[nodiscard]] const SystemTree& tree() const { return tree_; }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path, std::ios::binary) << text;
  }
  void MakeDirectory(const std::string& path) { std::filesystem::create_directories(root_ + path); }
  void Remove(const std::string& path) { std::filesystem::remove_all(root_ + path, ignored_); }

  void SetRoot(bool is_root) {
    Write("/proc/self/status",
          absl::StrCat("Name:\tx\nCapEff:\t", is_root ? "000001ffffffffff" : "0000000000000000",
                       "\nSeccomp:\t0\n"));
  }
  void AddNetdev(const std::string& name, int mtu = 1500, const std::string& flags = "0x1003") {
    Write("/sys/class/net/" + name + "/flags", flags + "\n");
    Write("/sys/class/net/" + name + "/mtu", absl::StrCat(mtu, "\n"));
    Write("/sys/class/net/" + name + "/uevent", "INTERFACE=" + name + "\nIFINDEX=2\n");
  }
  // A port 1 without GIDs; a soft device if `parent` is a network device.
  void AddRdmaDevice(const std::string& name, const std::string& parent = "",
                     const std::string& state = "4: ACTIVE",
                     const std::string& link_layer = "Ethernet") {
    const std::string path = "/sys/class/infiniband/" + name;
    if (!parent.empty()) Write(path + "/parent", parent + "\n");
    Write(path + "/ports/1/state", state + "\n");
    Write(path + "/ports/1/link_layer", link_layer + "\n");
    for (int i = 0; i < 4; ++i) {
      Write(absl::StrCat(path, "/ports/1/gids/", i), "0000:0000:0000:0000:0000:0000:0000:0000\n");
    }
  }
  void SetGid(const std::string& device, int index, const std::string& gid,
              const std::string& netdev, const std::string& type = "RoCE v2") {
    const std::string port = "/sys/class/infiniband/" + device + "/ports/1";
    Write(absl::StrCat(port, "/gids/", index), gid + "\n");
    Write(absl::StrCat(port, "/gid_attrs/ndevs/", index), netdev + "\n");
    Write(absl::StrCat(port, "/gid_attrs/types/", index), type + "\n");
  }
  void SetModules(const std::string& available, const std::string& builtin = "") {
    Write("/proc/sys/kernel/osrelease", "6.1.0-test\n");
    Write("/lib/modules/6.1.0-test/modules.dep", available);
    Write("/lib/modules/6.1.0-test/modules.builtin", builtin);
  }

 private:
  std::string root_;
  SystemTree tree_;
  std::error_code ignored_;
};

}  // namespace ibnbd::client
