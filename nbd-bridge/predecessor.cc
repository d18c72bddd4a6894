// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/predecessor.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace ibnbd::bridge {
namespace {

constexpr char kEnds[] = "ends within ms ";
constexpr char kListens[] = "listens ";
constexpr char kClient[] = "client ";
constexpr std::int64_t kEndsMsMax = std::int64_t{24} * 3600 * 1000;

}  // namespace

std::vector<std::string> FormatPredecessor(const Predecessor& predecessor) {
  std::vector<std::string> pieces{absl::StrCat(kEnds, predecessor.ends_within_ns / kNsPerMs)};
  for (const std::string& address : predecessor.addresses) {
    pieces.push_back(absl::StrCat(kListens, address));
  }
  for (const ClientState& client : predecessor.clients) {
    pieces.push_back(absl::StrCat(kClient, FormatClientState(client)));
  }
  return pieces;
}

absl::StatusOr<Predecessor> ParsePredecessor(const std::vector<std::string>& pieces) {
  Predecessor predecessor;
  for (const std::string& piece : pieces) {
    absl::string_view rest = piece;
    if (absl::ConsumePrefix(&rest, kEnds)) {
      std::int64_t ms = 0;
      if (!absl::SimpleAtoi(rest, &ms) || ms < 0 || ms > kEndsMsMax) {
        return absl::InvalidArgumentError("what the bridge before says of itself makes no sense");
      }
      predecessor.ends_within_ns = ms * kNsPerMs;
    } else if (absl::ConsumePrefix(&rest, kListens)) {
      predecessor.addresses.emplace_back(rest);
    } else if (absl::ConsumePrefix(&rest, kClient)) {
      ASSIGN_OR_RETURN(ClientState client,
                       ParseClientState(std::string_view(rest.data(), rest.size())));
      predecessor.clients.push_back(std::move(client));
    }
  }
  return predecessor;
}

}  // namespace ibnbd::bridge
