// SPDX-License-Identifier: Apache-2.0
// See options.h.
#include "nbd-bridge/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "nbd-bridge/loss_policy.h"
#include "nbd-bridge/session_words.h"

namespace ibnbd::bridge {
namespace {

constexpr std::uint32_t kThreadsMax = 64;  // As many queues as a session may have.

struct RawOptions {
  std::vector<std::string> sockets, listen, volumes, paths;
  std::string on_loss = "hold", path_policy = "adaptive", connection_memory = "32M", session_name,
              memory, dead_after = "default", handover;
  bool read_only = false, wait = false;
  std::uint32_t threads = 1;
  int connections_max = 256;
  double handshake_timeout = 30, stop_timeout = 10;
  int verbosity = 0;
};

void Declare(CLI::App& app, RawOptions& raw) {
  app.set_version_flag("--version", absl::StrCat("nbd-bridge ", ibnbd_version()));
  app.add_option("volume", raw.volumes,
                 "[NAME=]tcp://HOST[:PORT]/VOLUME: a volume, and what NBD clients call it "
                 "(its own name if not given)")
      ->required();
  app.add_option("-s,--socket", raw.sockets, "Listen on this unix socket")
      ->type_name("PATH")
      ->allow_extra_args(false);
  app.add_option("-l,--listen", raw.listen, "Listen on tcp:HOST[:PORT] or unix:PATH")
      ->type_name("ADDRESS")
      ->allow_extra_args(false);
  app.add_flag("-r,--readonly", raw.read_only, "Open the volumes read-only");
  app.add_option("--on-loss", raw.on_loss,
                 "When the server is lost: hold, or fail-after=TIME (500ms, 30s, 2m)")
      ->type_name("POLICY")
      ->capture_default_str();
  app.add_option("--path", raw.paths, "One more way to the server of the volumes")
      ->type_name("[SRC@]DST[:PORT]")
      ->allow_extra_args(false);
  app.add_option("--path-policy", raw.path_policy,
                 "Which path an IO takes: adaptive, round-robin, min-inflight or min-latency")
      ->type_name("POLICY")
      ->capture_default_str();
  app.add_option("--dead-after", raw.dead_after,
                 "A server that says nothing for so long, not even to heartbeats, is taken for "
                 "dead: 1s to 3600s; default: 10s, or 35s with the kernel's server")
      ->type_name("TIME")
      ->capture_default_str();
  app.add_flag("-w,--wait", raw.wait, "Wait for servers that are not there yet");
  app.add_option("--memory", raw.memory,
                 "What buffers are made of: pages, huge (huge pages as far as there are some) or "
                 "memfd [pages]")
      ->check(CLI::IsMember({"pages", "huge", "memfd"}));
  app.add_option("--session-name", raw.session_name,
                 "Name to give the servers, which may have a directory for it")
      ->type_name("NAME");
  app.add_option("-t,--threads", raw.threads, "Threads; each has a connection to every server")
      ->check(CLI::Range(1u, kThreadsMax))
      ->capture_default_str();
  app.add_option("--connections-max", raw.connections_max, "NBD connections at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--connection-memory", raw.connection_memory,
                 "Buffers of a connection, 1M to 32M; also its largest request")
      ->type_name("SIZE")
      ->capture_default_str();
  app.add_option("--handshake-timeout", raw.handshake_timeout, "Seconds to choose an export")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app.add_option("--stop-timeout", raw.stop_timeout, "Seconds to finish IO after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--handover", raw.handover,
                 "Take sockets and clients over from the bridge that has this socket")
      ->type_name("PATH");
  app.add_flag("-v,--verbose", raw.verbosity, "Say more (twice: much more)");
}

absl::StatusOr<ProgramOptions> Check(const RawOptions& raw) {
  ProgramOptions options;
  BridgeOptions& bridge = options.bridge;
  for (const std::string& text : raw.volumes) {
    ASSIGN_OR_RETURN(VolumeSpec spec, ParseVolume(text));
    bridge.volumes.volumes.push_back(std::move(spec));
  }
  for (const std::string& path : raw.sockets) bridge.listen.push_back(absl::StrCat("unix:", path));
  for (const std::string& address : raw.listen) bridge.listen.push_back(address);
  ASSIGN_OR_RETURN(bridge.volumes.fail_after_ms, ParseLossPolicy(raw.on_loss));
  auto memory = ParseSize(raw.connection_memory);
  if (!memory.ok()) return Annotate(memory.status(), "--connection-memory");
  constexpr std::uint64_t kMiB = 1u << 20;
  if (*memory < kMiB || *memory > 32 * kMiB || *memory % kMiB != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--connection-memory ", raw.connection_memory,
                     ": must be a whole number of megabytes from 1M to 32M"));
  }
  bridge.connection_memory = static_cast<std::uint32_t>(*memory);
  bridge.volumes.read_only = raw.read_only;
  bridge.volumes.wait_for_servers = raw.wait;
  bridge.volumes.session_name = raw.session_name;
  bridge.volumes.memory = raw.memory;
  bridge.volumes.paths = absl::StrJoin(raw.paths, " ");
  ASSIGN_OR_RETURN(bridge.volumes.path_policy, ParsePathPolicy(raw.path_policy));
  ASSIGN_OR_RETURN(bridge.volumes.dead_after_ms, ParseDeadAfter(raw.dead_after));
  const auto elsewhere = [&](const VolumeSpec& spec) {
    const Uri& first = bridge.volumes.volumes.front().uri;
    return spec.uri.host != first.host || spec.uri.port != first.port;
  };
  if (!raw.paths.empty() &&
      std::any_of(bridge.volumes.volumes.begin(), bridge.volumes.volumes.end(), elsewhere)) {
    return absl::InvalidArgumentError("--path: the volumes must be of one server");
  }
  bridge.thread_count = raw.threads;
  bridge.connections_max = raw.connections_max;
  bridge.handshake_timeout_ms = static_cast<std::uint32_t>(raw.handshake_timeout * 1000);
  bridge.stop_timeout_ms = static_cast<std::uint32_t>(raw.stop_timeout * 1000);
  options.handover_path = raw.handover;
  options.verbosity = raw.verbosity;
  return options;
}

}  // namespace

absl::StatusOr<ProgramOptions> ParseProgramOptions(int argc, char** argv) {
  CLI::App app("Serves volumes of an RNBD server to NBD clients.", "nbd-bridge");
  RawOptions raw;
  try {
    Declare(app, raw);
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    ProgramOptions options;
    options.message = app.help();
    return options;
  } catch (const CLI::CallForVersion&) {
    ProgramOptions options;
    options.message = absl::StrCat(app.version(), "\n");
    return options;
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(error.what());
  }
  return Check(raw);
}

absl::StatusOr<VolumeSpec> ParseVolume(const std::string& text) {
  VolumeSpec spec;
  std::string uri = text;
  // A name may hold anything but '='; one before "://" is a name's.
  const std::size_t scheme = text.find("://");
  const std::size_t equals = text.find('=');
  const bool named =
      equals != std::string::npos && (scheme == std::string::npos || equals < scheme);
  if (named) {
    spec.export_name = text.substr(0, equals);
    uri = text.substr(equals + 1);
  }
  ASSIGN_OR_RETURN(spec.uri, ParseUri(uri));
  if (spec.uri.export_name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("volume ", text, ": the URI names a server, but no volume of it"));
  }
  if (!named) spec.export_name = spec.uri.export_name;
  if (spec.export_name.size() > proto::kNbdNameMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("volume ", text, ": the name is longer than ", proto::kNbdNameMax));
  }
  return spec;
}

absl::StatusOr<std::uint64_t> ParseSize(const std::string& text) {
  absl::string_view rest = text;
  unsigned shift = 0;
  constexpr absl::string_view kUnits = "KMGT";
  if (!rest.empty()) {
    const std::size_t unit = kUnits.find(rest.back());
    if (unit != absl::string_view::npos) {
      shift = static_cast<unsigned>(unit + 1) * 10;
      rest.remove_suffix(1);
    }
  }
  std::uint64_t value = 0;
  if (!absl::SimpleAtoi(rest, &value) ||
      value > std::numeric_limits<std::uint64_t>::max() >> shift) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not a size, as 4K or 32M"));
  }
  return value << shift;
}

}  // namespace ibnbd::bridge
