// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "base/clock.h"

namespace ibnbd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

CommandLine Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "ibnbd-server");
  return ParseCommandLine(static_cast<int>(arguments.size()), arguments.data());
}

// The one line of a mistake; fails the test if there was none.
std::string MistakeIn(std::vector<const char*> arguments) {
  const CommandLine result = Parse(std::move(arguments));
  EXPECT_FALSE(result.options.has_value());
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_EQ(std::count(result.text.begin(), result.text.end(), '\n'), 1) << result.text;
  return result.text;
}

TEST(Options, ReadsEverything) {
  const CommandLine result = Parse({"--listen",
                                    "tcp://0.0.0.0:1234",
                                    "--listen=tcp://[::1]:0",
                                    "--export",
                                    "vol0=/dev/sdb",
                                    "--export",
                                    "m=mem:256M,ro",
                                    "--threads",
                                    "2",
                                    "--queue-depth",
                                    "64",
                                    "--io-size",
                                    "256K",
                                    "--invalidate",
                                    "never",
                                    "--sessions-max",
                                    "7",
                                    "--memory-max",
                                    "1G",
                                    "--search-path",
                                    "/srv/%SESSNAME%",
                                    "--config",
                                    "c.toml",
                                    "--port-file",
                                    "p",
                                    "--fault",
                                    "cut",
                                    "--trace",
                                    "--log-level",
                                    "debug",
                                    "--stats-on",
                                    "SIGUSR2",
                                    "--stop-timeout",
                                    "3"});
  ASSERT_TRUE(result.options) << result.text;
  const Settings& settings = result.options->settings;
  EXPECT_THAT(settings.listen, ElementsAre("tcp://0.0.0.0:1234", "tcp://[::1]:0"));
  ASSERT_EQ(settings.exports.size(), 2u);
  EXPECT_EQ(settings.exports[0].source, "/dev/sdb");
  EXPECT_TRUE(settings.exports[1].read_only);
  EXPECT_EQ(settings.thread_count, 2u);
  EXPECT_EQ(settings.queue_depth, 64u);
  EXPECT_EQ(settings.io_size, 256u << 10);
  EXPECT_EQ(settings.invalidate, false);
  EXPECT_EQ(settings.session_count_max, 7u);
  EXPECT_EQ(settings.memory_max, std::uint64_t{1} << 30);
  EXPECT_EQ(settings.search_path, "/srv/%SESSNAME%");
  EXPECT_EQ(result.options->config_path, "c.toml");
  EXPECT_EQ(result.options->port_file, "p");
  EXPECT_EQ(result.options->fault, "cut");
  EXPECT_TRUE(result.options->trace);
  EXPECT_EQ(result.options->log_level, "debug");
  EXPECT_EQ(result.options->stats_signal, SIGUSR2);
  EXPECT_EQ(result.options->stop_timeout_ns, 3 * kNsPerSecond);
}

TEST(Options, HelpAndVersionAreNoMistakes) {
  const CommandLine help = Parse({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.text, HasSubstr("--search-path"));
  const CommandLine version = Parse({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.text, HasSubstr("ibnbd-server "));
}

TEST(Options, MistakesAreNamedInOneLine) {
  EXPECT_THAT(MistakeIn({}), HasSubstr("nothing to serve"));
  EXPECT_THAT(MistakeIn({"--exprot", "a=b"}), HasSubstr("--exprot"));
  EXPECT_THAT(MistakeIn({"--export"}), HasSubstr("--export"));
  EXPECT_THAT(MistakeIn({"--export", "vnope"}), HasSubstr("vnope"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x,fast"}), HasSubstr("unknown option \"fast\""));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--threads", "many"}), HasSubstr("--threads"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--threads", "-1"}), HasSubstr("--threads"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--io-size", "1.5M"}), HasSubstr("1.5M"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--io-size", "8G"}), HasSubstr("too large"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--log-level", "loud"}), HasSubstr("loud"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--invalidate", "often"}), HasSubstr("often"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--invalidate", "always"}),
              HasSubstr("\"tcp://0.0.0.0\": a key per IO needs"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--stats-on", "SIGKILL"}), HasSubstr("SIGKILL"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "--stop-timeout", "0"}), HasSubstr("--stop-timeout"));
  EXPECT_THAT(MistakeIn({"--export", "v=/x", "stray"}), HasSubstr("stray"));
}

Settings WithListen(const std::string& uri) {
  Settings settings;
  settings.listen.push_back(uri);
  return settings;
}

std::string MergeError(const Settings& settings) {
  const auto merged = MergeSettings(settings, {});
  return merged.ok() ? "" : std::string(merged.status().message());
}

TEST(Options, ItsOwnMistakesAreNotTheFiles) {
  EXPECT_THAT(MistakeIn({"--config", "c.toml", "--threads", "0"}),
              testing::AllOf(HasSubstr("threads 0"), testing::Not(HasSubstr("c.toml"))));
  EXPECT_THAT(MistakeIn({"--export", "a=mem:1M", "--listen", "tcp://h:1/a"}),
              HasSubstr("names an export"));
  EXPECT_THAT(MistakeIn({"--export", "a=mem:1M", "--export", "a=mem:2M"}),
              HasSubstr("named twice"));
}

TEST(Settings, TheCommandLineComesBeforeTheFileAndExportsAddUp) {
  Settings line, file;
  line.queue_depth = 32;
  line.exports.push_back({.name = "a", .source = "mem:1M"});
  file.queue_depth = 64;
  file.thread_count = 3;
  file.listen.push_back("tcp://127.0.0.1:1");
  file.exports.push_back({.name = "b", .source = "mem:1M"});
  const auto merged = MergeSettings(line, file);
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->queue_depth, 32u);
  EXPECT_EQ(merged->thread_count, 3u);
  EXPECT_THAT(merged->listen, ElementsAre("tcp://127.0.0.1:1"));
  EXPECT_EQ(merged->exports.size(), 2u);
}

TEST(Settings, ListensOnTheStandardPortByDefault) {
  const auto merged = MergeSettings({}, {});
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(merged->listen, ElementsAre("tcp://0.0.0.0"));
}

TEST(Settings, RefusesWhatCannotBe) {
  EXPECT_THAT(MergeError(WithListen("carrier://pigeon")), HasSubstr("carrier"));
  EXPECT_THAT(MergeError(WithListen("tcp://h:70000")), HasSubstr("70000"));
  EXPECT_THAT(MergeError(WithListen("tcp://h:1/vol0")), HasSubstr("names an export"));
  EXPECT_THAT(MergeError(WithListen("127.0.0.1:1234")), HasSubstr("127.0.0.1:1234"));
  Settings settings;
  settings.thread_count = 0;
  EXPECT_THAT(MergeError(settings), HasSubstr("threads 0"));
  settings.thread_count = 1;
  settings.io_size = 5000;
  EXPECT_THAT(MergeError(settings), HasSubstr("multiple of 4096"));
  settings.io_size = 4096;
  settings.queue_depth = 1;
  EXPECT_THAT(MergeError(settings), HasSubstr("queue-depth 1"));
  settings.queue_depth = 8;
  settings.memory = "gold";
  EXPECT_THAT(MergeError(settings), HasSubstr("memory gold: expected pages, huge or memfd"));
  settings.memory = "memfd";
  settings.search_path = "relative";
  EXPECT_THAT(MergeError(settings), HasSubstr("search path \"relative\""));
  settings.search_path = "/srv";
  settings.exports = {{.name = "a", .source = "/x"}, {.name = "a", .source = "/y"}};
  EXPECT_THAT(MergeError(settings), HasSubstr("export a: named twice"));
}

TEST(Settings, NamesWhatNeedsARestart) {
  Settings before, after;
  after.queue_depth = 5;
  after.search_path = "/srv";
  after.exports.push_back({.name = "a", .source = "/x"});
  EXPECT_THAT(ChangedSettings(before, after), ElementsAre("queue_depth", "search_path"));
}

}  // namespace
}  // namespace ibnbd
