// SPDX-License-Identifier: Apache-2.0
// What the server was asked to do: the command line and, behind it, the configuration file.  Read
// once at start; the exports of the file again on each reload.  Main thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ibnbd-server/export_spec.h"

namespace ibnbd {

inline constexpr int kExitFailure = 1;  // Could not start, or failed while running.
inline constexpr int kExitUsage = 2;    // The command line makes no sense.

inline constexpr std::uint32_t kStopSecondsMax = 3600;

// Settings that both the command line and the file can give; unset: not given there.
struct Settings {
  std::vector<std::string> listen;  // URIs.
  std::optional<std::uint32_t> thread_count;
  std::optional<std::uint32_t> queue_depth;
  std::optional<std::uint32_t> io_size;
  std::optional<bool> invalidate;  // Keys per IO.
  std::optional<std::uint32_t> session_count_max;
  std::optional<std::uint64_t> memory_max;
  std::optional<std::string> memory;  // Name of a MemoryProvider.
  std::optional<std::string> search_path;
  std::vector<ExportSpec> exports;
};

struct Options {
  Settings settings;
  std::string config_path;
  std::string port_file;
  std::string handover_path;  // Empty: none.
  std::string log_level = "info";
  std::string fault;  // Empty: none.
  bool trace = false;
  int stats_signal = 0;  // 0: none.
  std::int64_t stop_timeout_ns = 0;
};

// Either options, or a text to print and the code to exit with (--help, --version, a mistake).
struct CommandLine {
  std::optional<Options> options;
  std::string text;
  int exit_code = 0;
};
CommandLine ParseCommandLine(int argc, const char* const* argv);

// Reads a file in the format of ibnbd-server(8).  Errors begin with "FILE:LINE: " where there is a
// line.
absl::StatusOr<Settings> LoadConfig(const std::string& path);
absl::StatusOr<Settings> ParseConfig(const std::string& text, const std::string& path);

// The command line before the file before the defaults; all exports of both.  Refuses duplicate
// names and values that cannot be.
absl::StatusOr<Settings> MergeSettings(const Settings& command_line, const Settings& config);

// The names of settings, other than exports, in which the two differ: they need a restart.
std::vector<std::string> ChangedSettings(const Settings& before, const Settings& after);

}  // namespace ibnbd
