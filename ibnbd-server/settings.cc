// SPDX-License-Identifier: Apache-2.0
// Putting the command line and the configuration file together (options.h).
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/memory_provider.h"
#include "base/socket_address.h"
#include "base/status_macros.h"
#include "ibnbd-server/options.h"
#include "ibnbd-server/search_path.h"

namespace ibnbd {
namespace {

template <class T>
absl::Status CheckRange(const std::optional<T>& value, absl::string_view name, T min, T max) {
  if (!value || (*value >= min && *value <= max)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " ", *value, ": expected ", min, " to ", max));
}

absl::Status Validate(const Settings& settings) {
  RETURN_IF_ERROR(CheckRange<std::uint32_t>(settings.thread_count, "threads", 1, 256));
  RETURN_IF_ERROR(CheckRange<std::uint32_t>(settings.queue_depth, "queue-depth", 2, 65535));
  RETURN_IF_ERROR(CheckRange<std::uint32_t>(settings.io_size, "io-size", 4096, 16u << 20));
  RETURN_IF_ERROR(
      CheckRange<std::uint32_t>(settings.session_count_max, "sessions-max", 1, 1u << 20));
  if (settings.io_size && *settings.io_size % 4096 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("io-size ", *settings.io_size, ": expected a multiple of 4096"));
  }
  if (settings.memory && FindMemoryProvider(*settings.memory) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory ", *settings.memory, ": expected ", kMemoryProviderNames));
  }
  for (const std::string& text : settings.listen) {
    const absl::StatusOr<Uri> uri = ParseUri(text);
    if (!uri.ok()) return Annotate(uri.status(), "listen");
    if (!uri->export_name.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("listen: address \"", text, "\": names an export; expected HOST:PORT only"));
    }
    if (settings.invalidate.value_or(false) && uri->scheme != "rdma") {
      return absl::InvalidArgumentError(
          absl::StrCat("invalidate always: address \"", text,
                       "\": a key per IO needs the memory windows of RDMA; listen on rdma:// "
                       "addresses alone, in a server of its own"));
    }
  }
  if (settings.search_path) RETURN_IF_ERROR(SearchPath::Parse(*settings.search_path).status());
  std::set<std::string> names;
  for (const ExportSpec& spec : settings.exports) {
    if (!names.insert(spec.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("export ", spec.name, ": named twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Settings> MergeSettings(const Settings& command_line, const Settings& config) {
  Settings merged = command_line;
  if (merged.listen.empty()) merged.listen = config.listen;
  if (merged.listen.empty()) merged.listen.push_back("tcp://0.0.0.0");
  const auto take = [](auto& target, const auto& fallback) {
    if (!target) target = fallback;
  };
  take(merged.thread_count, config.thread_count);
  take(merged.queue_depth, config.queue_depth);
  take(merged.io_size, config.io_size);
  take(merged.invalidate, config.invalidate);
  take(merged.session_count_max, config.session_count_max);
  take(merged.memory_max, config.memory_max);
  take(merged.memory, config.memory);
  take(merged.search_path, config.search_path);
  merged.exports.insert(merged.exports.end(), config.exports.begin(), config.exports.end());
  RETURN_IF_ERROR(Validate(merged));
  return merged;
}

std::vector<std::string> ChangedSettings(const Settings& before, const Settings& after) {
  std::vector<std::string> names;
  const auto compare = [&names](const char* name, const auto& a, const auto& b) {
    if (a != b) names.emplace_back(name);
  };
  compare("listen", before.listen, after.listen);
  compare("threads", before.thread_count, after.thread_count);
  compare("queue_depth", before.queue_depth, after.queue_depth);
  compare("io_size", before.io_size, after.io_size);
  compare("invalidate", before.invalidate, after.invalidate);
  compare("sessions_max", before.session_count_max, after.session_count_max);
  compare("memory_max", before.memory_max, after.memory_max);
  compare("memory", before.memory, after.memory);
  compare("search_path", before.search_path, after.search_path);
  return names;
}

}  // namespace ibnbd
