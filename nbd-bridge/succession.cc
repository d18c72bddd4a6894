// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/succession.h"

#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd::bridge {
namespace {

// For a volume that is open for reading only, whatever it is to be opened for.
const char* WhyNotServed(const BridgeOptions& options, const VolumeTable& volumes,
                         const ClientState& client) {
  const std::optional<std::size_t> index = volumes.Find(client.export_name);
  if (!index) return "no such export here";
  const NbdExport now = volumes.Describe(*index);
  proto::NbdExportLimits limits{.size = now.size,
                                .block_size_min = now.block_size_min,
                                .payload_size_max = now.block_size_max,
                                .flags = client.limits.flags};
  if (const char* why = WhyNotResumed(client, volumes.volume(*index).id(), limits)) return why;
  const bool was_read_only = (client.limits.flags & proto::kNbdReadOnly) != 0;
  const std::optional<bool> export_read_only = volumes.IsReadOnlyAtServer(*index);
  const bool read_only = options.volumes.read_only || export_read_only.value_or(was_read_only);
  if (read_only && !was_read_only) return "it would be read-only";
  return was_read_only && !read_only ? "it would be writable, and was read-only" : nullptr;
}

absl::Status CheckVolumes(const BridgeOptions& options, const Predecessor& predecessor) {
  VolumeTableOptions look = Bridge::VolumeOptionsOf(options);
  look.read_only = true;
  look.queue_count = 1;
  look.session_name.clear();  // The other one's, perhaps.
  auto volumes = VolumeTable::Open(look);
  if (!volumes.ok()) {
    if (!absl::IsNotFound(volumes.status()) || options.volumes.session_name.empty()) {
      return volumes.status();
    }
    LOG_INFO(volumes.status().message(), "; it may be there for session ",
             options.volumes.session_name);
    return absl::OkStatus();
  }
  for (const ClientState& client : predecessor.clients) {
    if (const char* why = WhyNotServed(options, **volumes, client)) {
      return absl::FailedPreconditionError(absl::StrCat("it has clients of \"", client.export_name,
                                                        "\", which would be lost: ", why,
                                                        "; stop it first if they may be"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSuccession(const BridgeOptions& options, const Predecessor& predecessor) {
  for (const std::string& address : options.listen) {
    ASSIGN_OR_RETURN(const bool there, ListenSocket::IsOneOf(address, predecessor.addresses));
    if (!there) RETURN_IF_ERROR(ListenSocket::Open(address).status());
  }
  return CheckVolumes(options, predecessor);
}

}  // namespace ibnbd::bridge
