// SPDX-License-Identifier: Apache-2.0
// ublk devices that a process left, by their number: what they are, and their end.  See
// kernel_device.h.  A number may have come to somebody else, so that each looks whose it is first.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-client/devices/kernel_device.h"
#include "ibnbd-client/devices/ublk_control.h"
#include "ibnbd-client/devices/ublk_mark.h"

namespace ibnbd::client {
namespace {

constexpr std::int64_t kRemoveMs = 5000;

// To ask about the device; null: there is none, for sure.  A control device that is not there says
// nothing about the others: they can be out of sight as well, in a container for one.
absl::StatusOr<std::unique_ptr<UblkControl>> ControlOf(int index) {
  auto control = UblkControl::Open();
  if (!absl::IsNotFound(control.status())) return control;
  std::error_code error;
  const std::string device = absl::StrCat("/sys/class/ublk-char/ublkc", index);
  if (!std::filesystem::exists("/sys/class", error)) return control;
  if (std::filesystem::exists(device, error) || error) return control;
  return nullptr;
}

}  // namespace

bool UblkNumberIsTaken(int index) {
  const auto control = UblkControl::Open();
  return control.ok() && (*control)->GetInfo(static_cast<std::uint32_t>(index)).ok();
}

absl::StatusOr<bool> UblkDeviceIsLeft(int index, const DeviceMark& mark) {
  const auto id = static_cast<std::uint32_t>(index);
  ASSIGN_OR_RETURN(const std::unique_ptr<UblkControl> control, ControlOf(index));
  if (control == nullptr) return false;
  const auto info = control->GetInfo(id);
  if (absl::IsNotFound(info.status())) return false;
  RETURN_IF_ERROR(info.status());
  if (!UblkFlagsAre(info->ublksrv_flags, mark)) return false;  // The number is another one's now.
  if (info->state != UBLK_S_DEV_DEAD) return true;
  RETURN_IF_ERROR(control->DeleteDevice(id, kRemoveMs));
  return false;
}

void RemoveUnknownUblkDevices(std::uint64_t owner, std::span<const int> known) {
  const DeviceMark mark{owner, 0};
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/class/ublk-char", none)) {
    int index = -1;
    const std::string name = entry.path().filename();
    if (!absl::SimpleAtoi(name.substr(std::min(name.size(), sizeof("ublkc") - 1)), &index)) {
      continue;
    }
    if (std::find(known.begin(), known.end(), index) != known.end()) continue;
    const auto left = UblkDeviceIsLeft(index, mark);
    if (!left.ok()) {
      LOG_WARN("look at ", name, ": ", left.status().message());
    } else if (*left) {
      const absl::Status removed = RemoveLeftUblkDevice(index, mark);
      LOG_WARN(name, " was being made when the daemon ended: removed",
               removed.ok() ? "" : absl::StrCat(", but ", removed.message()));
    }
  }
}

absl::Status RemoveLeftUblkDevice(int index, const DeviceMark& mark) {
  const auto id = static_cast<std::uint32_t>(index);
  ASSIGN_OR_RETURN(const std::unique_ptr<UblkControl> control, ControlOf(index));
  if (control == nullptr) return absl::OkStatus();
  const auto info = control->GetInfo(id);
  if (absl::IsNotFound(info.status())) return absl::OkStatus();
  RETURN_IF_ERROR(info.status());
  if (!UblkFlagsAre(info->ublksrv_flags, mark)) return absl::OkStatus();
  RETURN_IF_ERROR(control->StopDevice(id, kRemoveMs));
  return control->DeleteDevice(id, kRemoveMs);
}

}  // namespace ibnbd::client
