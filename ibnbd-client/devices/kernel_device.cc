// SPDX-License-Identifier: Apache-2.0
// What both kinds of block device have in common; see kernel_device.h.
#include "ibnbd-client/devices/kernel_device.h"

#include <fstream>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace ibnbd::client {
namespace {

constexpr char kLeftBehindUrl[] = "ibnbd/left-behind";

}  // namespace

bool IsLeftBehind(const absl::Status& status) {
  return status.GetPayload(kLeftBehindUrl).has_value();
}

absl::Status LeftBehind(absl::Status status) {
  status.SetPayload(kLeftBehindUrl, absl::Cord());
  return status;
}

std::uint64_t SizeOfBlockDevice(const std::string& node) {
  std::uint64_t sectors = 0;
  std::ifstream(absl::StrCat("/sys/block/", node.substr(node.rfind('/') + 1), "/size")) >> sectors;
  return sectors * 512;
}

}  // namespace ibnbd::client
