// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/options.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <sstream>

#include "base/clock.h"
#include "base/memory_provider.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

constexpr char kDescription[] =
    "Serves volumes over the network to ibnbd and in-kernel RNBD clients.";
constexpr char kFooter[] =
    "\nSizes take K, M, G, T.  Example:\n"
    "  ibnbd-server --listen tcp://0.0.0.0:1234 --export vol0=/dev/sdb --export m=mem:256M\n"
    "See ibnbd-server(8).";

// CLI11 reports a mistake with the option's name in front of what a callback throws.
template <class T>
T ValueOrThrow(absl::StatusOr<T> value) {
  if (!value.ok()) throw CLI::ValidationError(std::string(value.status().message()));
  return *std::move(value);
}

template <class T>
void AddSize(CLI::App& app, const std::string& name, std::optional<T>& target,
             const std::string& text) {
  app.add_option_function<std::string>(
         name,
         [name, &target](const std::string& value) {
           const std::uint64_t size = ValueOrThrow(ParseSize(value));
           if (size > std::numeric_limits<T>::max()) {
             throw CLI::ValidationError(name + ": " + value + " is too large");
           }
           target = static_cast<T>(size);
         },
         text)
      ->type_name("SIZE");
}

void AddSettings(CLI::App& app, Settings& settings) {
  app.add_option("--listen", settings.listen,
                 "Address to serve on, tcp://HOST[:PORT]; may be repeated; port 0 lets the system "
                 "choose [tcp://0.0.0.0:1234]")
      ->type_name("URI")
      ->allow_extra_args(false);
  app.add_option_function<std::vector<std::string>>(
         "--export",
         [&settings](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) {
             settings.exports.push_back(ValueOrThrow(ParseExportSpec(text)));
           }
         },
         "A volume on offer: NAME=PATH, NAME=mem:SIZE or NAME=null:SIZE, then any of ,ro ,buffered "
         ",block-size=N; may be repeated")
      ->type_name("SPEC")
      ->allow_extra_args(false);
  app.add_option("--search-path", settings.search_path,
                 "Directory where other names are looked up; may hold %SESSNAME%")
      ->type_name("DIR");
  app.add_option("--threads", settings.thread_count, "Reactor threads [CPUs, at most 4]")
      ->type_name("N");
  app.add_option("--queue-depth", settings.queue_depth, "IOs in flight per session [128]")
      ->type_name("N");
  AddSize(app, "--io-size", settings.io_size, "Largest IO in one piece [128K]");
  app.add_option_function<std::string>(
         "--invalidate",
         [&settings](const std::string& value) { settings.invalidate = value == "always"; },
         "always: a fresh key for each IO (RDMA only), never: keys hold as long as their path "
         "[never]")
      ->check(CLI::IsMember({"always", "never"}))
      ->type_name("WHEN");
  app.add_option("--sessions-max", settings.session_count_max, "Sessions at once [1024]")
      ->type_name("N");
  AddSize(app, "--memory-max", settings.memory_max, "Memory for the buffers of all sessions [4G]");
  app.add_option("--memory", settings.memory,
                 "Kind of that memory: " + std::string(kMemoryProviderNames) + " [pages]")
      ->type_name("KIND");
}

int SignalFromName(const std::string& name) {
  return name == "SIGUSR1" ? SIGUSR1 : name == "SIGUSR2" ? SIGUSR2 : 0;
}

void AddProgramOptions(CLI::App& app, Options& options, std::string& stats_on,
                       std::uint32_t& stop_seconds) {
  app.add_option("--config", options.config_path,
                 "TOML file with the same settings and exports; SIGHUP reads it again")
      ->type_name("FILE");
  app.add_option("--port-file", options.port_file,
                 "Writes the first address's port there once the server is ready")
      ->type_name("FILE");
  app.add_option("--handover", options.handover_path,
                 "Unix socket: takes over from the server that listens there, and hands over in "
                 "turn to the next")
      ->type_name("PATH");
  app.add_option("--log-level", options.log_level, "error, warn, info or debug [info]")
      ->check(CLI::IsMember({"error", "warn", "info", "debug"}))
      ->type_name("LEVEL");
  app.add_option("--stats-on", stats_on, "Signal that logs statistics [SIGUSR1]")
      ->check(CLI::IsMember({"SIGUSR1", "SIGUSR2", "none"}))
      ->type_name("SIGNAL");
  app.add_option("--stop-timeout", stop_seconds,
                 "Seconds that SIGTERM gives executing IOs to finish [10]")
      ->check(CLI::Range(1u, kStopSecondsMax))
      ->type_name("SECONDS");
  app.add_option("--fault", options.fault, "For tests: makes the network fail as described")
      ->type_name("SPEC");
  app.add_flag("--trace", options.trace, "For tests: logs every network request and completion");
}

CommandLine Mistake(const std::string& what) {
  return {{}, "ibnbd-server: " + what + " (see ibnbd-server --help)\n", kExitUsage};
}

CommandLine Explain(const CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream out;
  if (error.get_exit_code() != 0) return Mistake(error.what());
  (void)app.exit(error, out, out);  // --help, --version.
  return {{}, out.str(), 0};
}

}  // namespace

CommandLine ParseCommandLine(int argc, const char* const* argv) {
  CLI::App app(kDescription, "ibnbd-server");
  app.footer(kFooter);
  app.set_version_flag("--version", "ibnbd-server " IBNBD_VERSION);
  Options options;
  std::string stats_on = "SIGUSR1";
  std::uint32_t stop_seconds = 10;
  try {
    AddSettings(app, options.settings);
    AddProgramOptions(app, options, stats_on, stop_seconds);
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return Explain(app, error);
  }
  options.stats_signal = SignalFromName(stats_on);
  options.stop_timeout_ns = stop_seconds * kNsPerSecond;
  const Settings& settings = options.settings;
  if (settings.exports.empty() && !settings.search_path && options.config_path.empty()) {
    return Mistake("nothing to serve: give --export, --search-path or --config");
  }
  // By itself, so that its mistakes are not taken for the configuration file's.
  const absl::StatusOr<Settings> valid = MergeSettings(settings, {});
  if (!valid.ok()) return Mistake(std::string(valid.status().message()));
  CommandLine result;
  result.options = std::move(options);
  return result;
}

}  // namespace ibnbd
