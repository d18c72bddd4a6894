// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/client_state.h"

#include <cstdio>

#include "absl/strings/str_cat.h"

namespace ibnbd::bridge {
namespace {

constexpr std::size_t kHeaderMax = 200;

}  // namespace

std::string FormatClientState(const ClientState& state) {
  const proto::NbdExportLimits& limits = state.limits;
  return absl::StrCat("nbd client 1 ", state.is_new ? 1 : 0, " ", state.volume_id, " ",
                      state.structured_replies ? 1 : 0, " ", limits.size, " ",
                      limits.block_size_min, " ", limits.payload_size_max, " ", limits.flags, " ",
                      state.export_name.size(), " ", state.received.size(), "\n", state.export_name,
                      state.received);
}

absl::StatusOr<ClientState> ParseClientState(std::string_view text) {
  const absl::Status bad = absl::InvalidArgumentError("the state of a client is not understood");
  const std::size_t end = text.substr(0, kHeaderMax).find('\n');
  if (end == std::string_view::npos) return bad;
  const std::string header(text.substr(0, end));
  unsigned is_new = 0, structured = 0, block_size_min = 0, payload_size_max = 0, flags = 0;
  unsigned long long volume_id = 0, size = 0;
  std::size_t name_size = 0, received_size = 0;
  if (std::sscanf(header.c_str(), "nbd client 1 %u %llu %u %llu %u %u %u %zu %zu", &is_new,
                  &volume_id, &structured, &size, &block_size_min, &payload_size_max, &flags,
                  &name_size, &received_size) != 9) {
    return bad;
  }
  const std::string_view rest = text.substr(end + 1);
  if (flags > 0xffff || name_size > proto::kNbdNameMax || name_size > rest.size() ||
      received_size != rest.size() - name_size) {
    return bad;
  }
  ClientState state;
  state.is_new = is_new != 0;
  state.volume_id = volume_id;
  state.structured_replies = structured != 0;
  state.limits = {.size = size,
                  .block_size_min = block_size_min,
                  .payload_size_max = payload_size_max,
                  .flags = static_cast<std::uint16_t>(flags)};
  state.export_name = std::string(rest.substr(0, name_size));
  state.received = std::string(rest.substr(name_size));
  return state;
}

const char* WhyNotAsTold(const proto::NbdExportLimits& told, const proto::NbdExportLimits& now) {
  if (now.size < told.size) return "the volume is smaller than the client was told";
  if (now.block_size_min > told.block_size_min) return "the volume's blocks are larger";
  if (now.payload_size_max < told.payload_size_max) return "--connection-memory is smaller";
  const unsigned changing = proto::kNbdSendDf;  // Of the client, not of the export.
  if (((now.flags ^ told.flags) & ~changing) != 0) return "the volume can do other things";
  return nullptr;
}

const char* WhyNotResumed(const ClientState& state, std::uint64_t volume_id,
                          const proto::NbdExportLimits& now) {
  if (state.volume_id != 0 && volume_id != 0 && state.volume_id != volume_id) {
    return "the server has another volume under the name now";
  }
  return WhyNotAsTold(state.limits, now);
}

}  // namespace ibnbd::bridge
